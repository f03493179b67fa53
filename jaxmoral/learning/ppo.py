"""Proximal policy optimisation: what one update does, from behaviour to better parameters.

It departs from the textbook in that the policy is known, not only sampled. A prompt's distribution
over the outcomes is exact, so the KL to the reference and the entropy in the loss are exact too,
an action's log-probability is that of all ways to spell it, and the expectation over episodes can
take the place of samples (`ppo.estimator: exact`). Every loss is a function of the policy table
alone, so the model's part of a gradient is one pullback, and the forward pass of the behaviour
policy serves the first gradient step too. `ppo.level: token` is PPO over tokens, as in the paper.
An agent that thinks learns its thoughts as well; see `thinking`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxmoral.learning.anchor import anchored
from jaxmoral.learning.collect import Collected, Keys, Setup, collect_answers, collect_tokens
from jaxmoral.learning.collect_thoughts import collect_thoughts
from jaxmoral.learning.distil import collect_lessons
from jaxmoral.learning.losses import Metrics, adapt_kl_coef
from jaxmoral.learning.state import (
    Players,
    TrainState,
    UpdateInputs,
    make_optimiser,
    step_players,
)

Update = Callable[[TrainState, UpdateInputs], tuple[TrainState, Metrics]]
Collector = Callable[[TrainState, UpdateInputs, Keys, Setup], Collected]


def make_update(setup: Setup) -> Update:
    """Builds the pure update, to be jitted with the state donated.

    Returns:
      `update(state, inputs) -> (state, metrics)`, metrics with a leading axis of players.
    """

    def update(state: TrainState, inputs: UpdateInputs) -> tuple[TrainState, Metrics]:
        settings = dataclasses.replace(setup.config, **inputs.settings)
        now = dataclasses.replace(setup, config=settings)
        key = jax.random.fold_in(inputs.key, state.update)
        keys = Keys(*jax.random.split(key, 3))

        collected = _collector(now, inputs)(state, inputs, keys, now)
        if inputs.anchor is not None:
            collected = anchored(collected, state, inputs, setup.policy)
        players, parts = gradient_steps(state.players, collected, keys.dropout, now)

        metrics = collected.metrics | parts
        metrics["param_norm"] = jax.vmap(optax.global_norm)(players.trainable)
        metrics["kl_coef"] = players.kl_coef
        kl_coef = adapt_kl_coef(players.kl_coef, collected.kl, settings)
        players = players._replace(kl_coef=kl_coef, moments=collected.moments)
        return TrainState(state.update + 1, players), metrics

    return update


def _collector(setup: Setup, inputs: UpdateInputs) -> Collector:
    """What gathers what an update learns from."""
    if inputs.teacher is not None:
        return collect_lessons
    if setup.thinking is not None:
        return collect_thoughts
    return collect_tokens if setup.config.level == "token" else collect_answers


def gradient_steps(
    players: Players, collected: Collected, dropout_key: jax.Array, setup: Setup
) -> tuple[Players, Metrics]:
    """Every epoch's gradient steps, one after the other.

    Returns:
      The players after the last step, and the means of the losses' parts over the steps.
    """
    optimiser = make_optimiser(setup.config, setup.num_updates)
    batches, history = collected.batches, []
    num_steps = len(jax.tree.leaves(batches)[0])

    def step(players, batch, reading, pullback):
        gradient, parts = collected.differentiate(reading, batch)
        (gradient,) = pullback(gradient)
        players, norms = step_players(optimiser, gradient, players)
        return players, parts | {"grad_norm": norms}

    def read_and_step(players, xs):
        batch, dropout_keys = xs
        read = lambda trainable: collected.read(trainable, dropout_keys)
        return step(players, batch, *jax.vjp(read, players.trainable))

    dropout_keys = None
    if collected.behaviour is None:
        dropout_keys = jax.random.split(dropout_key, (num_steps, len(players.kl_coef)))
    else:
        first = jax.tree.map(lambda field: field[0], batches)
        batches = jax.tree.map(lambda field: field[1:], batches)
        players, parts = step(players, first, *collected.behaviour)
        history.append(jax.tree.map(lambda part: part[None], parts))
    if collected.behaviour is None or num_steps > 1:
        players, parts = jax.lax.scan(read_and_step, players, (batches, dropout_keys))
        history.append(parts)
    return players, jax.tree.map(lambda *steps: jnp.concatenate(steps).mean(0), *history)
