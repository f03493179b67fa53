"""What an update replaces, every player's parameters and optimiser, and what it reads.

Parameters, tables and trajectories carry a leading axis of players: one who meets a machine, or two
who meet each other, each with everything of its own but the base.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmoral.config import PPOConfig
from jaxmoral.learning.policy import Policy
from jaxmoral.world.rollout import Draws, Environment

PyTree = Any


class Moments(NamedTuple):
    """Running number, mean and sum of squared deviations of all rewards so far."""

    seen: jax.Array
    mean: jax.Array
    deviations: jax.Array


class Players(NamedTuple):
    """All that belongs to the players, with a leading `[num_players]` axis.

    Attributes:
      trainable: the policy's parameters, the value head included.
      opt_state: optax's.
      kl_coef: weight of the KL to the reference policy.
      moments: of the rewards, for their normalisation.
    """

    trainable: PyTree
    opt_state: PyTree
    kl_coef: jax.Array
    moments: Moments


class TrainState(NamedTuple):
    """Everything an update replaces; with the seed it determines the rest of the run.

    Attributes:
      update: `[]` int32, how many updates were made; it also numbers the PRNG keys.
      players: of a population with an axis of members before that of players.
    """

    update: jax.Array
    players: Players


class UpdateInputs(NamedTuple):
    """What an update reads; of a population most of it has a leading axis of members.

    Attributes:
      key: PRNG key of the run, into which the update's number is folded.
      frozen: the policy's arrays that are never trained.
      prompts: packed, `[num_players, num_chunks, ...]`.
      reference: `[num_players, num_prompts, 3]` log-probabilities of the untrained policy; None if
        agents think, as it is then of the thoughts that the update samples.
      environment: whom the players meet, and their rewards.
      settings: of `adjustable`.
      draws: the paper's random numbers, or None for JAX's own.
      anchor: an `anchor.Anchor`, or None.
      teacher: like `reference`, of whom the agents are to become like; None if they have a reward.
    """

    key: jax.Array
    frozen: PyTree
    prompts: PyTree
    reference: PyTree
    environment: Environment
    settings: dict[str, Any]
    draws: Draws | None = None
    anchor: Any = None
    teacher: PyTree = None


# Settings that are arrays of an update, so that they may differ between agents trained together.
ADJUSTABLE = (
    "learning_rate",
    "max_grad_norm",
    "clip",
    "value_clip",
    "value_coef",
    "entropy_coef",
    "final_entropy_coef",
    "barrier_coef",
    "gamma",
    "gae_lambda",
    "kl_target",
    "kl_gain",
)
# Those that may differ likewise, but are only numbers of the first state.
INITIAL = ("kl_coef",)


def adjustable(config: PPOConfig) -> dict[str, Any]:
    """The settings that an update takes as arrays, by name."""
    return {name: np.float32(getattr(config, name)) for name in ADJUSTABLE}


def fixed(config: PPOConfig) -> PPOConfig:
    """The settings with defaults in the place of those that may differ.

    Updates that agree in them are one program.
    """
    names, defaults = (*ADJUSTABLE, *INITIAL), PPOConfig()
    return dataclasses.replace(config, **{name: getattr(defaults, name) for name in names})


def make_optimiser(config: PPOConfig, num_updates: int) -> optax.GradientTransformation:
    """Adam with gradient clipping and a learning-rate schedule over the run's gradient steps."""
    steps = num_updates * config.epochs * config.minibatches
    schedules = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, steps),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, steps),
    }
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(schedules[config.learning_rate_schedule]()),
    )


def init_state(
    key: jax.Array,
    policy: Policy,
    *,
    optimiser: optax.GradientTransformation,
    kl_coef: chex.Numeric,
    num_players: int,
) -> TrainState:
    """The state before the first update; `kl_coef` is the first weight of the KL."""
    keys = [key] + [jax.random.fold_in(key, player) for player in range(1, num_players)]
    fresh = [policy.init(key) for key in keys]
    trainable = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fresh)
    zeros = jnp.zeros(num_players)
    opt_state = jax.vmap(optimiser.init)(trainable)
    moments = Moments(zeros, zeros, zeros)
    return TrainState(jnp.int32(0), Players(trainable, opt_state, zeros + kl_coef, moments))


def step_players(
    optimiser: optax.GradientTransformation, gradient: PyTree, players: Players
) -> tuple[Players, jax.Array]:
    """One step of every player's own optimiser, and the gradients' norms `[num_players]`."""
    step, opt_state = jax.vmap(optimiser.update)(gradient, players.opt_state, players.trainable)
    trainable = optax.apply_updates(players.trainable, step)
    norms = jax.vmap(optax.global_norm)(gradient)
    return players._replace(trainable=trainable, opt_state=opt_state), norms


def per_player(function: Callable, *arguments: PyTree) -> PyTree:
    """Applies a function to the players' slices, one after the other, and stacks the results."""
    if len(jax.tree.leaves(arguments)[0]) > 1:
        return jax.lax.map(lambda xs: function(*xs), arguments)
    result = function(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], result)
