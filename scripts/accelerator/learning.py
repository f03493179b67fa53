"""Whether a model learns on a device: a run, and how near its policy is to the one-step optimum."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import tiny_model
from population import optimum

from accelerator.cases import ENOUGH
from accelerator.stand_in import cast, tokenizer
from jaxmoral import config as configs
from jaxmoral.devices.mesh import place, shardings
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent, policy_table
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.trained import first_player
from jaxmoral.models.load import LoadedModel, load
from jaxmoral.world.chain import memory_policy


def _tiny(source: str, dtype: str, sha256: Any, quantisation: Any, layout_for: Any) -> LoadedModel:
    """The tiny model, as a source would be read."""
    model = tiny_model.make()
    layout = layout_for(model)
    weights = cast(model.weights, dtype)
    return dataclasses.replace(model, weights=place(weights, shardings(weights, layout)))


def measure(tiny: bool = False, updates: int = 60) -> dict[str, Any]:
    """Trains the real model, or without its package the tiny one, on the quickstart's reward."""
    words, real = tokenizer(tiny)
    flags = ["--reward.name", "deontological", "--updates", str(updates)]
    read: Any = load
    if not real:
        flags += ["--prompt.labels", "[X,Y]", "--ppo.learning_rate", "3e-3"]
        read = _tiny
    config = resolve(configs.load(None, flags))
    agent = make_agent(config, read=read)
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
        "model": real[0] if real else "tiny",
        "updates": updates,
        "seconds": taken,
        "better_move": chosen,
        "legal": legal,
        "at_optimum": min(chosen, legal) >= ENOUGH,
    }
