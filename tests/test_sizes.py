"""Sizes from shapes against the real model, the paper's count, and XLA's own accounting."""

import re
import runpy
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_model
import torch
import transformers

from jaxmoral import config as configs
from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.language.prompts import Condition
from jaxmoral.learning import agent as agents
from jaxmoral.learning import ppo
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.collect import Setup
from jaxmoral.learning.environments import environment
from jaxmoral.learning.footprint import Footprint, footprint, free_bytes, round_bytes, shortage
from jaxmoral.learning.lookup import num_learners
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.state import UpdateInputs, adjustable, init_state, make_optimiser
from jaxmoral.learning.training import fit_agent
from jaxmoral.models import load as gemma_load
from jaxmoral.models.hf_export import huggingface_config
from jaxmoral.models.lora import Lora
from jaxmoral.models.model import tokens_at_once
from jaxmoral.models.sizes import (
    activation_bytes,
    adapter_bytes,
    num_adapter_parameters,
    num_parameters,
    weight_bytes,
)
from jaxmoral.world import games

# How far an estimate may be from what the compiler reserves; JAX 0.12's reserves differently.
LOW, HIGH = (0.8, 1.25) if jax.__version_info__[:2] == (0, 10) else (0.5, 1.5)
SCRIPTS = Path(__file__).parent.parent / "scripts"
MODELS = runpy.run_path(str(SCRIPTS / "size_table.py"))["MODELS"]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    runpy.run_path(str(SCRIPTS / "tiny_model.py"))["write"](folder)
    return folder


def test_the_real_models_parameters(real):
    count = sum(leaf.size for leaf in jax.tree.leaves(real.weights))
    assert num_parameters(real.config) == count == num_parameters(MODELS["Gemma 3 270M"])


def test_the_papers_adapter():
    """arXiv 2410.01639 trains 83,066,880 LoRA parameters on Gemma-2-2b-it."""
    config = MODELS["Gemma 2 2B"]
    lora = Lora(64, 32.0, 0.0, config.linear_names)
    assert num_adapter_parameters(config, lora) == 83_066_880
    assert round(num_parameters(config) / 1e6) == 2614


PUBLISHED = {
    "Qwen3 0.6B": 596_049_920,
    "Qwen3 1.7B": 1_720_574_976,
    "Qwen3 4B": 4_022_468_096,
    "Qwen3 8B": 8_190_735_360,
    "Qwen3 14B": 14_768_307_200,
    "Qwen3 32B": 32_762_123_264,
    "Llama 3.1 8B": 8_030_261_248,
    "Llama 3.1 70B": 70_553_706_496,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    assert num_parameters(MODELS[name]) == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("Gemma 4")])
def test_gemma_4_has_the_parameters_of_transformers_model(name):
    config = MODELS[name]
    described = transformers.Gemma4TextConfig(**huggingface_config(config, {}))
    with torch.device("meta"):
        twin = transformers.AutoModelForCausalLM.from_config(described)
    scalars = sum(x.numel() for at, x in twin.named_buffers() if at.endswith("layer_scalar"))
    assert num_parameters(config) == scalars + sum(x.numel() for x in twin.parameters())
    looked_up = 262144 * config.num_layers * config.per_layer_dim
    assert weight_bytes(config, 2) == 2 * (num_parameters(config) - looked_up)


def update_of(agent, config):
    return ppo.make_update(
        Setup(
            agent.policy,
            config.ppo,
            remembers=(config.env.memory, 2, False),
            num_updates=4,
            num_episodes=config.env.episodes,
            num_rounds=5,
        )
    )


def shapes_of(agent, config):
    """Of the first state, and of a PRNG key."""
    start = partial(
        init_state,
        policy=agent.policy,
        optimiser=make_optimiser(config.ppo, config.updates),
        kl_coef=np.float32(0.02),
        num_players=num_learners(config),
    )
    key = jax.eval_shape(jax.random.key, np.uint32(0))
    return jax.eval_shape(start, key), key


def test_activations_are_what_the_compiler_reserves(real):
    config = resolve(configs.load(None, ["--env.episodes", "64"]))
    agent = make_agent(config)
    inputs = agent.prompter.pack([[Condition(games.get_game("ipd"), agent.presentation)]])
    state, key = shapes_of(agent, config)
    reference = jax.ShapeDtypeStruct((1, 16, 3), np.float32)
    given = UpdateInputs(
        key, agent.frozen, inputs, reference, environment(config), adjustable(config.ppo)
    )
    lowered = jax.jit(update_of(agent, config), donate_argnums=0).lower(state, given)
    reserved = lowered.compile().memory_analysis().temp_size_in_bytes
    nodes, (*_, num_blocks, before) = inputs.tree.tokens.size, inputs.tree.paths.shape
    tree, rows = (nodes, before + nodes // num_blocks), inputs.nodes.size
    logits = rows * tokens_at_once(real.config, agent.layout, rows, 2**27)
    estimate = activation_bytes(real.config, agent.lora, tree, logits, 4, "elementwise")
    estimate += adapter_bytes(real.config, agent.lora, repeated=False)[1]
    assert LOW < estimate / reserved < HIGH


RANK = ["--lora.rank", "2048"]
FEW = ["--lora.targets", "[q, v, down]"]  # of many kinds of layers


# Biases and an output head of its own, larger than what is made of it; layers of several shapes.
BIASED = {"family": "qwen2", "qk_norm": False, "post_norms": False, "activation": "silu"}
BIASED |= {"scaled_embedding": False, "tied": False, "biases": ("q", "k", "v"), "vocab_size": 2**17}
SHAPES = {"biased": BIASED, "sharing": tiny_model.SHARING, "experts": tiny_model.EXPERTS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_folder):
    made = {"": tiny_folder}
    for kind, sizes in SHAPES.items():
        made[kind] = tmp_path_factory.mktemp(kind) / "model"
        tiny_model.write(made[kind], **sizes)
    return made


@pytest.mark.parametrize(
    "flags",
    [
        ["biased"],
        ["sharing", *FEW, *RANK],
        ["sharing", *FEW, "--lora.rank", "16", "--env.memory", "2", "--model.remat", "none"],
        ["sharing", *FEW, "--lora.rank", "16", "--env.memory", "2"],
        ["experts", *FEW, *RANK],
        ["experts", *FEW, "--lora.rank", "16", "--env.memory", "2"],
        RANK,
        [*RANK, "--model.max_nodes", "300"],
        [*RANK, "--ppo.epochs", "2"],
        [*RANK, "--model.remat", "block"],
        [*RANK, "--env.opponent", "learner"],
        ["--lora.rank", "16", "--env.memory", "2", "--model.remat", "none"],
        ["--env.episodes", "32", "--ppo.level", "token"],
    ],
    ids=" ".join,
)
def test_a_footprint_is_what_the_compiler_reserves(flags, folders):
    """A tiny model, its adapter much larger than itself or its activations; and a large head."""
    kind = flags[0] if flags[0] in SHAPES else ""
    flags = flags[bool(kind) :]
    given = ["--model.source", str(folders[kind]), "--prompt.labels", "[X, Y]"]
    config = resolve(configs.load(None, [*given, "--env.episodes", "64", *flags]))
    agent = make_agent(config)
    model, lora = agent.model.config, agent.lora
    inputs = agent.prompter.pack([[Condition(games.get_game("ipd"), agent.presentation)]])
    needed = footprint(config, model, lora, inputs, agent.layout)

    num_players = 2 if config.env.opponent == "learner" else 1
    both = jax.tree.map(lambda leaf: np.repeat(leaf, num_players, 0), inputs)
    state, key = shapes_of(agent, config)
    reference = jax.ShapeDtypeStruct((num_players, inputs.lengths.size, 3), np.float32)
    given = UpdateInputs(
        key, agent.frozen, both, reference, environment(config), adjustable(config.ppo)
    )
    lowered = jax.jit(update_of(agent, config), donate_argnums=0).lower(state, given)
    account = lowered.compile(on_cpu(OFTEN)).memory_analysis()
    reserved = account.argument_size_in_bytes + account.temp_size_in_bytes
    reserved += account.output_size_in_bytes - account.alias_size_in_bytes
    # What a checkpoint is written from is no part of the update.
    estimate = sum(needed) - num_players * adapter_bytes(model, lora, repeated=False)[0]
    assert LOW < estimate / reserved < HIGH


def test_too_little_memory_is_said_before_the_weights_are_read(tiny_folder, monkeypatch):
    said = []

    def assemble(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gemma_load, "assemble", assemble)
    monkeypatch.setattr(agents, "free_bytes", lambda: 2**27)
    flags = ["--model.source", str(tiny_folder), "--prompt.labels", "[X, Y]", *RANK]
    with pytest.raises(KeyboardInterrupt):
        fit_agent(configs.load(None, flags), say=said.append)
    (line,) = said
    assert re.match(r"warning    about 0\.\d GiB are needed, 0\.1 GiB are free;", line)
    assert line.endswith("GiB are for adapters: lower lora.rank (2,048)")


def test_what_to_lower_is_what_takes_most():
    config = configs.Config()
    advice = lambda *needed: shortage(Footprint(*needed), 5, config)
    assert advice(3, 1, 1, 0) is None
    assert "env.episodes (4,096)" in advice(1, 1, 1, 3)
    assert shortage(Footprint(3, 1, 2, 0), None, config) is None  # what is free is not known
    assert advice(4, 1, 2, 0).endswith(
        "for weights: set model.quantisation to nf4 or take a smaller model.source"
    )
    assert "lora.rank (8)" in advice(1, 4, 2, 0)
    assert "model.remat to block or lower model.max_nodes (4,096)" in advice(1, 2, 4, 0)
    thinks = configs.load(None, ["--thinking.tokens", "24"])
    assert "lower thinking.thoughts (8) or thinking.tokens (24)" in shortage(
        Footprint(1, 2, 4, 0), 5, thinks
    )
    free = free_bytes()
    assert free is None or 2**20 < free < 2**50


def test_rounds_count_too():
    """A table that takes nothing itself, against what its update reserves; and it is said."""
    flags = ["--model.source", "tabular", "--env.episodes", "100000"]
    config = resolve(configs.load(None, flags))
    agent = make_agent(config)
    state, key = shapes_of(agent, config)
    reference = jax.ShapeDtypeStruct((1, 16, 3), np.float32)
    shown, arena = agent.prompter.pack([[None]]), environment(config)
    given = UpdateInputs(key, agent.frozen, shown, reference, arena, adjustable(config.ppo))
    lowered = jax.jit(update_of(agent, config)).lower(state, given)
    reserved = lowered.compile(on_cpu(OFTEN)).memory_analysis().temp_size_in_bytes
    assert LOW < round_bytes(config) / reserved < HIGH
    assert round_bytes(config, members=3) == 3 * round_bytes(config)


def test_more_rounds_than_there_is_memory_for_are_said(monkeypatch):
    monkeypatch.setattr(agents, "free_bytes", lambda: 2**20)
    said = []
    make_agent(resolve(configs.load(None, ["--model.source", "tabular"])), 1, said.append)
    assert said == [
        "warning    about 0.0 GiB are needed, 0.0 GiB are free; 0.0 GiB are for rounds: lower"
        " env.episodes (4,096)"
    ]
