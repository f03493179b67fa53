"""Reward against wall time and rounds: the paper's loop on TRL, and ours.

    python scripts/benchmarks/learning.py [--minutes 30]

The same weights, prompts, reward (deontological), opponent (tit-for-tat), LoRA and learning rate;
"by tokens" is the paper's algorithm in ours. One program at a time; each stops after 30 updates, or
when the time is over. Results go to docs/benchmarks/learning.json.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from against_trl import OURS, REQUIREMENTS, ROUNDS, write_task
from workers import Worker, environment, read, write

LEARNING_RATE = 6e-5
MAX_UPDATES = 30
TRL = "TRL, 1 episode"


def follow(worker: Worker, episodes: int, limit: float) -> dict[str, list[float]]:
    """Asks for updates until the limit, in seconds of updates."""
    found: dict[str, list[float]] = {"seconds": [], "rounds": [], "reward": []}
    spent = 0.0
    while spent < limit and len(found["reward"]) < MAX_UPDATES:
        figures = worker()
        spent += figures["seconds"]
        found["seconds"].append(spent)
        found["rounds"].append(ROUNDS * episodes * (len(found["rounds"]) + 1))
        found["reward"].append(figures["reward"])
        print(f"{spent:8.1f} s, reward {figures['reward']:.2f}", file=sys.stderr, flush=True)
    worker.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="the most for a program")
    parser.add_argument("--only", help="measure this program; the others' results are kept")
    arguments = parser.parse_args()
    limit = 60 * arguments.minutes
    ours = [*OURS, "--ppo.learning_rate", LEARNING_RATE]
    tokens = ["--preset", "paper", "--env.streams", "jax", "--lora.dropout", 0]
    flags: dict[str, list] = {
        "ours, 4,096 episodes": ["--env.episodes", 4096],
        "ours, 1 episode": ["--env.episodes", 1],
        "ours, 1 episode, by tokens": [*tokens, "--env.episodes", 1],
    }
    names = [*flags, TRL] if arguments.only is None else [arguments.only]
    programs = {} if arguments.only is None else read("learning")["programs"]
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            if name == TRL:
                python = environment("trl", *REQUIREMENTS)
                task = write_task(Path(scratch), "deontological", LEARNING_RATE)
                worker = Worker(python, "trl_worker.py", task, scratch)
            else:
                worker = Worker(sys.executable, "jaxmoral_worker.py", *ours, *flags[name])
            episodes = 4096 if "4,096" in name else 1
            programs[name] = follow(worker, episodes, limit)
    write("learning", {"learning_rate": LEARNING_RATE, "programs": programs})


if __name__ == "__main__":
    main()
