"""What updates of random weights of a model's shapes take: seconds, memory, compiling."""

import dataclasses
import time
from typing import Any
from unittest import mock

import jax
import numpy as np
import size_table
import tiny_model
from roofline import Work, matmul_rate
from workers import count_compilation

from accelerator.cases import CASES, Case
from accelerator.stand_in import opener, tokenizer
from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.config.states import Resolved
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.footprint import footprint
from jaxmoral.learning.language_policy import LanguagePolicy, PackedPrompts
from jaxmoral.learning.mixture import every_condition, player_conditions
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.models.config import DecoderConfig

MOST_MEMBERS = 1024  # that a population is predicted for


def shapes(case: Case, tiny: bool) -> DecoderConfig:
    """The model of a case, or a tiny one in its place."""
    if tiny:
        return tiny_model.sizes_with(tiny_model.vocabulary())
    config = size_table.MODELS[case.model]
    if config.family == "gemma2":
        return dataclasses.replace(config, attention_softcap=50.0, final_softcap=30.0)
    return config


def settings(case: Case, tiny: bool) -> Resolved:
    """The configuration of a case: LoRA rank 64 on all linear layers, as the paper's."""
    flags = ["--lora.rank", "64", "--lora.alpha", "32", "--updates", "1000", *case.flags]
    if not tokenizer(tiny)[1]:
        flags += ["--prompt.labels", "[X,Y]"]
        if "--mixture.labels" in flags:  # words have too many tokens there
            flags += ["--mixture.labels", "[[X,Y],[Y,X],[A,B],[B,A]]"]
    if tiny:
        flags += ["--lora.rank", "4", "--env.episodes", "64"]
    return resolve(configs.load(None, flags))


def agent_of(case: Case, tiny: bool, *, empty: bool = False) -> tuple[Resolved, Agent]:
    """A case's configuration and its agent, with random weights or shapes in their place."""
    config = settings(case, tiny)
    open_model = opener(shapes(case, tiny), tokenizer(tiny)[0], empty=empty)
    return config, make_agent(config, case.members, open_model=open_model)


def prompts(config: Config, agent: Agent) -> PackedPrompts:
    """What the first update shows its player, `[1, num_chunks, ...]`."""
    assert isinstance(agent.prompter, Prompter)
    room = agent.prompter.room(every_condition(config, agent.presentation))
    return agent.prompter.pack(player_conditions(config, agent.presentation, 0)[:1], room)


def predicted(case: Case, config: Config, agent: Agent, free: int) -> dict[str, Any]:
    """Useful FLOPs and bytes of an update, and how many members so many bytes are enough for."""
    inputs = prompts(config, agent)
    assert isinstance(agent.policy, LanguagePolicy)
    assert agent.lora is not None
    flops = Work(agent.policy, jax.tree.map(lambda leaf: leaf[0], inputs)).flops
    given = config, agent.policy.config, agent.lora, inputs, agent.layout
    needed = lambda members: sum(footprint(*given, members))
    fits, too_many = 0, MOST_MEMBERS + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if needed(middle) <= free else (fits, middle)
    return {
        "nodes": int(np.prod(inputs.tree.tokens.shape)),
        "flops": case.members * flops,
        "bytes": needed(case.members),
        "largest_population": fits,
    }


def on_paper(name: str, free: int, tiny: bool = False) -> dict[str, Any]:
    """What is predicted of a case for an accelerator with so many free bytes, from shapes alone."""
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        config, agent = agent_of(CASES[name], tiny, empty=True)
        return predicted(CASES[name], config, agent, free)


def measure(name: str, tiny: bool = False, repeats: int = 10) -> dict[str, Any]:
    """An update's seconds, compiling and memory on the devices there are, beside what is predicted.

    The peak of memory is the process's, so a case is measured in one of its own.
    """
    case, device = CASES[name], jax.local_devices()[0]
    stats = device.memory_stats() or {}
    config, agent = agent_of(case, tiny)
    jax.block_until_ready(agent.frozen)
    members = [(dataclasses.replace(config, seed=seed), agent) for seed in range(case.members)]
    spent = count_compilation()
    state, step = compile_update(members)
    compiling, times = spent(), []
    for update in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = step(state, update)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    del state, step
    told = predicted(case, config, agent, stats.get("bytes_limit", 0) * len(jax.devices()))
    if not stats:
        del told["largest_population"]
    seconds = float(np.median(times[1:]))
    rate = peak_rate(config.model.dtype, tiny) * len(jax.devices())
    return {
        "dtype": config.model.dtype,
        "seconds": seconds,
        "fastest": min(times[1:]),
        "compile_seconds": compiling,
        "peak_rate": rate,
        "share_of_peak": told["flops"] / seconds / rate,
        "peak_bytes": peak,
        "predicted": told,
    }


def peak_rate(dtype: str, tiny: bool = False) -> float:
    """The device's matrix-product rate, FLOP/s; on a CPU of products that take no time."""
    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    return matmul_rate(dtype, (512,) if tiny else sizes)
