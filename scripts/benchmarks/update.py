"""Measures speed and memory at the quickstart's setting on this machine.

    python scripts/benchmarks/update.py [--any.key value ...]

Ratios are between measurements of one process, taken side by side; absolute times depend on the
machine and on what else runs there.
"""

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from roofline import Work, matmul_rate, timed
from workers import write

from jaxmoral import config as configs
from jaxmoral.config.states import Resolved
from jaxmoral.language.prompt_tree import pack, stack
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.language_policy import LanguagePolicy, PackedPrompts
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.models.load import load
from jaxmoral.world import games, opponents, rewards
from jaxmoral.world.memory import make_memory
from jaxmoral.world.rollout import Environment, rollout


def seconds(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> float:
    """Best wall time of a call after a warm-up."""
    return min(timed(partial(function, *arguments), repeats))


def show(name: str, value: str, target: str) -> None:
    print(f"{name:44}{value:>34}   {target}", flush=True)


def measure_update(config: Resolved, agent: Agent, inputs: PackedPrompts, cache: str) -> None:
    jax.config.update("jax_compilation_cache_dir", cache)
    compile_times = []
    for _ in range(2):
        jax.clear_caches()
        start = time.perf_counter()
        state, step = compile_update([(config, agent)])
        compile_times.append(time.perf_counter() - start)
    show("set-up and compile, cold", f"{compile_times[0]:.1f} s", "<= 25 s")
    show("the same from the persistent cache", f"{compile_times[1]:.1f} s", "faster")

    times = []
    for update in range(10):
        start = time.perf_counter()
        state, metrics = step(state, update)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    peak = matmul_rate()
    assert isinstance(agent.policy, LanguagePolicy)
    flops = Work(agent.policy, inputs).flops
    show("update, best and median of 10", f"{min(times):.2f} s, {np.median(times):.2f} s", "")
    show("useful work of an update", f"{flops / 1e9:.0f} GFLOP", "")
    show("float32 matmul rate", f"{peak / 1e9:.0f} GFLOP/s", "")
    share = [flops / t / peak for t in (min(times), float(np.median(times)))]
    show("useful rate / matmul rate, best and median", f"{share[0]:.0%}, {share[1]:.0%}", ">= 50 %")


def measure_learners(config: Resolved, agent: Agent) -> None:
    """An update of two learners beside one of a single one, taken in turns."""
    other = dataclasses.replace(config.env, opponent="learner")
    kinds = [config, dataclasses.replace(config, env=other)]
    runs = [compile_update([(kind, agent)]) for kind in kinds]
    states, steps = [state for state, _ in runs], [step for _, step in runs]
    times: list[list[float]] = [[], []]
    for update in range(7):
        for kind in (0, 1):
            start = time.perf_counter()
            states[kind], metrics = steps[kind](states[kind], update)
            jax.block_until_ready(metrics)
            times[kind].append(time.perf_counter() - start)
    one, two = (float(np.median(taken[1:])) for taken in times)
    show(
        "update of one learner and of two", f"{one:.2f} s, {two:.2f} s: {two / one:.2f}x", "<= 2.1x"
    )


def measure_tree(
    config: configs.Config, agent: Agent, tree_inputs: PackedPrompts
) -> dict[str, list[float]]:
    """The gradient of the same table from one tree, and from one flat batch of the prompts."""
    policy = agent.policy
    assert isinstance(policy, LanguagePolicy)
    model = load(config.model.source, config.model.dtype)
    prompter = Prompter(model, config.prompt.template)
    condition = Condition(games.get_game(config.env.game), agent.presentation)
    branches = prompter.sequences(condition)
    width = tree_inputs.nodes.shape[-1]
    rows = [pack(branches[start : start + width]) for start in range(0, len(branches), width)]
    flat = PackedPrompts(
        tree=stack([tree for tree, _ in rows]),
        nodes=np.stack([last[None] for _, last in rows]),
        trie=jax.tree.map(lambda leaf: np.stack([leaf[0]] * len(rows)), tree_inputs.trie),
        tokens=tree_inputs.tokens.reshape(len(rows), 1, -1),
        lengths=tree_inputs.lengths.reshape(-1, 1),
    )
    trainable = jax.jit(policy.init)(jax.random.key(0))

    def from_tree(trainable, frozen, inputs):
        return policy.bind(frozen, inputs).table(trainable).log_probs

    def from_flat(trainable, frozen, inputs):
        one = lambda row: policy.bind(frozen, row).table(trainable).log_probs[0]
        return jax.vmap(one)(jax.tree.map(lambda leaf: leaf[:, None], inputs))

    times = []
    for function, inputs in ((from_tree, tree_inputs), (from_flat, flat)):
        inputs = jax.tree.map(jnp.asarray, inputs)
        gradient = jax.jit(jax.grad(lambda *a, f=function: jnp.sum(f(*a))))
        times.append(seconds(gradient, trainable, agent.frozen, inputs, repeats=3))
    tokens = tree_inputs.tree.tokens.size, sum(len(tree.tokens) for tree, _ in rows)
    show(
        "tokens, tree and flat", f"{tokens[0]}, {tokens[1]}: {tokens[1] / tokens[0]:.1f}x", ">= 3x"
    )
    ratio = f"{times[0]:.2f} s, {times[1]:.2f} s: {times[1] / times[0]:.1f}x"
    show("gradient, tree and flat", ratio, ">= 2.5x")
    return {"tokens": list(tokens), "seconds": times}


def rollout_rate(episodes: int) -> float:
    """Rounds a second of so many episodes of five, against tit-for-tat."""
    table = rewards.reward_table(games.get_game("ipd"), rewards.get_reward("game"), 3.0, -6.0)
    arena = jax.device_put(Environment(opponents.get_opponent("tit-for-tat"), table[None]))
    memory = make_memory()
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (1, 16, 3)))
    play = jax.jit(partial(rollout, memory=memory, num_episodes=episodes, num_rounds=5))
    return episodes * 5 / seconds(play, jax.random.key(0), log_probs, arena, repeats=10)


def measure_rollout() -> None:
    for episodes in (100_000, 1_000_000):
        rate = rollout_rate(episodes) / 1e6
        show(f"rollout of {episodes:,} x 5 rounds", f"{rate:.0f} million rounds/s", ">= 40 million")


def measure_memory(flags: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "jaxmoral.train",
            "--output-dir",
            str(Path(scratch) / "run"),
        ]
        subprocess.run([*command, *flags, "--updates", "3"], check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    show("peak memory of training", f"{peak / 2**30:.1f} GiB", "<= 5 GiB")


def main() -> None:
    flags = sys.argv[1:]
    measure_memory(flags)
    config = resolve(configs.load(None, flags))
    start = time.perf_counter()
    agent = make_agent(config)
    jax.block_until_ready(agent.frozen)
    show("model and tokenizer, from the cache", f"{time.perf_counter() - start:.1f} s", "<= 10 s")
    packed = agent.prompter.pack([[Condition(games.get_game(config.env.game), agent.presentation)]])
    inputs = jax.tree.map(lambda field: field[0], packed)
    with tempfile.TemporaryDirectory() as cache:
        measure_update(dataclasses.replace(config, updates=40), agent, inputs, cache)
        measure_learners(dataclasses.replace(config, updates=40), agent)
        found = measure_tree(config, agent, inputs)
        if not flags:  # else it is not what the page tells of
            write("tree", found | {"versions": {"jax": jax.__version__}})
        measure_rollout()


if __name__ == "__main__":
    main()
