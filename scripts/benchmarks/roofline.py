"""Where an update's time goes, stage by stage, against the machine's own limit.

    python scripts/benchmarks/roofline.py [--profile FOLDER] [--name NAME] [--any.key value ...]

Each stage is timed alone, on the arrays of the real update; the limit of a stage is the larger of
its useful FLOPs at the measured matrix-product rate and its bytes at the measured bandwidth.
`--profile` writes a trace that https://ui.perfetto.dev opens. Results go to
docs/benchmarks/NAME.json, `roofline` if no other is given.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from workers import spread, versions, write

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.config.states import Resolved
from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.language.prompt_tree import sight
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.batches import make_batch
from jaxmoral.learning.behaviour import sampled_metrics
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.environments import environment
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.language_policy import LanguagePolicy, PackedPrompts
from jaxmoral.learning.losses import ppo_loss
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.state import make_optimiser
from jaxmoral.world.games import get_game
from jaxmoral.world.rollout import rollout

REPEATS = 7


def matmul_rate(dtype: str = "float32", sizes: Sequence[int] = (1024, 2048)) -> float:
    """The best matrix-product rate of a few large shapes, FLOP/s."""
    rates = []
    for size in sizes:
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        rates.append(2 * size**3 / min(timed(partial(jax.jit(jnp.matmul), matrix, matrix))))
    return max(rates)


def bandwidth() -> float:
    """Bytes a second read and written by adding to a large array in its place."""
    held = [jnp.ones(2**26)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def once():
        held[0] = add(held[0])
        return held[0]

    return 2 * held[0].nbytes / min(timed(once))


def timed(function: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Wall times after a warm-up."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return times


class Work:
    """Useful FLOPs and least bytes of the stages that multiply matrices.

    The base is frozen, so a linear layer costs a product forward and one backward; an adapter
    matrix one forward and two backward; attention one forward and two backward, on visible pairs
    only. Weights are read once each way, the embedding once for both; what products make is written
    once and read twice.
    """

    def __init__(self, policy: LanguagePolicy, inputs: PackedPrompts):
        config, rank = policy.config, policy.lora.rank
        nodes = int(np.sum(inputs.nodes.max((1, 2)) + 1))  # what comes after pads the trees
        shapes = config.every_linear
        matrices = sum(i * o for i, o in shapes)
        adapters = sum((i + o) * rank for i, o in shapes)
        trees = [
            jax.tree.map(lambda x, at=at: x[at], inputs.tree) for at in range(len(inputs.nodes))
        ]
        masks = [sight(tree, config.sliding_window).masks for tree in trees]
        pairs = np.sum([mask.sum((1, 2, 3)) for mask in masks], axis=0)  # nearby, all
        widths = [
            (config.global_layers[layer], config.num_heads * stack.head_dim)
            for stack in config.stacks.values()
            for layer in stack.layers
        ]
        attention = sum(4 * int(pairs[int(glob)]) * width for glob, width in widths)
        made = 4 * nodes * (sum(o for _, o in shapes) + sum(width for _, width in widths))
        rows = inputs.nodes.size
        head = 2 * rows * config.embed_dim * config.vocab_size
        table = 4 * config.vocab_size * config.embed_dim
        self.of_a_token, self.of_adapters = 2 * (matrices + adapters), 2 * nodes * adapters
        self.forward = nodes * self.of_a_token + attention, 4 * matrices + made
        self.head = head, table
        backward = 2 * nodes * (matrices + 2 * adapters) + 2 * attention + head
        self.backward = backward, 4 * matrices + 2 * made
        self.flops = self.forward[0] + self.head[0] + backward


def stages(
    config: Config, agent: Agent, inputs: PackedPrompts, work: Work
) -> dict[str, tuple[list[float], Any]]:
    """Wall times and work of the parts of an update, each compiled alone."""
    policy = agent.policy
    assert isinstance(policy, LanguagePolicy)
    memory = agent.presentation.remembers(get_game(config.env.game))
    trainable = jax.jit(policy.init)(jax.random.key(0))
    inputs = jax.tree.map(jnp.asarray, inputs)
    frozen = agent.frozen

    def hidden(frozen, tree, trainable):
        tree = jax.tree.map(lambda leaf: leaf[0], tree)
        return policy.bind(frozen, inputs).hidden(tree, trainable, None)

    def head(frozen, hidden, inputs):
        trie = jax.tree.map(lambda leaf: leaf[0], inputs.trie)
        return policy.bind(frozen, inputs).decide(hidden[inputs.nodes[0]], trie)

    def apply(trainable, frozen, inputs):
        return policy.bind(frozen, inputs).table(trainable)

    def scalar(trainable, frozen, inputs):
        table = apply(trainable, frozen, inputs)
        return jnp.sum(table.log_probs) + jnp.sum(table.values)

    found: dict[str, tuple[list[float], Any]] = {}
    jit = partial(jax.jit, compiler_options=on_cpu(OFTEN))  # as the update is compiled
    run = jit(hidden)
    states = run(frozen, inputs.tree, trainable)
    found["tree, forward"] = timed(lambda: run(frozen, inputs.tree, trainable)), work.forward
    make = jit(head)
    found["head, forward"] = timed(lambda: make(frozen, states, inputs)), work.head
    gradient = jit(jax.value_and_grad(scalar))
    grads = gradient(trainable, frozen, inputs)[1]
    both = timed(lambda: gradient(trainable, frozen, inputs))
    ahead = float(np.median(found["tree, forward"][0]) + np.median(found["head, forward"][0]))
    found["tree and head, backward"] = [taken - ahead for taken in both], work.backward

    table = jax.jit(apply)(trainable, frozen, inputs)
    arena = jax.device_put(environment(config))

    def play(key, table, arena):
        players = rollout(
            key,
            table.log_probs[None],
            arena,
            memory=memory,
            num_episodes=config.env.episodes,
            num_rounds=config.env.rounds,
        )
        episodes = jax.tree.map(lambda field: field[0], players)
        batch = make_batch(table, episodes, episodes.reward, config.ppo)
        return batch, sampled_metrics(table, episodes, table.log_probs, memory)

    sample = jit(play)
    batch, _ = sample(jax.random.key(0), table, arena)
    found["rollout, advantages, metrics"] = (
        timed(lambda: sample(jax.random.key(0), table, arena)),
        None,
    )

    zero = jnp.zeros(())

    def objective(table, batch):
        weights = {"reference": table.log_probs, "kl_coef": zero, "entropy_coef": zero}
        return ppo_loss(table, batch, **weights, config=config.ppo)[0]

    loss = jit(jax.value_and_grad(objective))
    found["loss of the table"] = timed(lambda: loss(table, batch)), None

    optimiser = make_optimiser(config.ppo, config.updates)
    moments = optimiser.init(trainable)

    def improve(grads, moments, trainable):
        updates, moments = optimiser.update(grads, moments, trainable)
        return optax.apply_updates(trainable, updates), moments

    step = jit(improve)
    size = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    found["optimiser"] = timed(lambda: step(grads, moments, trainable)), (12 * size, 28 * size)
    return found


def whole_updates(
    config: Resolved, agent: Agent, profile: str | None
) -> tuple[list[float], float, float]:
    """Wall times of updates; seconds to compile, and to write a checkpoint."""
    start = time.perf_counter()
    state, step = compile_update([(config, agent)])
    compiling = time.perf_counter() - start
    times = []
    for update in range(REPEATS + 2):
        traced = profile if update == REPEATS + 1 else None
        if traced is not None:
            jax.profiler.start_trace(traced, create_perfetto_trace=True)
        start = time.perf_counter()
        state, metrics = step(state, update)
        jax.block_until_ready(metrics)
        if traced is not None:
            jax.profiler.stop_trace()
        elif update:
            times.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        with Checkpoints(Path(scratch), writable=True) as checkpoints:
            checkpoints.save(1, state, members={configs.ALONE: config}, rewards=[0.0])
        saving = time.perf_counter() - start
    return times, compiling, saving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--profile")
    parser.add_argument("--name", default="roofline")
    given, flags = parser.parse_known_args()
    config = resolve(configs.load(None, flags))
    start = time.perf_counter()
    agent = make_agent(config)
    jax.block_until_ready(agent.frozen)
    loading = time.perf_counter() - start
    packed = agent.prompter.pack([[Condition(get_game(config.env.game), agent.presentation)]])
    inputs = jax.tree.map(lambda field: field[0], packed)
    rate, speed = matmul_rate(), bandwidth()
    updates, compiling, saving = whole_updates(config, agent, given.profile)
    assert isinstance(agent.policy, LanguagePolicy)
    work = Work(agent.policy, inputs)
    found = stages(config, agent, inputs, work)
    rate = max(rate, matmul_rate())  # the machine may have been busy the first time

    update = float(np.median(updates))
    rows = {}
    for name, (times, least) in found.items():
        taken = float(np.median(times))
        rows[name] = {"seconds": taken, "share_of_update": taken / update}
        if least is not None:
            flops, size = least
            limit = max(flops / rate, size / speed)
            rows[name] |= {
                "gflop": flops / 1e9,
                "gbytes": size / 1e9,
                "share_of_roofline": limit / taken,
            }
    first = rows["tree, forward"]["seconds"] + rows["head, forward"]["seconds"]
    write(
        given.name,
        {
            "model": config.model.source,
            "versions": versions("jax", "jaxlib"),
            "matmul_gflops": rate / 1e9,
            "bandwidth_gbytes": speed / 1e9,
            "load_seconds": loading,
            "compile_seconds": compiling,
            "checkpoint_seconds": saving,
            "update_seconds": spread(updates),
            "stages": rows,
            "accounted": sum(row["seconds"] for row in rows.values()) / update,
            "useful_rate": {
                "update": work.flops / update / rate,
                "forward": (work.forward[0] + work.head[0]) / first / rate,
            },
        },
    )


if __name__ == "__main__":
    main()
