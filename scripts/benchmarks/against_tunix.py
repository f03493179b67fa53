"""Times an update against Tunix's PPO learner: the same prompts, sizes, rank and answer length.

    python scripts/benchmarks/against_tunix.py [--updates 3]

First a Gemma 3 of four layers with random weights: sixteen prompts of 186 tokens, answers of four.
Then Gemma 3 270M (Tunix with random weights of its sizes): sixteen prompts of 148 tokens, answers
of two. Tunix reads a prompt for each sample, in one batch. It is installed in an environment of its
own. Results go to docs/benchmarks/against_tunix.json.
"""

import argparse
import dataclasses
import json
import runpy
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from workers import ROOT, Worker, environment, in_turns, spread, write

from jaxmoral.language import prompts
from jaxmoral.language.prompts import Presentation
from jaxmoral.learning.prompter import Prompter
from jaxmoral.models.load import load
from jaxmoral.world.games import get_game

REQUIREMENTS = ["google-tunix==0.1.7"]
LABELS = ("XYXY", "YXYX")  # four tokens each
SIZES = {"vocab_size": 1024, "embed_dim": 128, "mlp_dim": 512, "head_dim": 32, "num_kv_heads": 1}
SIZES |= {"query_scale": 32**-0.5, "sliding_window": 512}
RANK, ALPHA = 8, 16.0
REAL = "gemma3-270m"


def write_task(path: Path, source: str, labels: tuple[str, str]) -> None:
    """What Tunix needs for a model of the same sizes, the same prompts and answers as long."""
    model = load(source)
    sizes, prompter = model.config, Prompter(model, "plain")
    texts = prompts.all_prompts(get_game("ipd"), Presentation(labels=labels))
    encode = partial(model.tokenizer.encode, add_special_tokens=False)
    task = {
        "model": {
            "num_layers": sizes.num_layers,
            "num_embed": sizes.vocab_size,
            "embed_dim": sizes.embed_dim,
            "hidden_dim": sizes.mlp_dim,
            "num_heads": sizes.num_heads,
            "head_dim": sizes.head_dim,
            "num_kv_heads": sizes.num_kv_heads,
            "sliding_window_size": sizes.sliding_window,
        },
        "prompts": [prompter.tokens(text) for text in texts],
        "new_tokens": max(len(encode(label)) for label in labels),
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": 1e-4,
    }
    path.write_text(json.dumps(task))


@dataclasses.dataclass
class Program:
    """A worker, how many samples an update has, and seconds: until the first was done, and what
    of that JAX took to trace and compile."""

    worker: Worker
    batch: int
    to_first_update: float
    compiling: float


def start(python: str, script: str, batch: int, *arguments: object) -> Program:
    begun = time.perf_counter()
    worker = Worker(python, script, *arguments)
    figures = worker()
    return Program(worker, batch, time.perf_counter() - begun, figures["compile"])


def compare(
    folder: Path, source: str, labels: tuple[str, str], batches: list[int], updates: int
) -> dict[str, Any]:
    """What both measured, by program."""
    task = folder / "task.json"
    write_task(task, source, labels)
    settings = {
        "model.source": source,
        "prompt.labels": f"[{','.join(labels)}]",
        "lora.rank": RANK,
        "lora.alpha": ALPHA,
        "env.rounds": 1,
        "updates": 10_000,
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    ours = {
        f"ours, {batch:,} samples": start(
            sys.executable, "jaxmoral_worker.py", batch, *flags, "--env.episodes", batch
        )
        for batch in (256, 4096)
    }
    python = environment("tunix", *REQUIREMENTS)
    results = {}
    for batch in batches:  # one at a time: a large one takes most of the memory
        theirs = {f"Tunix, {batch:,} samples": start(python, "tunix_worker.py", batch, task, batch)}
        programs = ours | theirs
        workers = {name: program.worker for name, program in programs.items()}
        for name, answers in in_turns(workers, updates).items():
            seconds = spread(answer["seconds"] for answer in answers)
            program = programs[name]
            results[name] = {
                "seconds_per_update": seconds,
                "samples_per_second": program.batch / seconds["median"],
                "start_to_first_update": program.to_first_update,
                "compile": program.compiling,
                "peak_gib": answers[-1]["peak_gib"],
                "versions": program.worker.ready["versions"],
            }
        for program in theirs.values():
            program.worker.close()
    for program in ours.values():
        program.worker.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--tiny-batches", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--real-batches", type=int, nargs="+", default=[8])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runpy.run_path(str(ROOT / "scripts" / "tiny_model.py"))["write"](folder, **SIZES)
        updates = arguments.updates
        tiny = compare(folder, scratch, LABELS, arguments.tiny_batches, updates)
        real = compare(folder, REAL, Presentation().labels, arguments.real_batches, updates)
    write("against_tunix", {"updates": updates, "programs": tiny, "programs_270m": real})


if __name__ == "__main__":
    main()
