"""What a behaviour policy did, in figures: rewards, outcomes, action types, KL, entropy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmoral.learning.losses import Metrics, exact_entropy, exact_kl
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.world.memory import Memory, after_matrix
from jaxmoral.world.products import einsum
from jaxmoral.world.rollout import Trajectories


def behaviour_metrics(
    table: PolicyTable,
    *,
    shares: jax.Array,
    reward_mean: jax.Array,
    seen: Callable[[jax.Array], jax.Array],
    reference: jax.Array,
    memory: Memory,
) -> Metrics:
    """What the behaviour policy did; "action_types" is `[3 (outcome), 2 (another player's previous
    move)]`, with a third column for rounds without one before where there are such.

    Args:
      table: of the behaviour policy.
      shares: `[num_previous, 3 (outcome)]` of the rounds.
      reward_mean: `[]`.
      seen: the mean over visits of something known per prompt, `[num_prompts]`.
      reference: `[num_prompts, 3]` log-probabilities.
      memory: of the agent.
    """
    after = jnp.asarray(after_matrix(memory.num_moves), jnp.float32)
    types = einsum("po,pc->oc", shares, after)[:, : 2 if memory.opening else 3]
    p_cooperate, p_defect, p_illegal = types.sum(-1)
    return {
        "reward_mean": reward_mean,
        "p_cooperate": p_cooperate,
        "p_defect": p_defect,
        "p_illegal": p_illegal,
        "action_types": types,
        "kl": seen(exact_kl(table.log_probs, reference)),
        "entropy": seen(exact_entropy(table.log_probs)),
    }


def sampled_shares(trajectories: Trajectories, memory: Memory) -> jax.Array:
    """`[num_previous, 3 (outcome)]` of the rounds."""
    cell = trajectories.previous.astype(jnp.int32) * 3 + trajectories.outcome
    counts = jnp.zeros(3 * memory.num_previous, jnp.int32).at[cell.ravel()].add(1)
    return (counts / cell.size).reshape(-1, 3)


def sampled_metrics(
    table: PolicyTable, trajectories: Trajectories, reference: jax.Array, memory: Memory
) -> Metrics:
    """`behaviour_metrics` of sampled episodes."""
    prompt = jnp.ravel(trajectories.prompt).astype(jnp.int32)
    return behaviour_metrics(
        table,
        shares=sampled_shares(trajectories, memory),
        reward_mean=trajectories.reward.mean(),
        seen=lambda rows: rows[prompt].mean(),
        reference=reference,
        memory=memory,
    )
