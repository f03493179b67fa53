"""Rollouts of one agent, and means over episodes beside what is computed."""

from functools import partial

import jax
import numpy as np

from jaxmoral.world.rollout import rollout


def only_player(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def play(key, log_probs, arena, draws=None, **settings):
    """A rollout in one program, which compiles faster than its steps one by one."""
    return jax.jit(partial(rollout, **settings))(key, log_probs, arena, draws=draws)


def play_alone(key, log_probs, arena, memory, num_episodes, num_rounds, draws=None):
    """A rollout of one agent, without the axis of players."""
    sizes = {"num_episodes": num_episodes, "num_rounds": num_rounds}
    return only_player(play(key, log_probs[None], arena, draws, memory=memory, **sizes))


def assert_means(sample, expected):
    """Twenty samples' means are what is expected, within five standard errors, in every number."""
    samples = [sample(jax.random.key(seed)) for seed in range(20)]
    for found, number in zip(zip(*samples, strict=True), expected, strict=True):
        each = np.array(found)
        error = each.std(0, ddof=1) / np.sqrt(len(each))
        assert (np.abs(each.mean(0) - number) <= 5 * error + 1e-6).all()
