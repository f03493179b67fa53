"""The Markov chain of remembered rounds: exact visit frequencies without playing an episode.

With one remembered round, (agent's move, opponent's move, opponent's state) is a Markov chain, so
what a policy does over an episode is known exactly from its table.
"""

import chex
import jax
import jax.numpy as jnp

from jaxmoral.opponents import Opponent
from jaxmoral.prompts import NUM_MEMORIES, NUM_ORDERS


def memory_policy(log_probs: jax.Array) -> jax.Array:
    """Outcome probabilities per remembered round, averaged over the presentations.

    Args:
      log_probs: `[num_prompts, 3]`.

    Returns:
      `[2 (agent's move), 2 (opponent's move), 3 (outcome)]`.
    """
    probs = jnp.exp(log_probs).reshape(NUM_MEMORIES, NUM_ORDERS, 3)
    return probs.mean(1).reshape(2, 2, 3)


def visits(policy: jax.Array, opponent: Opponent, num_rounds: int) -> jax.Array:
    """How often each kind of round happens in an episode, as shares that add up to 1.

    Args:
      policy: `[2, 2, 3]` from `memory_policy`.
      opponent: who is played.
      num_rounds: length of an episode.

    Returns:
      `[2 (previous own), 2 (previous other), 3 (outcome), 2 (other's action)]`, shaped like
      `rewards.reward_table`, so a mean reward is the sum of their product.
    """
    chex.assert_shape(policy, (2, 2, 3))
    p_cooperate = jnp.asarray(opponent.p_cooperate)
    moves = jnp.stack([p_cooperate, 1 - p_cooperate], -1)  # [num_states, 2]
    num_states = len(p_cooperate)
    remembered = jnp.array([opponent.p_remembered_cooperate, 1 - opponent.p_remembered_cooperate])
    at = lambda state: jax.nn.one_hot(state, num_states)
    start = 0.5 * remembered[None, :, None] * at(opponent.start_state)
    # The agent's move that both players remember: its last legal one. [own, outcome, effective]
    effective = jnp.stack([jnp.array([[1, 0], [0, 1], jnp.eye(2)[own]]) for own in (0, 1)])
    arrives = at(opponent.next_state)  # [state, other's action, agent's action, next state]

    def step(distribution, _):
        rounds = jnp.einsum("ops,opx,sb->opsxb", distribution, policy, moves)
        following = jnp.einsum("opsxb,oxe,sbet->ebt", rounds, effective, arrives)
        return following, rounds.sum(2)

    return jax.lax.scan(step, start, None, num_rounds)[1].mean(0)
