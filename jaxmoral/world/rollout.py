"""Episodes inside jit: a scan over rounds, vectorised over episodes, given policy tables.

One loop plays an agent against a machine (`_Machine`) and two agents against each other
(`_EachOther`). Every agent has one random number per round and episode. Against a machine it
decides both moves: its position in [0, 1) is inverted over the machine's distribution first, and
what is left of it over the agent's.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.world.machines import Opponent, side_by_side
from jaxmoral.world.memory import ILLEGAL, NUM_ORDERS, Memory, look_up

_KIND_TAG = 2**31 - 1  # of the key that draws opponents; remembered rounds are far fewer


class Exploited(NamedTuple):
    """What a best response would take from players, which is taken off their reward.

    Attributes:
      weight: `[num_players]` of a point.
      points: `[num_players, num_games, 2 (own move), 2 (other's move)]` of the other.
    """

    weight: np.ndarray | jax.Array
    points: np.ndarray | jax.Array


class Environment(NamedTuple):
    """A game, or several with other payoffs, as the agent is trained or tested on it.

    Attributes:
      opponent: the machine that is played, or one for each game, stacked; None if two agents meet.
      rewards: `[num_games, num_previous, 3, num_moves]` from `rewards.reward_table`; for two agents
        `[2 (player), num_games, num_previous, 3, 3]` from `rewards.add_illegal_opponent`. The
        prompts of the games follow each other.
      noise: `[]` probability that a legal answer comes out as the other move; None for never.
      chances: `[num_opponents]` that an episode is against each; `opponent` is then a stack
        `[num_games, num_opponents]`. None if there is but one.
      exploited: None if nobody's best response counts.
    """

    opponent: Opponent | None
    rewards: np.ndarray | jax.Array
    noise: np.ndarray | jax.Array | None = None
    chances: np.ndarray | jax.Array | None = None
    exploited: Exploited | None = None


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
    """Rounds of many episodes, `[num_players, num_rounds, num_episodes]` each.

    Attributes:
      prompt: int16 index of the prompt the agent saw.
      previous: int8, the cell of the round before (see `memory.Memory.previous`).
      outcome: int8, 0 for C, 1 for D, 2 for illegal, as the agent chose it.
      other_action: int8, the opponent's simultaneous move; 2 if it is an agent's illegal answer.
      reward: float32.
      last_prompt: `[num_players, num_episodes]` int16, the prompt after the last round.
    """

    prompt: jax.Array
    previous: jax.Array
    outcome: jax.Array
    other_action: jax.Array
    reward: jax.Array
    last_prompt: jax.Array


def _uniform_and_order(key: jax.Array, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """From one 32-bit word each: 24 bits make a number in [0, 1), two others a label order."""
    bits = jax.random.bits(key, (prod(shape),)).reshape(shape)
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


class _Machine(NamedTuple):
    """The other side as a machine, which moves first, by a part of the agent's number.

    Attributes:
      opponent: the machines side by side.
      met: the one that is met, `[num_episodes]`, or 0 for the only one.
    """

    opponent: Opponent
    met: jax.Array | int

    def begin(self, shape: tuple[int, int]) -> jax.Array:
        """The states before any round, `[1 (player), num_episodes]`."""
        return jnp.broadcast_to(self.opponent.start[self.met], shape)

    def move(self, state: Any, uniform: jax.Array, coin: jax.Array | None = None) -> tuple:
        """The moves, and the numbers that are left for the agent."""
        moves = self.opponent.moves
        chances = [look_up(moves, state, index) for index in range(moves.shape[1] - 1)]
        if coin is None:
            return _invert(uniform, chances)
        # A fair coin for p = 1/2, sure for 0 and 1.
        return (0.25 + 0.5 * coin >= chances[0]).astype(jnp.int32), uniform

    def answer(self, move: Any, happened: jax.Array, own: jax.Array) -> tuple:
        """The other's outcomes and the moves they count as, which are the same."""
        return move, move

    def follow(self, state: Any, move: jax.Array, own: jax.Array) -> jax.Array:
        """The states after a round."""
        return look_up(self.opponent.next_state, state, move, own)


class _EachOther:
    """The other side as an agent: each of two players is the other's, and has no other states."""

    def begin(self, shape: tuple[int, int]) -> Any:
        """Nothing that is not in the agents' memories."""
        return None

    def move(self, state: Any, uniform: jax.Array, coin: jax.Array | None = None) -> tuple:
        """Nobody moves first, and the numbers are left whole."""
        return None, uniform

    def answer(self, move: Any, happened: jax.Array, own: jax.Array) -> tuple:
        """The other's outcomes and the moves they count as."""
        return happened[::-1], own[::-1]

    def follow(self, state: Any, move: jax.Array, own: jax.Array) -> Any:
        """Nothing that is not in the agents' memories."""
        return None


def _meet_machines(
    opponent: Opponent, opening: int, *, game: jax.Array | int, kind: jax.Array | None
) -> _Machine:
    """Machines that begin with remembered rounds do so in a state more, which plays `opening`.

    Args:
      opponent: see `Environment`.
      opening: how many rounds are remembered.
      game: which one each episode plays.
      kind: which of several opponents each episode is against.
    """
    met: jax.Array | int = game
    if kind is not None:
        met = game * opponent.start.shape[1] + kind
        opponent = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), opponent)
    opponent = side_by_side(opponent)
    chex.assert_shape(opponent.start, (None,))
    met = met if len(opponent.start) > 1 else 0
    if opening:
        first = jnp.arange(len(opponent.start)) + len(opponent.moves)
        after = opponent.next_state[opponent.start]
        opponent = opponent._replace(
            moves=jnp.concatenate([opponent.moves, opponent.opening]),
            next_state=jnp.concatenate([opponent.next_state, after]),
            start=first,
        )
    return _Machine(opponent, met)


class _Arena(NamedTuple):
    """What every round of a rollout needs.

    Attributes:
      memory: of the agents.
      side: the other side.
      probs: `[num_players, num_games * num_prompts, 3]` of the policy tables.
      rewards: `[num_players, num_games, num_playable, 3, num_answers]` by the agent's state.
      noise: see `Environment`.
      player: `[num_players, 1]`, who looks something up.
      game: `[num_episodes]`, or 0 for the only one.
    """

    memory: Memory
    side: _Machine | _EachOther
    probs: jax.Array
    rewards: jax.Array
    noise: np.ndarray | jax.Array | None
    player: jax.Array
    game: jax.Array | int

    def prompt(self, state: jax.Array, order: jax.Array) -> jax.Array:
        """What the agents see; the prompts of the games follow each other."""
        return self.game * self.memory.num_prompts + self.memory.prompt(state, order)


def _make_arena(
    key: jax.Array,
    log_probs: jax.Array,
    environment: Environment,
    *,
    memory: Memory,
    num_episodes: int,
) -> _Arena:
    rewards = jnp.asarray(environment.rewards)
    alone = environment.opponent is not None
    if alone:
        rewards = rewards[None]
    num_players, num_games = rewards.shape[:2]
    num_answers = memory.num_moves if alone else 3
    chex.assert_shape(rewards, (1 if alone else 2, num_games, memory.num_previous, 3, num_answers))
    chex.assert_shape(log_probs, (num_players, num_games * memory.num_prompts, 3))
    game = jnp.arange(num_episodes) % num_games if num_games > 1 else 0
    side: _Machine | _EachOther = _EachOther()
    if environment.opponent is not None:
        kind = None
        if environment.chances is not None:
            kind_key = jax.random.fold_in(key, _KIND_TAG)
            log_chances = jnp.log(environment.chances)
            kind = jax.random.categorical(kind_key, log_chances, shape=(num_episodes,))
        side = _meet_machines(environment.opponent, memory.opening, game=game, kind=kind)
    return _Arena(
        memory=memory,
        side=side,
        probs=jnp.exp(log_probs),
        rewards=rewards[:, :, memory.previous[: memory.num_playable]],
        noise=environment.noise,
        player=jnp.arange(num_players)[:, None],
        game=game,
    )


def _remembered_rounds(
    key: jax.Array, arena: _Arena, shape: tuple[int, int], draws: Draws | None
) -> tuple[jax.Array, Any]:
    """The agents' memories and the other side's states before the first round."""
    memory, side = arena.memory, arena.side
    state, theirs = jnp.full(shape, memory.start), side.begin(shape)
    for index in range(memory.opening):
        round_key = jax.random.fold_in(key, index) if index else key
        uniform, order = _uniform_and_order(round_key, shape)
        own, (move, _) = order % 2, side.move(theirs, uniform)
        if draws is not None:
            both = jnp.stack([draws.own, draws.other])
            own, move = both[: shape[0]], both[1:]
        _, other = side.answer(move, own, own)
        state, theirs = memory.after(state, own, other), side.follow(theirs, other, own)
    return state, theirs


def _play_round(
    arena: _Arena, carry: tuple[jax.Array, Any], uniform: jax.Array, order: jax.Array, coin: Any
) -> tuple[tuple[jax.Array, Any], dict[str, jax.Array]]:
    """One round of all episodes.

    Args:
      arena: constant.
      carry: the agents' memories `[num_players, num_episodes]` and the other side's states.
      uniform: numbers in [0, 1), like the memories.
      order: label orders, like the memories.
      coin: `[num_episodes]`, see `Draws`, or None.

    Returns:
      What is carried on, and fields of `Trajectories`, `[num_players, num_episodes]` each.
    """
    state, theirs = carry
    memory, side, player = arena.memory, arena.side, arena.player
    move, rest = side.move(theirs, uniform, coin)
    prompt = arena.prompt(state, order)
    chances = [look_up(arena.probs[..., outcome], player, prompt) for outcome in (0, 1)]
    outcome, rest = _invert(rest, chances)
    happened = _tremble(outcome, rest, arena.noise)
    own = memory.counted(state, happened)
    answer, other = side.answer(move, happened, own)
    seen = {
        "prompt": prompt.astype(jnp.int16),
        "previous": memory.newest(state).astype(jnp.int8),
        "outcome": outcome.astype(jnp.int8),
        "other_action": answer.astype(jnp.int8),
        "reward": look_up(arena.rewards, player, arena.game, state, happened, answer),
    }
    return (memory.after(state, own, other), side.follow(theirs, other, own)), seen


def rollout(
    key: jax.Array,
    log_probs: jax.Array,
    environment: Environment,
    *,
    memory: Memory,
    num_episodes: int,
    num_rounds: int,
    draws: Draws | None = None,
) -> Trajectories:
    """Plays episodes of the iterated game, one agent against a machine or two against each other.

    An episode begins with as many remembered rounds as the memory needs: the agents' moves are fair
    coins, the machine's follow `Opponent.opening` and then its states. Of n games each is played by
    every n-th episode; of several opponents each episode draws one. Two agents move at once; each
    remembers its own move first.

    Args:
      key: PRNG key.
      log_probs: `[num_players, num_games * num_prompts, 3]` of the policy tables; one player if
        there is an opponent, else two.
      environment: the opponent and the rewards.
      memory: of the agents.
      num_episodes, num_rounds: static sizes.
      draws: if given, only the agents' own choices come from the key.
    """
    start_key, rounds_key = jax.random.split(key)
    arena = _make_arena(start_key, log_probs, environment, memory=memory, num_episodes=num_episodes)
    shape = len(log_probs), num_episodes

    def play(carry, xs):
        key, order, coin = xs
        uniform, drawn = _uniform_and_order(key, shape)
        return _play_round(arena, carry, uniform, drawn if order is None else order, coin)

    keys = jax.random.split(rounds_key, num_rounds + 1)
    carry = _remembered_rounds(start_key, arena, shape, draws)
    orders = None if draws is None else jnp.moveaxis(draws.order, 0, 1)
    coins = None if draws is None else draws.coin
    (state, _), rounds = jax.lax.scan(play, carry, (keys[:-1], orders, coins))
    _, order = _uniform_and_order(keys[-1], shape)
    last_prompt = arena.prompt(state, order).astype(jnp.int16)
    rounds = {name: jnp.moveaxis(field, 1, 0) for name, field in rounds.items()}
    return Trajectories(**rounds, last_prompt=last_prompt)
