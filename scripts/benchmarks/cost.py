"""How the cost of an update grows: with episodes, prompts, adapters, prompt length and LoRA rank.

    python scripts/benchmarks/cost.py [--updates 3] [--curve NAME]

One thing varies at a time, on the packaged model (the number of prompts on a model of four small
layers, so that 4,096 of them fit into minutes); the points of a curve take turns. A curve's
exponent is the slope of log time over log size between neighbouring points. Results go to
docs/benchmarks/cost.json.
"""

import argparse
import runpy
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from workers import ROOT, read, spread, versions, write

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.population import Members
from jaxmoral.learning.resolve import resolve

WORDS = "Think of what a fair and patient person would do here. "  # makes a prompt longer


def curves(folder: Path) -> dict[str, dict[int, list[str]]]:
    """Flags by curve and size."""
    personas = {}
    for repeats in (1, 2, 4, 8, 16, 32):
        path = folder / f"{repeats}.txt"
        path.write_text(WORDS * repeats)
        personas[repeats] = ["--prompt.persona", str(path)]
    small = folder / "model"
    runpy.run_path(str(ROOT / "scripts" / "tiny_model.py"))["write"](small)
    few = ["--env.episodes", "1024", "--model.source", str(small), "--prompt.labels", "[X,Y]"]
    return {
        "episodes": {n: ["--env.episodes", str(n)] for n in (1, 1_000, 10_000, 100_000, 1_000_000)},
        "prompts": {
            16: [*few, "--env.memory", "1"],
            64: [*few, "--env.memory", "2"],
            256: [*few, "--env.memory", "3"],
            1024: [*few, "--env.memory", "3", "--env.payoff_draws", "4"],
            4096: [
                *(*few, "--env.memory", "3", "--env.payoff_draws", "16"),
                *("--env.max_prompts", "4096"),
            ],
        },
        "adapters": {n: ["--seed", str(list(range(n)))] for n in (1, 2, 4, 8, 16)},
        "sentences before the prompt": personas,
        "LoRA rank": {n: ["--lora.rank", str(n)] for n in (1, 4, 16, 64, 256)},
    }


class Updates:
    """A compiled update; each call makes the next one and says how many seconds it took."""

    def __init__(self, members: Members):
        self.state, self.step = compile_update(members)
        self.done = 0

    def __call__(self) -> float:
        start = time.perf_counter()
        self.state, metrics = self.step(self.state, self.done)
        jax.block_until_ready(metrics)
        self.done += 1
        return time.perf_counter() - start


class Point(Updates):
    """A point of a curve."""

    def __init__(self, flags: list[str], agents: dict):
        members = [resolve(config) for config in configs.load_members(None, flags).values()]
        config = members[0]
        if key_of(config) not in agents:
            agents[key_of(config)] = make_agent(config)
        agent = agents[key_of(config)]
        super().__init__([(member, agent) for member in members])


def key_of(config: Config) -> tuple:
    """What an agent is made from, among what varies."""
    return config.lora, config.prompt, config.env.memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--curve", help="one alone; the others stay as they were measured")
    arguments = parser.parse_args()
    updates = arguments.updates
    results = read("cost")["curves"] if arguments.curve else {}
    with TemporaryDirectory() as folder:
        for name, sizes in curves(Path(folder)).items():
            if arguments.curve not in (None, name):
                continue
            agents: dict = {}
            points = {size: Point(flags, agents) for size, flags in sizes.items()}
            times: dict[int, list[float]] = {size: [] for size in points}
            for turn in range(updates + 1):
                for size, point in points.items():
                    taken = point()
                    if turn:
                        times[size].append(taken)
            found = {size: spread(taken) for size, taken in times.items()}
            medians = np.array([found[size]["median"] for size in points])
            slopes = np.diff(np.log(medians)) / np.diff(np.log(list(points)))
            results[name] = {"seconds": found, "exponents": slopes.round(2).tolist()}
            print(
                name, dict(zip(points, medians.round(2), strict=True)), slopes.round(2), flush=True
            )
    write("cost", {"versions": versions("jax"), "updates": updates, "curves": results})


if __name__ == "__main__":
    main()
