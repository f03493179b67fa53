"""What thinking costs on the real model: one tree against texts one by one, sampling, an update.

    python scripts/benchmarks/thinking.py [--any.key value ...]

By default 8 thoughts of 32 tokens for each of the 16 prompts of the quickstart. Ratios are between
measurements of one process, taken side by side.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from update import seconds, show

from jaxmoral import config as configs
from jaxmoral.language.prompts import Condition
from jaxmoral.language.thought_tree import Thoughts
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.language_policy import PromptInputs
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.thinking_policy import ThinkingPolicy
from jaxmoral.models.generate import Sampling, generate

FLAGS = ["--thinking.tokens", "32", "--thinking.thoughts", "8", "--model.max_nodes", "8192"]


def packed(agent: Agent, config: configs.Config, **changed: Any) -> PromptInputs:
    """The prompts in one tree, or with other settings of the prompter in several."""
    prompter = agent.prompter
    assert isinstance(prompter, Prompter)
    assert agent.model is not None
    settings = {"max_nodes": prompter.max_nodes, "thinking": prompter.thinking} | changed
    condition = Condition(training_game(config), agent.presentation)
    inputs = Prompter(agent.model, prompter.template, **settings).inputs([[condition]])
    return jax.tree.map(lambda leaf: leaf[0], inputs)


def gradient_of(policy: ThinkingPolicy, rows: bool) -> Callable:
    """A gradient through answers and tokens of given thoughts, of one tree or of rows at once."""

    def loss(trainable, frozen, inputs, thoughts):
        def read(own):
            reading = policy.bind(frozen, own[0]).read(trainable, own[1])
            return jnp.sum(reading.answers) + jnp.sum(reading.tokens)

        if not rows:
            return read((inputs, thoughts))
        by_row = jax.tree.map(lambda leaf: leaf[:, None], (inputs, thoughts))
        return jnp.sum(jax.vmap(read)(by_row))

    return jax.jit(jax.grad(loss))


def measure_tree(config: configs.Config, agent: Agent, inputs: PromptInputs) -> None:
    """The same gradient from one tree, and from every thought behind a copy of its prompt."""
    policy = agent.policy
    assert isinstance(policy, ThinkingPolicy)
    how = policy.thinking
    alone = how._replace(thoughts=1)
    assert inputs.branches is not None
    longest = int(inputs.lengths.max()) + inputs.branches.slots.shape[-1]
    single = packed(agent, config, thinking=alone, max_nodes=longest)
    assert len(single.lengths) == inputs.lengths.size, "a tree holds one prompt"
    flat = jax.tree.map(lambda leaf: np.repeat(leaf, how.thoughts, axis=0), single)
    tokens = np.random.default_rng(0).integers(5, 10_000, (inputs.lengths.size, how.thoughts))
    tokens = np.repeat(tokens[..., None], how.room, axis=-1).astype(np.int32)
    thoughts = Thoughts(tokens, np.full(tokens.shape[:2], how.room, np.int32))
    by_row = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), thoughts)
    trainable = jax.jit(policy.init)(jax.random.key(0))
    given = (trainable, agent.frozen, inputs, thoughts)
    ours = seconds(gradient_of(policy, False), *given, repeats=2)
    one = dataclasses.replace(policy, thinking=alone)
    theirs = seconds(gradient_of(one, True), trainable, agent.frozen, flat, by_row, repeats=2)
    nodes, texts = inputs.tree.tokens.size, flat.tree.tokens.size
    show("nodes, tree and flat", f"{nodes:,}, {texts:,}: {nodes / texts:.2f}x", "<= 0.25x")
    show(
        "gradient, tree and flat", f"{ours:.1f} s, {theirs:.1f} s: {ours / theirs:.2f}x", "<= 0.25x"
    )


def measure_sampling(agent: Agent, inputs: PromptInputs) -> None:
    """Tokens a second, beside `generate` on a copy of the prompt for each thought."""
    policy, model = agent.policy, agent.model
    assert isinstance(policy, ThinkingPolicy)
    assert model is not None
    how = policy.thinking._replace(stops=())  # all thoughts take all their tokens
    policy = dataclasses.replace(policy, thinking=how)
    think = jax.jit(lambda *a: policy.bind(a[0], a[1]).think(a[2], a[3]).tokens)
    trainable = jax.jit(policy.init)(jax.random.key(0))
    key = jax.random.key(1)
    ours = seconds(think, agent.frozen, inputs, trainable, key, repeats=2)
    prompts = [
        ids[:length].tolist()
        for ids, length in zip(
            np.concatenate(inputs.tokens), np.concatenate(inputs.lengths), strict=True
        )
        for _ in range(how.thoughts)
    ]

    def copies() -> np.ndarray:
        adapter = trainable["adapter"]
        said = generate(model, prompts, how.tokens, key, Sampling(), adapter, agent.lora)
        return np.array([len(one) for one in said])

    theirs = seconds(copies, repeats=2)
    made = len(prompts) * how.tokens
    rates = f"{made / ours:.0f}, {made / theirs:.0f} tokens/s: {theirs / ours:.1f}x"
    show("sampling, tree and generate", rates, ">= 3x")


def measure_update(config: configs.Config, agent: Agent) -> None:
    state, step = compile_update([(config, agent)])
    times = []
    for update in range(4):
        start = time.perf_counter()
        state, metrics = step(state, update)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    show("update, best and median of 4", f"{min(times):.1f} s, {np.median(times):.1f} s", "")


def main() -> None:
    config = resolve(configs.load(None, [*FLAGS, *sys.argv[1:]]))
    agent = make_agent(config)
    inputs = packed(agent, config)
    measure_tree(config, agent, inputs)
    measure_sampling(agent, inputs)
    measure_update(config, agent)


if __name__ == "__main__":
    main()
