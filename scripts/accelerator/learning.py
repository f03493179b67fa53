"""Whether a model learns on a device: a run, and how near its policy is to the one-step optimum."""

import time
from typing import Any

import jax
import numpy as np
from population import optimum

from accelerator.cases import ENOUGH
from accelerator.stand_in import tokenizer
from jaxmoral import config as configs
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent, policy_table
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.trained import first_player
from jaxmoral.world.chain import memory_policy


def measure(tiny: bool = False, updates: int = 60) -> dict[str, Any]:
    """Trains the real model, or without its package free logits, on the quickstart's reward."""
    real = tokenizer(tiny)[1]
    flags = ["--reward.name", "deontological", "--updates", str(updates)]
    if not real:
        flags += ["--model.source", "tabular", "--ppo.learning_rate", "0.3"]
    config = resolve(configs.load(None, flags))
    agent = make_agent(config)
    state, step = compile_update([(config, agent)])
    start = time.perf_counter()
    for update in range(updates):
        state, _ = step(state, update)
    jax.block_until_ready(state)
    taken = time.perf_counter() - start
    condition = Condition(training_game(config), agent.presentation)
    log_probs = policy_table(agent, condition, first_player(state)).log_probs
    table = np.asarray(memory_policy(log_probs))
    judged, best = optimum(config)
    chosen = float(table[judged, best[judged]].min())
    legal = float(1 - table[:, 2].max())
    return {
        "model": config.model.source,
        "updates": updates,
        "seconds": taken,
        "better_move": chosen,
        "legal": legal,
        "at_optimum": min(chosen, legal) >= ENOUGH,
    }
