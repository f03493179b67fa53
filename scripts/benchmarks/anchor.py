"""What an anchor costs an update, and what it keeps of the language, beside the same run without.

    python scripts/benchmarks/anchor.py [--coefs 1] [--any.key value ...]

Updates are taken in turns in one process, in processor time, so that other work on the machine
tells less; retention is measured on texts that neither run has seen.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.trained import TrainedAgent
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.results import rows
from jaxmoral.measuring.retention import measure_retention
from jaxmoral.measuring.source import load_source

REPEATS = 6


def with_coef(config: Config, coef: float) -> Config:
    """The configuration with another weight of its anchor."""
    return dataclasses.replace(config, anchor=dataclasses.replace(config.anchor, coef=coef))


def cost(config: Config, coef: float) -> float:
    """How many times the processor time of an update one with an anchor takes."""
    kinds = [resolve(with_coef(config, own)) for own in (0.0, coef)]
    agent = make_agent(kinds[0])
    runs = [compile_update([(kind, agent)]) for kind in kinds]
    states, steps = [state for state, _ in runs], [step for _, step in runs]
    taken: list[list[float]] = [[], []]
    for update in range(REPEATS + 1):
        for kind in (0, 1):
            began = time.process_time()
            states[kind], metrics = steps[kind](states[kind], update)
            jax.block_until_ready(metrics)
            taken[kind].append(time.process_time() - began)
    free, held = (float(np.median(own[1:])) for own in taken)
    print(f"processor seconds an update: {free:.2f} without, {held:.2f} with an anchor")
    return held / free


def measure(trained: TrainedAgent) -> str:
    """A run's regret in its own game, and its language kept."""
    evaluation = evaluate_agent(trained, ["ipd"])
    regrets = [
        row["value"]
        for row in rows(evaluation)
        if row["policy"] == "tuned"
        and row["protocol"] == "exact"
        and row["metric"] == f"regret/{trained.config.reward.name}/normalised"
    ]
    began, worked = time.perf_counter(), time.process_time()
    kept = measure_retention(load_source(trained), "builtin")["all"]
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    last = trained.history[-1]
    return (
        f"reward {last['reward_mean']:.3f}, regret {np.mean(regrets):.4f}, KL"
        f" {kept['kl']:.4f} nats a token, perplexity {kept['perplexity']['base']:.2f} ->"
        f" {kept['perplexity']['tuned']:.2f}, same top {kept['agreement']:.1%}; retention took"
        f" {seconds:.1f} s ({work:.1f} s of processors)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--coefs", type=float, nargs="+", default=[1.0])
    arguments, flags = parser.parse_known_args()
    config = configs.load(None, flags)
    print(f"an anchored update costs {cost(config, arguments.coefs[0]):.2f} x one without")
    for coef in (0.0, *arguments.coefs):
        trained = fit_agent(with_coef(config, coef), say=lambda line: None)
        print(f"coef {coef:g}: {measure(trained)}", flush=True)


if __name__ == "__main__":
    main()
