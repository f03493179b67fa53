"""Episodes inside jit: a scan over rounds, vectorised over episodes, given a policy table.

Against a machine one random number per round and episode decides both moves: its position in [0, 1)
is inverted over the opponent's distribution first, and what is left of it over the agent's. Two
agents draw a number each.
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
      opponent: the machine that is played; None if two agents meet.
      rewards: `[2, 2, 3, 2]` from `rewards.reward_table`; for two agents `[2 (player), 2, 2, 3, 3]`
        from `rewards.add_illegal_opponent`.
    """

    opponent: Opponent | None
    rewards: np.ndarray | jax.Array


class Draws(NamedTuple):
    """Chance made beforehand, for sequences that must be those of another program.

    Attributes:
      own, other: `[num_episodes]` remembered moves.
      order: `[num_players, num_rounds, num_episodes]` label orders.
      coin: `[num_rounds, num_episodes]`, a random opponent's moves.
    """

    own: np.ndarray | jax.Array
    other: np.ndarray | jax.Array
    order: np.ndarray | jax.Array
    coin: np.ndarray | jax.Array


class Trajectories(NamedTuple):
    """Rounds of many episodes, `[num_rounds, num_episodes]` each.

    Attributes:
      prompt: int8 index of the prompt the agent saw.
      outcome: int8, 0 for C, 1 for D, 2 for illegal.
      other_action: int8, the opponent's simultaneous move; 2 if it is an agent's illegal answer.
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
    draws: Draws | None = None,
) -> Trajectories:
    """Plays episodes of the iterated game against a machine.

    An episode begins with a remembered round drawn at random: the agent's move is a fair coin, the
    opponent's follows `Opponent.p_remembered_cooperate`. An illegal answer leaves the agent's
    remembered move as it was.

    Args:
      key: PRNG key.
      log_probs: `[num_prompts, 3]` of the policy table.
      environment: the opponent and the rewards.
      num_episodes, num_rounds: static sizes.
      draws: if given, only the agent's own choices come from the key.
    """
    chex.assert_shape(log_probs, (None, 3))
    chex.assert_shape(environment.rewards, (2, 2, 3, 2))
    opponent = environment.opponent
    assert opponent is not None
    probs = jnp.exp(log_probs)
    up_to_c, up_to_d = probs[:, 0], probs[:, 0] + probs[:, 1]
    rewards = jnp.ravel(environment.rewards)
    next_state, start_state = jnp.ravel(opponent.next_state), jnp.ravel(opponent.start_state)

    start_key, rounds_key = jax.random.split(key)
    uniform, order = _uniform_and_order(start_key, num_episodes)
    own = order % 2
    other = (uniform >= opponent.p_remembered_cooperate).astype(jnp.int32)
    if draws is not None:
        own, other = jnp.asarray(draws.own), jnp.asarray(draws.other)
    memory = memory_index(own, other)

    def play(carry, xs):
        memory, state = carry
        key, draw = xs
        uniform, order = _uniform_and_order(key, num_episodes)
        p_cooperate = jnp.asarray(opponent.p_cooperate)[state]
        if draw is None:
            defects = uniform >= p_cooperate
            rest = jnp.where(
                defects, (uniform - p_cooperate) / (1 - p_cooperate), uniform / p_cooperate
            )
        else:
            order, coin = draw
            defects = 0.25 + 0.5 * coin >= p_cooperate  # a fair coin for p = 1/2, sure for 0 and 1
            rest = uniform
        prompt = memory * NUM_ORDERS + order
        other = defects.astype(jnp.int32)
        outcome = (rest >= up_to_c[prompt]).astype(jnp.int32) + (rest >= up_to_d[prompt])
        reward = rewards[(memory * 3 + outcome) * 2 + other]
        own = jnp.where(outcome == ILLEGAL, memory // 2, outcome)
        state = next_state[(state * 2 + other) * 2 + own]
        seen = (prompt, outcome, other)
        return (memory_index(own, other), state), (*(x.astype(jnp.int8) for x in seen), reward)

    keys = jax.random.split(rounds_key, num_rounds + 1)
    carry = (memory, start_state[memory])
    made = None if draws is None else (draws.order[0], draws.coin)
    (memory, _), (prompt, outcome, other, reward) = jax.lax.scan(play, carry, (keys[:-1], made))
    _, order = _uniform_and_order(keys[-1], num_episodes)
    last_prompt = (memory * NUM_ORDERS + order).astype(jnp.int8)
    return Trajectories(prompt, outcome, other, reward, last_prompt)


def rollout_pair(
    key: jax.Array,
    log_probs: jax.Array,
    rewards: chex.Array,
    num_episodes: int,
    num_rounds: int,
    draws: Draws | None = None,
) -> Trajectories:
    """Plays episodes between two agents that move at once; each remembers its own move first.

    Args:
      key: PRNG key.
      log_probs: `[2 (player), num_prompts, 3]` of the policy tables.
      rewards: `[2 (player), 2, 2, 3, 3]` from `rewards.add_illegal_opponent`.
      num_episodes, num_rounds: static sizes.
      draws: if given, only the agents' own choices come from the key.

    Returns:
      Trajectories with a leading `[2 (player)]` axis.
    """
    chex.assert_shape(log_probs, (2, None, 3))
    chex.assert_shape(rewards, (2, 2, 2, 3, 3))
    probs = jnp.exp(log_probs)
    up_to_c, up_to_d = probs[..., 0], probs[..., 0] + probs[..., 1]
    rewards = jnp.asarray(rewards).reshape(2, -1)
    player = jnp.arange(2)[:, None]

    start_key, rounds_key = jax.random.split(key)
    _, order = _uniform_and_order(start_key, 2 * num_episodes)
    moves = (order % 2).reshape(2, -1)
    if draws is not None:
        moves = jnp.stack([draws.own, draws.other])

    def play(moves, xs):
        key, order = xs
        uniform, drawn = (x.reshape(2, -1) for x in _uniform_and_order(key, 2 * num_episodes))
        memory = memory_index(moves, moves[::-1])
        prompt = memory * NUM_ORDERS + (drawn if order is None else order)
        outcome = (uniform >= up_to_c[player, prompt]).astype(jnp.int32)
        outcome += uniform >= up_to_d[player, prompt]
        other = outcome[::-1]
        reward = rewards[player, (memory * 3 + outcome) * 3 + other]
        seen = (prompt, outcome, other)
        moves = jnp.where(outcome == ILLEGAL, moves, outcome)
        return moves, (*(x.astype(jnp.int8) for x in seen), reward)

    keys = jax.random.split(rounds_key, num_rounds + 1)
    orders = None if draws is None else jnp.moveaxis(draws.order, 0, 1)
    moves, history = jax.lax.scan(play, moves, (keys[:-1], orders))
    _, order = _uniform_and_order(keys[-1], 2 * num_episodes)
    last = memory_index(moves, moves[::-1]) * NUM_ORDERS + order.reshape(2, -1)
    prompt, outcome, other, reward = (jnp.moveaxis(x, 1, 0) for x in history)
    return Trajectories(prompt, outcome, other, reward, last.astype(jnp.int8))
