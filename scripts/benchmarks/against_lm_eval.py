"""Times scenarios against lm-eval's loglikelihood requests, with the same prompts and answers.

    python scripts/benchmarks/against_lm_eval.py [--items 1000]

Two-option items of about 150 tokens, shown in both orders, to the base and a tuned agent. lm-eval
and its dependencies are installed in an environment of their own (once, about 2 GB). Ours runs
before and after it; seconds go to docs/benchmarks/against_lm_eval.json.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from workers import Worker, environment, peak_gib, versions, write

from jaxmoral.api import train_agent
from jaxmoral.config import parse
from jaxmoral.language.scenarios import Item, Option, shown, views
from jaxmoral.language.texts import BUILTIN, read_texts
from jaxmoral.learning.prompter import Prompter
from jaxmoral.measuring.choices import answer_all, longest_prompt
from jaxmoral.measuring.forests import Question, encode
from jaxmoral.measuring.source import Loaded, load_source
from jaxmoral.models.lora import Lora
from jaxmoral.models.merged import save_merged

REQUIREMENTS = ["torch==2.13.0", "lm_eval==0.4.13", "transformers==5.24.0", "peft==0.21.2"]
REQUIREMENTS += ["accelerate"]  # which lm-eval's models of Hugging Face import
STORY, OPTION = 114, 10  # tokens
LETTERS = ("letters",)
APART = 1e-3


def make_items(prompter: Prompter, number: int) -> list[Item]:
    """So many situations with two options, cut from the package's texts."""
    tokenizer = prompter.tokenizer
    ids = [id for text in read_texts(BUILTIN) for id in prompter.text_tokens(text.text)[1]]
    length = STORY + 2 * OPTION

    def part(start: int, end: int) -> str:
        return " ".join(tokenizer.decode(ids[start:end]).split())

    items = []
    for index in range(number):
        start = index * (len(ids) - length) // number
        ends = [start + STORY, start + STORY + OPTION, start + length]
        options = tuple(Option(part(a, b)) for a, b in itertools.pairwise(ends))
        items.append(Item(str(index), part(start, ends[0]), options))
    return items


def questions(items: list[Item]) -> list[list[Question]]:
    """Each item in both orders."""
    return [
        [Question(shown(item, view), view.labels) for view in views(2, LETTERS)] for item in items
    ]


def ours(loaded: Loaded, asked: list[list[Question]]) -> tuple[dict[str, np.ndarray], float]:
    """By policy `[num_items, 2, 3]` probabilities, and the seconds they took."""
    prompter = loaded.agent.prompter
    assert isinstance(prompter, Prompter)
    began = time.perf_counter()
    longest = longest_prompt(prompter)
    encoded = [[(each, encode(prompter, each, longest)) for each in item] for item in asked]
    found = {name: np.stack(each) for name, each in answer_all(loaded, encoded).items()}
    return found, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1000)
    number = parser.parse_args().items
    python = environment("lm-eval", *REQUIREMENTS)
    loaded = load_source(train_agent(parse({"updates": 2})))
    model, prompter, trained = loaded.agent.model, loaded.agent.prompter, loaded.trained
    assert model is not None
    assert trained is not None
    assert isinstance(prompter, Prompter)
    asked = questions(make_items(prompter, number))
    lora = loaded.config.lora
    adapters = {"base": {}, "tuned": jax.device_get(trained["adapter"])}
    spelled = [f"{space}{label}" for label in asked[0][0].labels for space in (" ", "")]
    with tempfile.TemporaryDirectory() as scratch:
        for name, adapter in adapters.items():
            folder = Path(scratch) / name
            folder.mkdir()
            save_merged(folder, model, adapter, Lora(lora.rank, lora.alpha, 0.0, lora.targets))
        task = Path(scratch) / "task.json"
        texts = [question.text for item in asked for question in item]
        task.write_text(json.dumps({"texts": texts, "answers": spelled}))
        first, compiling = ours(loaded, asked)
        theirs = Worker(python, "lm_eval_worker.py", task, *(Path(scratch) / n for n in adapters))
        answers = theirs()
        theirs.close()
        found, again = ours(loaded, asked)
    for index, name in enumerate(adapters):
        spellings = np.exp(answers["log_probs"][index]).reshape(number, 2, 2, 2).sum(-1)
        np.testing.assert_allclose(found[name][..., :2], spellings, atol=APART)
        np.testing.assert_allclose(first[name], found[name], atol=1e-6)
    tokens = [len(prompter.tokens(text)) for text in texts]
    results = {
        "items": number,
        "tokens": float(np.mean(tokens)),
        "apart": APART,
        "seconds": {"lm-eval": answers["seconds"], "ours, compiling": compiling, "ours": again},
        "peak_gib": {"lm-eval": answers["peak_gib"], "ours": peak_gib()},
        "batch": theirs.ready["batch"],
        "versions": theirs.ready["versions"] | versions("jax"),
    }
    write("against_lm_eval", results)


if __name__ == "__main__":
    main()
