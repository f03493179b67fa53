"""A worker: updates of jaxmoral. Arguments are flags of `python -m jaxmoral.train`."""

import sys

import jax
from workers import count_compilation, serve, versions

from jaxmoral import config as configs
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.resolve import resolve


def main() -> None:
    compiling = count_compilation()
    config = resolve(configs.load(None, sys.argv[1:]))
    agent = make_agent(config)
    state, step = compile_update([(config, agent)])
    done = 0

    def update(request: str) -> dict:
        nonlocal state, done
        state, metrics = step(state, done)
        done += 1
        found = jax.device_get(metrics)
        return {
            "reward": float(found["reward_mean"].mean()),
            "kl": float(found["kl"].mean()),
            "illegal": float(found["p_illegal"].mean()),
            "compile": compiling(),
        }

    serve({"versions": versions("jax", "flax", "optax")}, update)


if __name__ == "__main__":
    main()
