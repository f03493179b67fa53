"""Times an update against Tunix's PPO learner: the same prompts, sizes, rank and answer length.

    python scripts/benchmarks/against_tunix.py [--updates 3] [--tunix-batches 256 512]

Both have a Gemma 3 of four layers with random weights and play the same sixteen prompts of 186
tokens with answers of four; Tunix reads a prompt for each sample, in one batch. It is installed in
an environment of its own. Results go to docs/benchmarks/against_tunix.json.
"""

import argparse
import dataclasses
import json
import runpy
import sys
import tempfile
import time
from pathlib import Path

from workers import ROOT, Worker, environment, in_turns, spread, write

from jaxmoral import prompts
from jaxmoral.agent import Prompter
from jaxmoral.games import get_game
from jaxmoral.gemma.load import load
from jaxmoral.prompts import Presentation

REQUIREMENTS = ["google-tunix==0.1.7"]
LABELS = ("XYXY", "YXYX")  # four tokens each
SIZES = {"vocab_size": 1024, "embed_dim": 128, "mlp_dim": 512, "head_dim": 32, "num_kv_heads": 1}
SIZES |= {"query_scale": 32**-0.5, "sliding_window": 512}
RANK, ALPHA = 8, 16.0


def write_task(folder: Path) -> Path:
    """Our model, and what Tunix needs for the same; the task's path."""
    runpy.run_path(str(ROOT / "scripts" / "tiny_model.py"))["write"](folder, **SIZES)
    model = load(str(folder))
    sizes, prompter = model.config, Prompter(model, "plain")
    texts = prompts.all_prompts(get_game("ipd"), Presentation(labels=LABELS))
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
        "new_tokens": len(model.tokenizer.encode(LABELS[0], add_special_tokens=False)),
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": 1e-4,
    }
    path = folder / "task.json"
    path.write_text(json.dumps(task))
    return path


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--tunix-batches", type=int, nargs="+", default=[256])
    arguments = parser.parse_args()
    python = environment("tunix", *REQUIREMENTS)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        task = write_task(Path(scratch))
        flags: list[object] = [
            "--model.source",
            scratch,
            "--prompt.labels",
            f"[{','.join(LABELS)}]",
        ]
        flags += [
            "--lora.rank",
            RANK,
            "--lora.alpha",
            ALPHA,
            "--env.rounds",
            1,
            "--updates",
            10_000,
        ]
        programs = {
            f"ours, {batch:,} samples": start(
                sys.executable, "jaxmoral_worker.py", batch, *flags, "--env.episodes", batch
            )
            for batch in (256, 4096)
        }
        for batch in arguments.tunix_batches:
            name = f"Tunix, {batch:,} samples"
            programs[name] = start(python, "tunix_worker.py", batch, task, batch)
        workers = {name: program.worker for name, program in programs.items()}
        found = in_turns(workers, arguments.updates)
        for name, answers in found.items():
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
            program.worker.close()
    write("against_tunix", {"updates": arguments.updates, "programs": results})


if __name__ == "__main__":
    main()
