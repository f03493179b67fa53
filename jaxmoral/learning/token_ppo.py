"""PPO over the tokens of sampled answers, as arXiv 2410.01639 ran it with TRL (its section 3.3).

Every round is one sample: a prompt, an answer of a fixed number of tokens, and a score, the round's
reward. The KL to the reference policy is a reward per token, measured on the sampled tokens;
advantages run over an answer's tokens, not over rounds. What an answer amounts to is sampled from
the exact distribution, and then its tokens given that, which together is plain sampling of tokens.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxmoral.config import PPOConfig
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.ppo import (
    Metrics,
    Settings,
    TrainState,
    adapt_kl_coef,
    gae,
    make_optimiser,
    per_player,
    sampled_metrics,
    scale_rewards,
    step_players,
    whiten,
)
from jaxmoral.world.memory import Memory
from jaxmoral.world.rollout import Draws, Environment, rollout

PyTree = Any


class TokenBatch(NamedTuple):
    """Sampled answers, `[num_samples, budget]` each, made by the behaviour policy.

    Attributes:
      log_prob, value: of each token, and before it.
      advantage: perhaps whitened.
      value_target: the unwhitened advantage plus the value.
    """

    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    value_target: jax.Array


def token_rewards(
    log_prob: jax.Array, reference: jax.Array, score: jax.Array, kl_coef: jax.Array
) -> jax.Array:
    """Minus the weighted log-ratio to the reference per token, and the score on the last one.

    Args:
      log_prob, reference: `[num_samples, budget]` of the sampled tokens.
      score: `[num_samples]`.
      kl_coef: in reward units per nat.
    """
    return (-kl_coef * (log_prob - reference)).at[:, -1].add(score)


def make_token_batch(
    log_prob: jax.Array, value: jax.Array, rewards: jax.Array, config: PPOConfig
) -> TokenBatch:
    """Advantages over the tokens of each answer, which ends for good (gamma = 1)."""
    ended = jnp.zeros(len(rewards))
    advantage = gae(rewards.T, value.T, ended, 1.0, config.gae_lambda).T
    target = advantage + value
    if config.normalise_advantages:
        advantage = whiten(advantage)
    return TokenBatch(log_prob, value, advantage, target)


def token_loss(
    log_prob: jax.Array, value: jax.Array, batch: TokenBatch, config: PPOConfig
) -> tuple[jax.Array, Metrics]:
    """The clipped objective over tokens, to be minimised, and its parts."""
    chex.assert_equal_shape([log_prob, value, *batch])
    ratio = jnp.exp(log_prob - batch.log_prob)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    policy_loss = -jnp.mean(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))
    near = jnp.clip(value, batch.value - config.value_clip, batch.value + config.value_clip)
    errors = jnp.maximum((value - batch.value_target) ** 2, (near - batch.value_target) ** 2)
    value_loss = 0.5 * jnp.mean(errors)
    loss = policy_loss + config.value_coef * value_loss
    return loss, {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1) > config.clip),
    }


def make_update(
    policy: Policy,
    config: PPOConfig,
    memory: Memory,
    num_updates: int,
    num_episodes: int,
    num_rounds: int,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the pure update; its arguments and results are those of `ppo.make_update`'s."""
    static = config

    def update(
        state: TrainState,
        seed_key: jax.Array,
        frozen: PyTree,
        inputs: PyTree,
        environment: Environment,
        reference: jax.Array,
        settings: Settings,
        draws: Draws | None = None,
    ) -> tuple[TrainState, Metrics]:
        config = dataclasses.replace(static, **settings)
        optimiser = make_optimiser(config, num_updates)
        key = jax.random.fold_in(seed_key, state.update)
        rollout_key, answer_key, dropout_key = jax.random.split(key, 3)
        num_players = len(reference)
        dropout_keys = None
        if config.sample_with_dropout and policy.dropout:
            dropout_keys = jax.random.split(dropout_key, num_players)
        behaving = (inputs, state.trainable, dropout_keys)
        apply = partial(policy.apply_with_logits, frozen)
        table, logits = per_player(apply, *behaving)
        trajectories = rollout(
            rollout_key,
            table.log_probs,
            environment,
            memory=memory,
            num_episodes=num_episodes,
            num_rounds=num_rounds,
            draws=draws,
        )
        flat = lambda field: field.reshape(num_players, -1).astype(jnp.int32)
        prompt, outcome = flat(trajectories.prompt), flat(trajectories.outcome)
        scores, moments = trajectories.reward.reshape(num_players, -1), state.moments
        if config.normalise_rewards:
            scores, moments = jax.vmap(scale_rewards)(scores, moments)

        answer_keys = jax.random.split(answer_key, num_players)
        tokens = per_player(
            partial(policy.write, frozen), *behaving, logits, answer_keys, prompt, outcome
        )
        against = lambda inputs, prompt, tokens: policy.score(
            frozen, inputs, policy.reference_parameters(), prompt, tokens
        )[0]
        token_reference = per_player(against, inputs, prompt, tokens)

        def score(trainable):
            one = partial(policy.score, frozen)
            return jax.vjp(lambda p: per_player(one, inputs, p, prompt, tokens), trainable)

        def improve(carry, scored, pullback):
            def one(scored, batch):
                loss = lambda scored: token_loss(scored[0], scored[1], batch, config)
                return jax.grad(loss, has_aux=True)(scored)

            gradient, parts = jax.vmap(one)(scored, batch)
            (gradient,) = pullback(gradient)
            trainable, opt_state, norms = step_players(optimiser, gradient, carry[1], carry[0])
            return (trainable, opt_state), parts | {"grad_norm": norms}

        def improve_afresh(carry, _):
            scored, pullback = score(carry[0])
            return improve(carry, scored, pullback)

        scored, pullback = score(state.trainable)
        rewards = jax.vmap(token_rewards)(scored[0], token_reference, scores, state.kl_coef)
        batch = jax.vmap(partial(make_token_batch, config=config))(scored[0], scored[1], rewards)
        (trainable, opt_state), parts = improve(
            (state.trainable, state.opt_state), scored, pullback
        )
        if config.epochs > 1:
            (trainable, opt_state), later = jax.lax.scan(
                improve_afresh, (trainable, opt_state), None, config.epochs - 1
            )
            join = lambda first, rest: jnp.concatenate([first[None], rest]).mean(0)
            parts = jax.tree.map(join, parts, later)

        measured = jax.vmap(partial(sampled_metrics, memory=memory))
        metrics = measured(table, trajectories, reference) | parts
        metrics["param_norm"] = jax.vmap(optax.global_norm)(trainable)
        metrics["kl_coef"] = state.kl_coef
        metrics["token_kl"] = jnp.mean(jnp.sum(scored[0] - token_reference, -1), -1)
        kl_coef = adapt_kl_coef(state.kl_coef, metrics["token_kl"], config)
        return TrainState(state.update + 1, trainable, opt_state, kl_coef, moments), metrics

    return update
