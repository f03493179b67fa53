"""Losses: what a gradient step minimises, as functions of what the policy says alone.

PPO: Schulman et al., arXiv 1707.06347; the KL's adaptive weight: Ziegler et al., arXiv 1909.08593.
"""

import chex
import jax
import jax.numpy as jnp

from jaxmoral.config import PPOConfig
from jaxmoral.learning.batches import Batch, TokenBatch
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.world.chain import best_response, by_state, memory_policy
from jaxmoral.world.memory import Memory

Metrics = dict[str, jax.Array]


def exact_kl(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(policy || reference) over the outcomes in nats, `[..., 3]` to `[...]`."""
    return jnp.sum(jnp.exp(log_probs) * (log_probs - reference), axis=-1)


def exact_entropy(log_probs: jax.Array) -> jax.Array:
    """Entropy over the outcomes in nats, `[..., 3]` to `[...]`."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def label_barrier(log_probs: jax.Array) -> jax.Array:
    """KL(either label half the time || policy) in nats, `[..., 3]` to `[...]`.

    The log barrier of Agarwal et al., arXiv 1908.00261, over the labels: unlike that of the entropy
    or of `exact_kl`, its gradient does not vanish with the probability of an action.
    """
    return -jnp.mean(log_probs[..., :2], axis=-1) - jnp.log(2.0)


def exploitability(
    log_probs: jax.Array,
    points: jax.Array,
    noise: chex.Array | None,
    memory: Memory,
    num_rounds: int,
) -> jax.Array:
    """What a best response takes from an agent, in points a round, the mean over games, `[]`.

    Args:
      log_probs: `[num_prompts, 3]` of a policy table, whose games follow each other.
      points: `[num_games, 2 (own move), 2 (other's move)]` of the other.
      noise, memory, num_rounds: see `chain.best_response`.
    """

    def taken(log_probs, points):
        policy = by_state(memory, memory_policy(log_probs))
        return best_response(memory, policy, points, num_rounds=num_rounds, noise=noise)

    return jax.vmap(taken)(log_probs.reshape(len(points), -1, 3), points).mean()


def adapt_kl_coef(kl_coef: jax.Array, kl: jax.Array, config: PPOConfig) -> jax.Array:
    """Raises the weight when the KL is above its target and lowers it when it is below."""
    error = jnp.clip(kl / config.kl_target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + config.kl_gain * error)


def ppo_loss(
    table: PolicyTable,
    batch: Batch,
    *,
    reference: jax.Array,
    kl_coef: jax.Array,
    entropy_coef: jax.Array,
    config: PPOConfig,
) -> tuple[jax.Array, Metrics]:
    """The PPO objective of a policy table on a batch, to be minimised.

    KL, entropy and barrier are exact over the outcomes at each visited prompt, not sampled.

    Args:
      table: the current policy.
      batch: samples of the behaviour policy.
      reference: `[num_prompts, 3]` log-probabilities.
      kl_coef, entropy_coef: weights in reward units per nat.
      config: the settings.

    Returns:
      The loss and its parts.
    """
    if batch.prompt is None:  # no need to look anything up
        log_prob, at = table.log_probs.ravel(), lambda rows: jnp.repeat(rows, 3)
    else:
        log_prob = table.log_probs[batch.prompt, batch.outcome]
        at = lambda rows: rows[batch.prompt]
    chex.assert_equal_shape([log_prob, *jax.tree.leaves(batch)])
    loss, parts = _clipped_losses(log_prob, at(table.values), batch, batch.weight, config)
    kl = jnp.sum(batch.weight * at(exact_kl(table.log_probs, reference)))
    entropy = jnp.sum(batch.weight * at(exact_entropy(table.log_probs)))
    barrier = jnp.sum(batch.weight * at(label_barrier(table.log_probs)))
    loss = loss + kl_coef * kl - entropy_coef * entropy + config.barrier_coef * barrier
    return loss, {"loss": loss} | parts


def token_loss(
    log_prob: jax.Array, value: jax.Array, batch: TokenBatch, config: PPOConfig
) -> tuple[jax.Array, Metrics]:
    """The clipped objective over tokens, to be minimised, and its parts.

    Args:
      log_prob, value: `[num_samples, budget]` of the sampled tokens by the current policy.
      batch: the tokens by the behaviour policy.
      config: the settings.
    """
    chex.assert_equal_shape([log_prob, value, *batch])
    loss, parts = _clipped_losses(log_prob, value, batch, 1 / log_prob.size, config)
    return loss, {"loss": loss} | parts


def _clipped_losses(
    log_prob: jax.Array,
    value: jax.Array,
    batch: Batch | TokenBatch,
    weight: jax.Array | float,
    config: PPOConfig,
) -> tuple[jax.Array, Metrics]:
    """The weighted sum of the clipped policy and value losses over samples, and its parts."""
    ratio = jnp.exp(log_prob - batch.log_prob)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    gain = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
    near = batch.value + jnp.clip(value - batch.value, -config.value_clip, config.value_clip)
    errors = jnp.maximum((value - batch.value_target) ** 2, (near - batch.value_target) ** 2)
    policy_loss = -jnp.sum(weight * gain)
    value_loss = 0.5 * jnp.sum(weight * errors)
    return policy_loss + config.value_coef * value_loss, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "clip_fraction": jnp.sum(weight * (jnp.abs(ratio - 1) > config.clip)),
    }
