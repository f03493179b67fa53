"""Rounds per second of the environment alone: ours, Axelrod, numpy, JaxMARL, matrax, a bare scan.

    python scripts/benchmarks/rounds.py [--turns 3]

The programs take turns. Axelrod plays a thousand matches at most, one after the other. Results go
to docs/benchmarks/rounds.json.
"""

import argparse
import sys

from workers import Worker, environment, spread, write

REQUIREMENTS = ["axelrod==4.13.1", "jaxmarl==0.2.0", "matrax==0.0.5"]
LENGTHS = {1: 10_000, 1_000: 100, 100_000: 10, 1_000_000: 5}  # episodes, and rounds of each
NAMES = {
    "scan": "a bare scan, no chance",
    "ours": "ours",
    "numpy": "numpy, vectorised",
    "jaxmarl": "JaxMARL",
    "matrax": "matrax",
    "axelrod": "Axelrod",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    others = environment("env", *REQUIREMENTS)
    here = {"ours", "scan", "numpy"}
    workers = {
        name: Worker(sys.executable if name in here else others, "rounds_worker.py", name)
        for name in NAMES
    }
    results: dict = {name: {"versions": w.ready["versions"]} for name, w in workers.items()}
    for episodes, rounds in LENGTHS.items():
        rates: dict[str, list[float]] = {}
        for _ in range(turns):
            for name, worker in workers.items():
                if name != "axelrod" or episodes <= 1_000:
                    answer = worker(f"{episodes} {rounds}")
                    rates.setdefault(name, []).append(answer["rounds_per_second"])
        for name, found in rates.items():
            results[name][str(episodes)] = spread(found)
    for worker in workers.values():
        worker.close()
    write("rounds", {"turns": turns, "lengths": LENGTHS, "names": NAMES, "programs": results})


if __name__ == "__main__":
    main()
