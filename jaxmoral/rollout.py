"""Episodes inside jit: a scan over rounds, vectorised over episodes, given a policy table.

One random number per round and episode decides both moves: its position in [0, 1) is inverted
over the opponent's distribution first, and what is left of it over the agent's.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.opponents import Opponent
from jaxmoral.prompts import NUM_ORDERS, memory_index
from jaxmoral.rewards import ILLEGAL


class Environment(NamedTuple):
    """A game as the agent is trained or tested on it.

    Attributes:
      opponent: who is played.
      rewards: `[2, 2, 3, 2]` from `rewards.reward_table`.
    """

    opponent: Opponent
    rewards: np.ndarray | jax.Array


class Trajectories(NamedTuple):
    """Rounds of many episodes, `[num_rounds, num_episodes]` each.

    Attributes:
      prompt: int8 index of the prompt the agent saw.
      outcome: int8, 0 for C, 1 for D, 2 for illegal.
      other_action: int8, the opponent's simultaneous move.
      reward: float32.
      last_prompt: `[num_episodes]` int8, the prompt after the last round.
    """

    prompt: jax.Array
    outcome: jax.Array
    other_action: jax.Array
    reward: jax.Array
    last_prompt: jax.Array


def _uniform_and_order(key: jax.Array, num_episodes: int) -> tuple[jax.Array, jax.Array]:
    """From one 32-bit word each: 24 bits make a number in [0, 1), two others a label order."""
    bits = jax.random.bits(key, (num_episodes,))
    return (bits >> 8).astype(jnp.float32) * 2.0**-24, (bits % NUM_ORDERS).astype(jnp.int32)


def rollout(
    key: jax.Array,
    log_probs: jax.Array,
    environment: Environment,
    num_episodes: int,
    num_rounds: int,
) -> Trajectories:
    """Plays episodes of the iterated game.

    An episode begins with a remembered round drawn at random: the agent's move is a fair coin, the
    opponent's follows `Opponent.p_remembered_cooperate`. An illegal answer leaves the agent's
    remembered move as it was.

    Args:
      key: PRNG key.
      log_probs: `[num_prompts, 3]` of the policy table.
      environment: the opponent and the rewards.
      num_episodes, num_rounds: static sizes.
    """
    chex.assert_shape(log_probs, (None, 3))
    chex.assert_shape(environment.rewards, (2, 2, 3, 2))
    opponent = environment.opponent
    probs = jnp.exp(log_probs)
    up_to_c, up_to_d = probs[:, 0], probs[:, 0] + probs[:, 1]
    rewards = jnp.ravel(environment.rewards)
    next_state, start_state = jnp.ravel(opponent.next_state), jnp.ravel(opponent.start_state)

    start_key, rounds_key = jax.random.split(key)
    uniform, order = _uniform_and_order(start_key, num_episodes)
    own = order % 2
    other = (uniform >= opponent.p_remembered_cooperate).astype(jnp.int32)
    memory = memory_index(own, other)

    def play(carry, key):
        memory, state = carry
        uniform, order = _uniform_and_order(key, num_episodes)
        prompt = memory * NUM_ORDERS + order
        p_cooperate = jnp.asarray(opponent.p_cooperate)[state]
        defects = uniform >= p_cooperate
        rest = jnp.where(
            defects, (uniform - p_cooperate) / (1 - p_cooperate), uniform / p_cooperate
        )
        other = defects.astype(jnp.int32)
        outcome = (rest >= up_to_c[prompt]).astype(jnp.int32) + (rest >= up_to_d[prompt])
        reward = rewards[(memory * 3 + outcome) * 2 + other]
        own = jnp.where(outcome == ILLEGAL, memory // 2, outcome)
        state = next_state[(state * 2 + other) * 2 + own]
        seen = (prompt, outcome, other)
        return (memory_index(own, other), state), (*(x.astype(jnp.int8) for x in seen), reward)

    keys = jax.random.split(rounds_key, num_rounds + 1)
    carry = (memory, start_state[memory])
    (memory, _), (prompt, outcome, other, reward) = jax.lax.scan(play, carry, keys[:-1])
    _, order = _uniform_and_order(keys[-1], num_episodes)
    last_prompt = (memory * NUM_ORDERS + order).astype(jnp.int8)
    return Trajectories(prompt, outcome, other, reward, last_prompt)
