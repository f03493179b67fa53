"""Small runs with mixtures, and what is expected of them exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from playing import assert_means

from jaxmoral import config as configs
from jaxmoral.config import PPOConfig
from jaxmoral.learning.batches import exact_batch, make_batch
from jaxmoral.learning.behaviour import sampled_shares
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.resolve import resolve
from jaxmoral.world import chain
from jaxmoral.world.memory import make_memory
from jaxmoral.world.rollout import rollout

TABULAR = ["--model.source", "tabular", "--updates", "6", "--env.episodes", "96"]
TABULAR += ["--ppo.learning_rate", "0.3"]


def settings(*flags):
    return resolve(configs.load(None, [*TABULAR, *flags]))


def plain(record):
    return {name: value for name, value in record.items() if name not in ("seconds", "conditions")}


def assert_expected(arena):
    """Of two games: exactly what a million episodes are on average, within five standard errors."""
    memory, ppo = make_memory(), PPOConfig(gamma=0.9, gae_lambda=0.7)
    generator = np.random.default_rng(0)
    log_probs = jax.nn.log_softmax(jnp.asarray(generator.normal(size=(32, 3)), jnp.float32))
    table = PolicyTable(log_probs, jnp.asarray(generator.normal(size=32), jnp.float32))
    exact, shares, reward = exact_batch(table, arena, memory=memory, num_rounds=5, config=ppo)
    weighted = exact.weight * exact.advantage

    @jax.jit
    def sample(key):
        sizes = {"memory": memory, "num_episodes": 50_000, "num_rounds": 5}
        played = rollout(key, log_probs[None], arena, **sizes)
        played = jax.tree.map(lambda field: field[0], played)
        batch = make_batch(table, played, played.reward, ppo)
        cell = batch.prompt * 3 + batch.outcome
        found = jnp.zeros(96).at[cell].add(batch.weight * batch.advantage)
        return found, sampled_shares(played, memory), played.reward.mean()

    assert_means(sample, (weighted, shares.sum(-1), reward))


def assert_gradient(single):
    """In float64: of the expected reward over two games and the opponents, without discount."""
    settings_ = PPOConfig(gamma=1.0, gae_lambda=1.0)
    with jax.enable_x64(True):
        kind = lambda x: jnp.int32 if np.asarray(x).dtype.kind == "i" else jnp.float64
        arena = jax.tree.map(lambda x: jnp.asarray(x, kind(x)), single)
        logits = jnp.asarray(np.random.default_rng(1).normal(size=(32, 3)))

        def expected(logits):
            total = 0.0
            for game in range(2):
                table = jax.nn.log_softmax(logits[16 * game : 16 * game + 16])
                for index, chance in enumerate(arena.chances):
                    machine = jax.tree.map(lambda x: x[game, index], arena.opponent)  # noqa: B023
                    walk = chain.against(make_memory(), machine)
                    policy = chain.by_state(make_memory(), chain.memory_policy(table))
                    shares = chain.visits(walk, policy, num_rounds=4)
                    total += chance * jnp.sum(shares * arena.rewards[game]) / 2
            return total

        table = PolicyTable(jax.nn.log_softmax(logits), jnp.zeros(32))
        batch, _, _ = exact_batch(
            table, arena, memory=make_memory(), num_rounds=4, config=settings_
        )
        surrogate = lambda logits: jnp.sum(
            batch.weight * batch.advantage * jax.nn.log_softmax(logits).ravel()
        )
        gradient = np.asarray(jax.grad(surrogate)(logits))
        for at in [(0, 0), (5, 1), (10, 2), (17, 0), (25, 1), (31, 2)]:
            step = jnp.zeros((32, 3)).at[at].set(1e-5)
            slope = (expected(logits + step) - expected(logits - step)) / 2e-5
            assert gradient[at] == pytest.approx(float(slope), abs=1e-8)
