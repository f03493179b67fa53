"""Runs trainings and evaluations on the devices it is given, for tests of meshes and clusters.

    python tests/on_mesh.py OUTPUT JOBS

JOBS is JSON, a list of {"name", "flags", "folder", "resume", "evaluate"}; every job's parameters
and losses, and the first member's evaluation, are saved to OUTPUT (.npz) by the first process, and
whether programs are read from JAX's compilation cache.
"""

import json
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmoral import evaluate_agent, load_members, train_population
from jaxmoral.devices import cluster
from jaxmoral.models.load import use_compilation_cache

GAMES = ("ipd", "ish", "bos")  # do not divide the devices


def numbers(trained) -> dict[str, np.ndarray]:
    """Parameters as one vector, and losses."""
    tree = jax.jit(lambda x: x, out_shardings=trained.agent.layout.sharding())(trained.trainable)
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    return {
        "parameters": np.concatenate(leaves),
        "losses": np.array([record["loss"] for record in trained.history]),
    }


def evaluated(trained) -> np.ndarray:
    """The tuned agent's exact points in each game."""
    found = evaluate_agent(trained, GAMES, ["random"], protocols=["exact"])
    return np.array(
        [
            game["policies"]["tuned"]["opponents"]["random"]["exact"]["rewards"]["game"]
            for game in found["suites"]["trained"].values()
        ]
    )


def main() -> None:
    cluster.start()
    use_compilation_cache()
    output, jobs = sys.argv[1], json.loads(sys.argv[2])
    found = {}
    for job in jobs:
        members = load_members(None, job["flags"])
        everyone = train_population(members, job.get("folder"), job.get("resume", False))
        for member, trained in everyone.items():
            for name, value in numbers(trained).items():
                found[f"{job['name']}|{member}|{name}"] = value
        if job.get("evaluate"):
            found[f"{job['name']}|evaluation"] = evaluated(next(iter(everyone.values())))
    found["reads programs"] = jax.config.jax_enable_compilation_cache
    if cluster.is_first():
        np.savez(output, **found)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("done")


if __name__ == "__main__":
    main()
