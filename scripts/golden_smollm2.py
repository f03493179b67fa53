"""Writes what transformers computes with SmolLM2 135M, which the tests expect of us.

    python scripts/golden_smollm2.py            writes tests/golden/smollm2.npz
    python scripts/golden_smollm2.py --check    compares what is there instead

As `golden_real_model`, whose texts it shares. The arrays hold

  tokens, lengths, best, log_probs   as there
  spelled, spelled_lengths           tokens of texts that a tokenizer can get wrong
  chat                               "Hello" in the chat template
  said                               the most probable tokens after a chat, or -1 past their end
  ways, ways_lengths, likelihoods    the ways to write the options of a question, one option set
                                     after the other, and their log-likelihoods
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
from golden_real_model import (
    LIBRARIES,
    STEP,
    TEXTS,
    continuation,
    joined,
    log_probs_of,
    read_golden,
    rounded,
    spellings,
    split,
    write_or_check,
)

from jaxmoral.language.prompts import Presentation, all_prompts
from jaxmoral.learning.prompter import Prompter
from jaxmoral.models import packaged
from jaxmoral.models.load import load
from jaxmoral.world.games import GAMES

SOURCE = "smollm2-135m"
FILE = Path(__file__).parents[1] / "tests" / "golden" / "smollm2.npz"
COMMAND = "python scripts/golden_smollm2.py"
LAYOUT = 1  # of the file; another number where `compute` computes something else

ODD = [
    *("\t \t\n \n\n  x", "\r\n\r\n x \r", "a\u00a0b\u2003c\u3000d", " " * 50, "x" * 100),
    *("12345 3.1415 1,000,000 2024-11-28", "0x1F4A9 1e-5 10% $5.00", "don't I'll we've 'S"),
    *(
        "😀👍🏽👨‍👩‍👧 🇩🇪",
        "def f(x):\n\tif x >= 10:\n\t\treturn {'a': [1, 2]}\n",
        "한국어 العربية हिन्दी",
    ),
    *(
        "<|im_start|>user\nhi<|im_end|>\n",
        "e\u0301 é ﬁ Å",
        "for (int i = 0; i < n; ++i) { s += a[i]; }",
    ),
]
REQUEST = "Name three colours."
QUESTION = "You found a purse in the street, and nobody saw you. What do you do?"
OPTIONS = (("A", "B"), ("1", "2", "3"), ("keep it", "give it back"))


def texts() -> list[str]:
    """What the tokenizers cut alike: spellings, odd characters, and a prompt of every game."""
    shown = [all_prompts(game, Presentation())[0] for game in GAMES.values()]
    return [*spellings(), *ODD, *shown]


def ways_of(prompter: Prompter, options: tuple[str, ...]) -> list[tuple[int, list[int]]]:
    """Every way to write each option: the option's number and the tokens."""
    trie = prompter.options(options).trie
    pairs = zip(trie.spelling_edges, trie.spelling_action, strict=True)
    return [
        (int(action), [int(trie.edge_token[edge]) for edge in edges if edge < trie.no_edge])
        for edges, action in pairs
    ]


def digest() -> str:
    """Of all that the file is made of."""
    majors = [importlib.metadata.version(name).partition(".")[0] for name in LIBRARIES]
    given = [LAYOUT, STEP, TEXTS, texts(), REQUEST, QUESTION, OPTIONS]
    parts = [packaged.PACKAGED[SOURCE].sha256, majors, *given]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read() -> dict[str, np.ndarray]:
    """What the file holds; see `read_golden`."""
    return read_golden(FILE, digest(), COMMAND)


def compute() -> dict[str, Any]:
    """Everything that the file holds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_grad_enabled(False)
    path = packaged.find(SOURCE, Path())
    from_file = {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **from_file)
    twin = AutoModelForCausalLM.from_pretrained(path.parent, **from_file, dtype=torch.float32)
    twin = twin.eval()
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    found: dict[str, Any] = {"digest": digest(), "made_with": json.dumps(versions)}

    encoded = [tokenizer.encode(text * 2) for text in TEXTS]
    found["tokens"], found["lengths"] = joined(encoded)
    found["spelled"], found["spelled_lengths"] = joined(
        [tokenizer.encode(text) for text in texts()]
    )
    every = torch.cat([log_probs_of(twin, tokens) for tokens in encoded])
    found["best"] = every.argmax(-1).numpy().astype(np.int32)
    vocabulary = torch.arange(every.shape[-1])
    found["log_probs"] = rounded(every[vocabulary % len(every), vocabulary])

    def chat(text: str) -> str:
        turns = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    found["chat"] = chat("Hello")
    ids = tokenizer.encode(chat(REQUEST), add_special_tokens=False)
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    found["said"] = np.array(continuation(twin, ids, ends), np.int32)

    prompter = Prompter(load(SOURCE, "float32"), "plain")
    ids = tokenizer.encode(QUESTION)
    ways = [way for options in OPTIONS for _, way in ways_of(prompter, options)]
    found["ways"], found["ways_lengths"] = joined(ways)
    found["likelihoods"] = rounded(
        [
            sum(
                float(row[token])
                for row, token in zip(
                    log_probs_of(twin, ids + way)[len(ids) - 1 : -1], way, strict=True
                )
            )
            for way in ways
        ]
    )
    return {name: np.asarray(value) for name, value in found.items()}


def likelihoods(found: dict[str, np.ndarray]) -> dict[tuple[int, ...], float]:
    """The log-likelihood of each way to write an option."""
    ways = split(found["ways"], found["ways_lengths"])
    return dict(zip(map(tuple, ways), found["likelihoods"].tolist(), strict=True))


def main() -> None:
    write_or_check(__doc__, FILE, compute, read)


if __name__ == "__main__":
    main()
