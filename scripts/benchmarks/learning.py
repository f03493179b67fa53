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
from workers import Worker, environment, write

LEARNING_RATE = 6e-5
MAX_UPDATES = 30


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
    limit = 60 * parser.parse_args().minutes
    ours = [*OURS, "--ppo.learning_rate", LEARNING_RATE]
    tokens = ["--preset", "paper", "--env.streams", "jax", "--lora.dropout", 0]
    programs = {}
    for name, episodes, flags in (
        ("ours, 4,096 episodes", 4096, []),
        ("ours, 1 episode", 1, []),
        ("ours, 1 episode, by tokens", 1, tokens),
    ):
        flags = [*flags, *ours, "--env.episodes", episodes]
        worker = Worker(sys.executable, "jaxmoral_worker.py", *flags)
        programs[name] = follow(worker, episodes, limit)
    python = environment("trl", *REQUIREMENTS)
    with tempfile.TemporaryDirectory() as scratch:
        task = write_task(Path(scratch), "deontological", LEARNING_RATE)
        worker = Worker(python, "trl_worker.py", task, scratch)
        programs["TRL, 1 episode"] = follow(worker, 1, limit)
    write("learning", {"learning_rate": LEARNING_RATE, "programs": programs})


if __name__ == "__main__":
    main()
