"""Seconds from the quickstart's command to its first finished update, with caches empty and full.

    python scripts/benchmarks/start.py [--turns 3]

The cache holds the converted model and compiled programs. Results go to docs/benchmarks/start.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workers import ROOT, spread, versions, write


def to_first_update(folder: Path, cache: Path) -> float:
    """Until the first line of metrics is on the disk; the rest of the run is stopped."""
    command = [sys.executable, "-m", "jaxmoral.train", "--output-dir", str(folder)]
    command += ["--config", str(ROOT / "configs" / "quickstart.yaml")]
    environment = os.environ | {"JAXMORAL_CACHE": str(cache)}
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as process:
        metrics = folder / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"training ended with exit code {process.returncode}")
            time.sleep(0.05)
        taken = time.perf_counter() - start
        process.terminate()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    times: dict[str, list[float]] = {"caches empty": [], "caches full": []}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as scratch:
            for name in times:
                folder = Path(scratch) / name.replace(" ", "-")
                times[name].append(to_first_update(folder, Path(scratch) / "cache"))
                print(f"{name}: {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
    found = {name: spread(taken) for name, taken in times.items()}
    write("start", {"versions": versions("jax"), "turns": turns, "seconds": found})


if __name__ == "__main__":
    main()
