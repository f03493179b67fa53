"""Batches: what a gradient step learns from, made of sampled rounds or of their exact expectation.

A batch holds samples (`make_batch`), or every answer to every prompt, weighted by how often it
comes and with its expected advantage (`exact_batch`); the loss is the same. Over tokens
(`make_token_batch`) an answer is an episode of its own.

GAE: Schulman et al., arXiv 1506.02438.
"""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxmoral.config import PPOConfig
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.state import Moments
from jaxmoral.world.chain import (
    against,
    between,
    by_shown,
    by_state,
    expected_advantages,
    memory_policy,
    noisy_rewards,
    visits,
)
from jaxmoral.world.machines import Opponent
from jaxmoral.world.memory import NUM_ORDERS, Memory
from jaxmoral.world.rollout import Environment, Trajectories


class Batch(NamedTuple):
    """Samples of one gradient step, `[num_samples]` each; the weights add up to 1.

    Without `prompt` and `outcome` the samples are the policy table's cells, in its order.
    """

    weight: jax.Array
    prompt: jax.Array | None
    outcome: jax.Array | None
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    value_target: jax.Array


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


def gae(
    rewards: jax.Array, values: jax.Array, last_value: jax.Array, gamma: float, lam: float
) -> jax.Array:
    """Generalised advantage estimates.

    The horizon's end is a truncation, not a terminal state, so the value of the prompt after the
    last round is bootstrapped. With gamma = 0 each round is a bandit: reward minus value.

    Args:
      rewards, values: `[num_rounds, num_episodes]`.
      last_value: `[num_episodes]`.
      gamma: the discount of a round.
      lam: of the sum over rounds; 0 takes one-step errors, 1 whole returns.

    Returns:
      `[num_rounds, num_episodes]`.
    """
    chex.assert_equal_shape([rewards, values])
    next_values = jnp.concatenate([values[1:], last_value[None]])
    deltas = rewards + gamma * next_values - values

    def back(advantage, delta):
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(last_value), deltas, reverse=True)[1]


def merge_moments(moments: Moments, samples: jax.Array) -> Moments:
    """Adds a batch to running moments (Chan et al.'s pairwise update)."""
    size, mean = samples.size, samples.mean()
    seen = moments.seen + size
    shift = mean - moments.mean
    deviations = jnp.sum((samples - mean) ** 2) + shift**2 * moments.seen * size / seen
    return Moments(seen, moments.mean + shift * size / seen, moments.deviations + deviations)


def scale_rewards(rewards: jax.Array, moments: Moments) -> tuple[jax.Array, Moments]:
    """Rewards relative to the mean and standard deviation of all so far, these included."""
    moments = merge_moments(moments, rewards)
    variance = moments.deviations / jnp.maximum(moments.seen - 1, 1)
    return (rewards - moments.mean) / (jnp.sqrt(variance) + 1e-6), moments


def whiten(samples: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Zero mean and unit variance; samples that are all alike, or one alone, become 0.

    The variance is that of a sample (one degree of freedom less), or with weights that of a
    distribution.
    """
    if weights is None:
        return (samples - samples.mean()) * jax.lax.rsqrt(
            samples.var(ddof=min(samples.size - 1, 1)) + 1e-8
        )
    centred = samples - jnp.sum(weights * samples)
    return centred * jax.lax.rsqrt(jnp.sum(weights * centred**2) + 1e-8)


def make_batch(
    table: PolicyTable, trajectories: Trajectories, rewards: jax.Array, config: PPOConfig
) -> Batch:
    """Advantages and value targets of a rollout, flattened over rounds and episodes."""
    prompt = trajectories.prompt.astype(jnp.int32)
    outcome = trajectories.outcome.astype(jnp.int32)
    values = table.values[prompt]
    last_value = table.values[trajectories.last_prompt.astype(jnp.int32)]
    advantage = gae(rewards, values, last_value, config.gamma, config.gae_lambda)
    target = advantage + values
    if config.normalise_advantages:
        advantage = whiten(advantage)
    log_prob = table.log_probs[prompt, outcome]
    weight = jnp.full(prompt.shape, config.minibatches / prompt.size)
    batch = Batch(
        weight=weight,
        prompt=prompt,
        outcome=outcome,
        log_prob=log_prob,
        value=values,
        advantage=advantage,
        value_target=target,
    )
    return jax.tree.map(jnp.ravel, batch)


class Expectation(NamedTuple):
    """What an agent's episodes are on average.

    Attributes:
      batch: the policy table's cells.
      shares: `[num_previous, 3, b]` of the rounds.
      reward: `[]` mean a round.
    """

    batch: Batch
    shares: jax.Array
    reward: jax.Array


def exact_batch(
    table: PolicyTable,
    environment: Environment,
    *,
    others_log_probs: jax.Array | None = None,
    memory: Memory,
    num_rounds: int,
    config: PPOConfig,
) -> Expectation:
    """Every answer to every prompt, with its probability and expected advantage.

    Args:
      table: the agent's.
      environment: with the agent's own rewards, `[num_games, num_previous, 3, b]`.
      others_log_probs: `[num_prompts, 3]` of another agent, if no machine is met.
      memory: of the agent.
      num_rounds: length of an episode.
      config: the settings.
    """
    num_games, num_prompts = len(environment.rewards), len(table.values)
    by_game = lambda field: field.reshape(num_games, -1, *field.shape[1:])
    several = environment.opponent is not None and jnp.ndim(environment.opponent.start) > 0
    others = None if others_log_probs is None else by_game(others_log_probs)
    game = partial(
        _expected_game,
        noise=environment.noise,
        chances=environment.chances,
        memory=memory,
        num_rounds=num_rounds,
        config=config,
    )
    weight, advantage, shares, reward = jax.vmap(game, (0, 0, 0 if several else None, 0))(
        jax.tree.map(by_game, table), environment.rewards, environment.opponent, others
    )
    weight, advantage = weight.reshape(-1, 3) / num_games, advantage.reshape(-1, 3)
    values = jnp.broadcast_to(table.values[:, None], (num_prompts, 3))
    target = advantage + values
    if config.normalise_advantages:
        advantage = whiten(advantage, weight)
    batch = Batch(
        weight=weight,
        prompt=None,
        outcome=None,
        log_prob=table.log_probs,
        value=values,
        advantage=advantage,
        value_target=target,
    )
    return Expectation(jax.tree.map(jnp.ravel, batch), shares.mean(0), reward.mean())


def _expected_game(
    table: PolicyTable,
    rewards: chex.Array,
    opponent: Opponent | None,
    others_log_probs: jax.Array | None,
    *,
    noise: chex.Array | None,
    chances: chex.Array | None,
    memory: Memory,
    num_rounds: int,
    config: PPOConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`[num_prompts, 3]` weights and advantages, shares and mean reward of one game."""
    if opponent is not None:
        chain = against(memory, opponent, noise=noise, chances=chances)
    else:
        assert others_log_probs is not None
        chain = between(memory, memory_policy(others_log_probs), noise=noise)
    probs = jnp.exp(table.log_probs).reshape(-1, NUM_ORDERS, 3)
    policy = by_state(memory, probs)
    rewards = noisy_rewards(rewards, noise)
    visited, advantage = expected_advantages(
        chain,
        policy,
        rewards=rewards,
        values=by_state(memory, table.values.reshape(-1, NUM_ORDERS)),
        num_rounds=num_rounds,
        gamma=config.gamma,
        lam=config.gae_lambda,
    )
    shares = visits(chain, policy.mean(1), num_rounds=num_rounds)
    # What the prompt does not show is averaged over: it is all the same to the policy.
    seen = by_shown(memory, visited)
    mean = by_shown(memory, visited[:, None, None] * advantage)
    mean = mean / jnp.maximum(seen, 1e-20)[:, None, None]
    weight = seen[:, None, None] / NUM_ORDERS * probs
    return weight.reshape(-1, 3), mean.reshape(-1, 3), shares, jnp.sum(shares * rewards)


def split_minibatches(key: jax.Array, batch: Batch, config: PPOConfig) -> Batch:
    """Every epoch's minibatches, `[epochs * minibatches, num_samples / minibatches]` each.

    An epoch visits every sample once, in an order of its own.
    """
    size = len(batch.weight)
    if config.minibatches == 1:
        order = jnp.broadcast_to(jnp.arange(size), (config.epochs, size))
    else:
        keys = jax.random.split(key, config.epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    order = order.reshape(config.epochs * config.minibatches, -1)
    return jax.tree.map(lambda field: field[order], batch)


def token_rewards(
    log_prob: jax.Array, reference: jax.Array, reward: jax.Array, kl_coef: jax.Array
) -> jax.Array:
    """Minus the weighted log-ratio to the reference per token, and the reward on the last one.

    Args:
      log_prob, reference: `[num_samples, budget]` of the sampled tokens.
      reward: `[num_samples]` of the rounds.
      kl_coef: in reward units per nat.
    """
    return (-kl_coef * (log_prob - reference)).at[:, -1].add(reward)


def make_token_batch(
    log_prob: jax.Array, value: jax.Array, rewards: jax.Array, config: PPOConfig
) -> TokenBatch:
    """Advantages over the tokens of each answer, which ends for good (gamma = 1)."""
    ended = jnp.zeros(len(rewards))
    advantage = gae(rewards.T, value.T, ended, 1.0, config.gae_lambda).T
    target = advantage + value
    if config.normalise_advantages:
        advantage = whiten(advantage)
    return TokenBatch(log_prob=log_prob, value=value, advantage=advantage, value_target=target)
