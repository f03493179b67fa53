"""Sizes from shapes against the real model, the paper's count, and XLA's own accounting."""

import runpy
from pathlib import Path

import jax
import numpy as np

from jaxmoral import config as configs
from jaxmoral import games, ppo
from jaxmoral.agent import Condition, make_agent
from jaxmoral.experiment import environment, initial_state, resolve
from jaxmoral.gemma.lora import Lora
from jaxmoral.gemma.model import tokens_at_once
from jaxmoral.gemma.sizes import activation_bytes, num_adapter_parameters, num_parameters
from jaxmoral.memory import make_memory

MODELS = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "size_table.py"))["MODELS"]


def test_the_real_models_parameters(real):
    count = sum(leaf.size for leaf in jax.tree.leaves(real.weights))
    assert num_parameters(real.config) == count == num_parameters(MODELS["Gemma 3 270M"])


def test_the_papers_adapter():
    """arXiv 2410.01639 trains 83,066,880 LoRA parameters on Gemma-2-2b-it."""
    config = MODELS["Gemma 2 2B"]
    lora = Lora(64, 32.0, 0.0, tuple(config.linear_shapes))
    assert num_adapter_parameters(config, lora) == 83_066_880
    assert round(num_parameters(config) / 1e6) == 2614


def test_activations_are_what_the_compiler_reserves(real):
    config = resolve(configs.load(None, ["--env.episodes", "64"]))
    agent = make_agent(config)
    inputs = agent.inputs([[Condition(games.get_game("ipd"), agent.presentation)]])
    init = initial_state(config, agent)
    state, key = jax.eval_shape(init, np.uint32(0), np.float32(config.ppo.kl_coef))
    reference = jax.ShapeDtypeStruct((1, 16, 3), np.float32)
    update = ppo.make_update(agent.policy, config.ppo, make_memory(), 4, 64, 5)
    settings = ppo.adjustable(config.ppo)
    lowered = jax.jit(update, donate_argnums=0).lower(
        state, key, agent.frozen, inputs, environment(config), reference, settings
    )
    reserved = lowered.compile().memory_analysis().temp_size_in_bytes
    nodes, rows = inputs.tree.tokens.size, inputs.nodes.size
    logits = rows * tokens_at_once(real.config, agent.layout, rows, 2**27)
    estimate = activation_bytes(real.config, nodes, logits, 4, "elementwise")
    assert 0.6 < estimate / reserved < 1.6
