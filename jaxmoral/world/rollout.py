"""Episodes inside jit: a scan over rounds, vectorised over episodes, given a policy table.

Against a machine one random number per round and episode decides both moves: its position in [0, 1)
is inverted over the opponent's distribution first, and what is left of it over the agent's. Two
agents draw a number each.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.world.memory import ILLEGAL, NUM_ORDERS, Memory, playable
from jaxmoral.world.opponents import Opponent, side_by_side


class Environment(NamedTuple):
    """A game, or several with other payoffs, as the agent is trained or tested on it.

    Attributes:
      opponent: the machine that is played, or one for each game, stacked; None if two agents meet.
      rewards: `[num_games, num_previous, 3, num_moves]` from `rewards.reward_table`; for two agents
        `[2 (player), num_games, num_previous, 3, 3]` from `rewards.add_illegal_opponent`. The
        prompts of the games follow each other.
      noise: `[]` probability that a legal answer comes out as the other move; None for never.
    """

    opponent: Opponent | None
    rewards: np.ndarray | jax.Array
    noise: np.ndarray | jax.Array | None = None


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
      prompt: int16 index of the prompt the agent saw.
      previous: int8, the cell of the round before (see `memory.Memory.previous`).
      outcome: int8, 0 for C, 1 for D, 2 for illegal, as the agent chose it.
      other_action: int8, the opponent's simultaneous move; 2 if it is an agent's illegal answer.
      reward: float32.
      last_prompt: `[num_episodes]` int16, the prompt after the last round.
    """

    prompt: jax.Array
    previous: jax.Array
    outcome: jax.Array
    other_action: jax.Array
    reward: jax.Array
    last_prompt: jax.Array


def _uniform_and_order(key: jax.Array, num_episodes: int) -> tuple[jax.Array, jax.Array]:
    """From one 32-bit word each: 24 bits make a number in [0, 1), two others a label order."""
    bits = jax.random.bits(key, (num_episodes,))
    return (bits >> 8).astype(jnp.float32) * 2.0**-24, (bits % NUM_ORDERS).astype(jnp.int32)


def _invert(uniform: jax.Array, probs: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Inverts a distribution function.

    Args:
      uniform: numbers in [0, 1).
      probs: of every choice but the last, shaped like `uniform`.

    Returns:
      What was chosen, and where in [0, 1) of that choice's part the number was.
    """
    choice = jnp.zeros(uniform.shape, jnp.int32)
    low, width, upper = jnp.zeros_like(uniform), probs[0], probs[0]
    for index in range(1, len(probs) + 1):
        own = probs[index] if index < len(probs) else 1.0 - upper
        past = uniform >= upper
        choice += past
        low = jnp.where(past, upper, low)
        width = jnp.where(past, own, width)
        upper = upper + own
    return choice, (uniform - low) / width


def _tremble(outcome: jax.Array, rest: jax.Array, noise: chex.Array | None) -> jax.Array:
    """What a chosen outcome becomes; `rest` is what is left of the number that chose it."""
    if noise is None:
        return outcome
    return jnp.where((outcome < ILLEGAL) & (rest < noise), 1 - outcome, outcome)


class _Remembering(NamedTuple):
    """How states of a memory are read and followed inside a rollout.

    Attributes:
      previous: of a state, the cell of the round before.
      shown: of a state, the history that the prompt shows.
      follow: of a state, an outcome and the other's move, the next state and the move that counts.
    """

    previous: Callable
    shown: Callable
    follow: Callable


def _remembering(memory: Memory) -> _Remembering:
    """Arithmetic on full histories, which costs less than looking tables up; else the tables."""
    if not memory.opening:
        table = jnp.asarray(memory.next_state)
        last_own = jnp.asarray(memory.last_own)

        def look_up(state, outcome, other):
            state = table[state, outcome, other]
            return state, last_own[state]

        previous, shown = jnp.asarray(memory.previous), jnp.asarray(memory.shown)
        return _Remembering(lambda s: previous[s], lambda s: shown[s], look_up)

    cells = 2 * memory.num_moves
    size = cells**memory.opening
    newest = lambda state: state if size == cells else state % cells

    def compute(state, outcome, other):
        own = jnp.where(outcome == ILLEGAL, newest(state) // memory.num_moves, outcome)
        cell = own * memory.num_moves + other
        return (cell if size == cells else (state * cells + cell) % size), own

    visible = len(memory.histories) > 1
    return _Remembering(newest, lambda s: s if visible else 0 * s, compute)


def rollout(
    key: jax.Array,
    log_probs: jax.Array,
    environment: Environment,
    memory: Memory,
    num_episodes: int,
    num_rounds: int,
    draws: Draws | None = None,
) -> Trajectories:
    """Plays episodes of the iterated game against a machine.

    An episode begins with as many remembered rounds as the memory needs: the agent's moves are fair
    coins, the machine's follow `Opponent.opening` and then its states. Of several games each is
    played by every so manieth episode.

    Args:
      key: PRNG key.
      log_probs: `[num_games * num_prompts, 3]` of the policy table.
      environment: the opponent and the rewards.
      memory: of the agent.
      num_episodes, num_rounds: static sizes.
      draws: if given, only the agent's own choices come from the key.
    """
    num_games, num_moves = len(environment.rewards), memory.num_moves
    num_prompts = len(memory.histories) * NUM_ORDERS
    chex.assert_shape(log_probs, (num_games * num_prompts, 3))
    chex.assert_shape(environment.rewards, (num_games, memory.num_previous, 3, num_moves))
    assert environment.opponent is not None
    opponent = side_by_side(environment.opponent)
    chex.assert_shape(opponent.start, (None,))
    probs = jnp.exp(log_probs)
    columns = [probs[:, 0], probs[:, 1]]
    moves = [jnp.asarray(opponent.moves)[:, j] for j in range(num_moves - 1)]
    states = playable(memory)
    rewards = jnp.ravel(jnp.asarray(environment.rewards)[:, memory.previous[:states]])
    machine_follows = jnp.ravel(opponent.next_state)
    remembering = _remembering(memory)
    game = jnp.arange(num_episodes) % num_games if num_games > 1 else 0

    def prompt_of(state, order):
        return game * num_prompts + remembering.shown(state) * NUM_ORDERS + order

    def play(carry, xs):
        state, machine = carry
        key, draw = xs
        uniform, order = _uniform_and_order(key, num_episodes)
        chances = [move[machine] for move in moves]
        if draw is None:
            other, rest = _invert(uniform, chances)
        else:
            order, coin = draw
            # A fair coin for p = 1/2, sure for 0 and 1.
            other, rest = (0.25 + 0.5 * coin >= chances[0]).astype(jnp.int32), uniform
        prompt = prompt_of(state, order)
        outcome, rest = _invert(rest, [column[prompt] for column in columns])
        happened = _tremble(outcome, rest, environment.noise)
        reward = rewards[((game * states + state) * 3 + happened) * num_moves + other]
        seen = [x.astype(jnp.int8) for x in (remembering.previous(state), outcome, other)]
        state, own = remembering.follow(state, happened, other)
        carry = state, machine_follows[(machine * num_moves + other) * 2 + own]
        return carry, (prompt.astype(jnp.int16), *seen, reward)

    start_key, rounds_key = jax.random.split(key)
    state = jnp.full(num_episodes, memory.start)
    own_machine = game if len(opponent.start) > 1 else 0
    machine = jnp.broadcast_to(opponent.start[own_machine], (num_episodes,))
    for index in range(memory.opening):
        one_key = jax.random.fold_in(start_key, index) if index else start_key
        uniform, order = _uniform_and_order(one_key, num_episodes)
        chances = [move[machine] for move in moves]
        if index == 0:
            opening = jnp.broadcast_to(opponent.opening[own_machine], (num_episodes, num_moves))
            chances = [opening[:, j] for j in range(num_moves - 1)]
        own, other = order % 2, _invert(uniform, chances)[0]
        if draws is not None:
            own, other = jnp.asarray(draws.own), jnp.asarray(draws.other)
        state = jnp.asarray(memory.next_state)[state, own, other]
        machine = machine_follows[(machine * num_moves + other) * 2 + own]

    keys = jax.random.split(rounds_key, num_rounds + 1)
    made = None if draws is None else (draws.order[0], draws.coin)
    (state, _), history = jax.lax.scan(play, (state, machine), (keys[:-1], made))
    _, order = _uniform_and_order(keys[-1], num_episodes)
    last_prompt = prompt_of(state, order).astype(jnp.int16)
    prompt, before, outcome, other, reward = history
    return Trajectories(prompt, before, outcome, other, reward, last_prompt)


def rollout_pair(
    key: jax.Array,
    log_probs: jax.Array,
    environment: Environment,
    memory: Memory,
    num_episodes: int,
    num_rounds: int,
    draws: Draws | None = None,
) -> Trajectories:
    """Plays episodes between two agents that move at once; each remembers its own move first.

    Args:
      key: PRNG key.
      log_probs: `[2 (player), num_games * num_prompts, 3]` of the policy tables.
      environment: without an opponent.
      memory: of both.
      num_episodes, num_rounds: static sizes.
      draws: if given, only the agents' own choices come from the key.

    Returns:
      Trajectories with a leading `[2 (player)]` axis.
    """
    num_games = environment.rewards.shape[1]
    num_prompts = len(memory.histories) * NUM_ORDERS
    chex.assert_shape(log_probs, (2, num_games * num_prompts, 3))
    chex.assert_shape(environment.rewards, (2, num_games, memory.num_previous, 3, 3))
    probs = jnp.exp(log_probs)
    states = playable(memory)
    rewards = jnp.asarray(environment.rewards)[:, :, memory.previous[:states]].reshape(2, -1)
    remembering, last_own = _remembering(memory), jnp.asarray(memory.last_own)
    player = jnp.arange(2)[:, None]
    game = jnp.arange(num_episodes) % num_games if num_games > 1 else 0

    def draw_both(key):
        return [x.reshape(2, -1) for x in _uniform_and_order(key, 2 * num_episodes)]

    def prompt_of(state, order):
        return game * num_prompts + remembering.shown(state) * NUM_ORDERS + order

    def play(state, xs):
        key, order = xs
        uniform, drawn = draw_both(key)
        prompt = prompt_of(state, drawn if order is None else order)
        chances = probs[player, prompt]
        outcome, rest = _invert(uniform, [chances[..., 0], chances[..., 1]])
        happened = _tremble(outcome, rest, environment.noise)
        other = happened[::-1]
        reward = rewards[player, ((game * states + state) * 3 + happened) * 3 + other]
        seen = [x.astype(jnp.int8) for x in (remembering.previous(state), outcome, other)]
        legal = jnp.where(happened == ILLEGAL, last_own[state], happened)
        state, _ = remembering.follow(state, happened, legal[::-1])
        return state, (prompt.astype(jnp.int16), *seen, reward)

    start_key, rounds_key = jax.random.split(key)
    state = jnp.full((2, num_episodes), memory.start)
    for index in range(memory.opening):
        one_key = jax.random.fold_in(start_key, index) if index else start_key
        moves = draw_both(one_key)[1] % 2
        if draws is not None:
            moves = jnp.stack([draws.own, draws.other])
        state = jnp.asarray(memory.next_state)[state, moves, moves[::-1]]

    keys = jax.random.split(rounds_key, num_rounds + 1)
    orders = None if draws is None else jnp.moveaxis(draws.order, 0, 1)
    state, history = jax.lax.scan(play, state, (keys[:-1], orders))
    last_prompt = prompt_of(state, draw_both(keys[-1])[1]).astype(jnp.int16)
    prompt, before, outcome, other, reward = (jnp.moveaxis(x, 1, 0) for x in history)
    return Trajectories(prompt, before, outcome, other, reward, last_prompt)
