"""Two players against each other in closed form: agents, machines, crowds, in any combination.

A player is a machine with random outcomes. Two of them make a Markov chain whose states are (round
before, one's state, the other's state); only those that can be reached are kept. What happens in
an episode is a few vector-matrix products, what happens in the long run one linear solve, all in
float64. Players that differ in their probabilities only share the chain's shape, so whole groups
are computed at once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.world.machines import Opponent
from jaxmoral.world.memory import Memory

# The long run is the limit of the mean over ever more rounds, here as a discounted mean: of an
# episode that goes on with this probability after each round.
_GOES_ON = 1 - 1e-9


class Structure(NamedTuple):
    """What players have in common who differ in their probabilities only.

    Attributes:
      effective: `[num_states, num_outcomes]`, the move an outcome counts as.
      next_state: `[num_states, own moves, other's moves]`.
      start: the first state.
      tosses: how many remembered rounds the player needs, in which it tosses coins.
    """

    effective: np.ndarray
    next_state: np.ndarray
    start: int
    tosses: int

    @property
    def key(self) -> tuple:
        """Equal for equal structures."""
        arrays = (self.effective, self.next_state)
        written = ((x.shape, np.ascontiguousarray(x).tobytes()) for x in arrays)
        return (*written, self.start, self.tosses)


class Player(NamedTuple):
    """A player.

    Attributes:
      structure: how it moves on.
      outcomes: `[num_states, num_outcomes]` float64 probabilities.
      opening: `[own moves]` probabilities of its first remembered move, if there is one.
    """

    structure: Structure
    outcomes: np.ndarray
    opening: np.ndarray


def agent_player(memory: Memory, policy: np.ndarray, *, noise: float = 0.0) -> Player:
    """An agent with outcomes C, D and illegal.

    Args:
      memory: what it remembers.
      policy: `[num_histories, 3]` probabilities.
      noise: that a legal answer comes out as the other move.

    Raises:
      UserError: the policy is of another memory, or not finite (its training diverged).
    """
    if len(policy) != len(memory.histories) or not np.isfinite(policy).all():
        raise UserError("the agent's policy has other histories than its game, or is not finite")
    last = len(memory.histories) - 1
    outcomes = np.asarray(policy, np.float64)[np.minimum(memory.shown, last)]
    outcomes = outcomes / outcomes.sum(-1, keepdims=True)
    flipped = outcomes[:, [1, 0, 2]]
    structure = Structure(
        effective=memory.effective,
        next_state=memory.next_state,
        start=int(memory.start),
        tosses=memory.opening,
    )
    return Player(structure, (1 - noise) * outcomes + noise * flipped, np.array([0.5, 0.5]))


def machine_player(opponent: Opponent) -> Player:
    """An opponent, or all the others of a larger game together."""
    moves = np.asarray(opponent.moves, np.float64)
    structure = Structure(
        effective=np.tile(np.arange(moves.shape[1]), (len(moves), 1)),
        next_state=np.asarray(opponent.next_state),
        start=int(opponent.start),
        tosses=0,
    )
    opening = np.asarray(opponent.opening, np.float64)
    return Player(structure, moves / moves.sum(-1, keepdims=True), opening / opening.sum())


class Meeting(NamedTuple):
    """What two groups of players do to each other.

    Attributes:
      episode: `[num_ours, num_others, num_previous, our outcomes, their outcomes]` shares of
        rounds in an episode, the previous round as ours saw it (none last).
      long_run: the same over ever more rounds.
    """

    episode: np.ndarray
    long_run: np.ndarray


class State(NamedTuple):
    """Of a meeting: the round before as ours saw it, and the states both sides are in."""

    previous: int
    ours: int
    theirs: int


def meet(ours: Sequence[Player], others: Sequence[Player], *, num_rounds: int) -> Meeting:
    """Lets every player of one group meet every player of another, all of one structure each.

    If any of the two needs remembered rounds, both go through them (see `opponents`); else both
    begin at their start.
    """
    sides = ours[0].structure, others[0].structure
    beginnings = [_opening(player, other) for player in ours for other in others]
    states = _reachable(*sides, [state for begin in beginnings for state in begin])
    index = {state: place for place, state in enumerate(states)}
    start = np.zeros((len(ours), len(others), len(states)))
    for row, begin in zip(start.reshape(-1, len(states)), beginnings, strict=True):
        for state, probability in begin.items():
            row[index[state]] = probability
    rounds, matrix = _transitions(ours, others, index)

    now = start
    visited = np.zeros(start.shape)
    for _ in range(num_rounds):
        visited += now / num_rounds
        now = np.einsum("ikj,ikjt->ikt", now, matrix)
    system = np.eye(len(states)) - _GOES_ON * matrix.swapaxes(-1, -2)
    forever = np.linalg.solve(system, (1 - _GOES_ON) * start[..., None])[..., 0]
    forever = np.maximum(forever, 0)
    forever /= forever.sum(-1, keepdims=True)

    kind = np.eye(_no_round(sides[0]) + 1)[[state.previous for state in states]]

    def shares(visits: np.ndarray) -> np.ndarray:
        return np.einsum("ikj,ikjob,jp->ikpob", visits, rounds, kind)

    return Meeting(episode=shares(visited), long_run=shares(forever))


def _transitions(
    ours: Sequence[Player], others: Sequence[Player], index: Mapping[State, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What happens in each state of a meeting.

    Args:
      ours, others: the groups.
      index: the states' places, in order.

    Returns:
      `[num_ours, num_others, num_states, our outcomes, their outcomes]` probabilities of a round,
      and `[num_ours, num_others, num_states, num_states]` of the state that follows.
    """
    a, b = ours[0].structure, others[0].structure
    follows = np.zeros((len(index), *a.next_state.shape[1:]), np.int64)
    for state, place in index.items():
        for own, other in np.ndindex(*follows.shape[1:]):
            follows[place, own, other] = index[_advance(a, b, state, own=own, other=other)]

    mine, theirs = [state.ours for state in index], [state.theirs for state in index]
    p = np.stack([player.outcomes for player in ours])[:, mine]
    q = np.stack([player.outcomes for player in others])[:, theirs]
    rounds = np.einsum("ijo,kjb->ikjob", p, q)
    here = np.arange(len(index))
    arrives = follows[
        here[:, None, None], a.effective[mine][:, :, None], b.effective[theirs][:, None, :]
    ]
    matrix = np.zeros((*rounds.shape[:3], len(index)))
    for outcome, other in np.ndindex(*arrives.shape[1:]):
        matrix[:, :, here, arrives[:, outcome, other]] += rounds[..., outcome, other]
    return rounds, matrix


def _no_round(structure: Structure) -> int:
    """The number of the previous round where there is none, after all that there can be."""
    return structure.next_state.shape[1] * structure.next_state.shape[2]


def _advance(a: Structure, b: Structure, state: State, *, own: int, other: int) -> State:
    return State(
        previous=own * a.next_state.shape[2] + other,
        ours=int(a.next_state[state.ours, own, other]),
        theirs=int(b.next_state[state.theirs, other, own]),
    )


def _opening(ours: Player, theirs: Player) -> dict[State, float]:
    """Where a meeting begins, with probabilities."""
    a, b = ours.structure, theirs.structure
    now = {State(_no_round(a), a.start, b.start): 1.0}
    for index in range(max(a.tosses, b.tosses)):
        following: dict[State, float] = {}
        for state, probability in now.items():
            p = _remembered(ours, state.ours, index=index)
            q = _remembered(theirs, state.theirs, index=index)
            for own, other in np.ndindex(len(p), len(q)):
                weight = probability * p[own] * q[other]
                if weight > 0:
                    after = _advance(a, b, state, own=own, other=other)
                    following[after] = following.get(after, 0.0) + weight
        now = following
    return now


def _remembered(player: Player, state: int, *, index: int) -> np.ndarray:
    """Probabilities of a player's move in the remembered round `index`."""
    structure = player.structure
    if structure.tosses or index == 0:
        return player.opening
    size = structure.next_state.shape[1]
    return np.bincount(structure.effective[state], player.outcomes[state], size)


def _reachable(a: Structure, b: Structure, begin: Sequence[State]) -> list[State]:
    found = dict.fromkeys(begin)
    waiting = list(found)
    while waiting:
        state = waiting.pop()
        for own in set(a.effective[state.ours].tolist()):
            for other in set(b.effective[state.theirs].tolist()):
                after = _advance(a, b, state, own=own, other=other)
                if after not in found:
                    found[after] = None
                    waiting.append(after)
    return sorted(found)


def group_players(players: Sequence[Player]) -> list[list[int]]:
    """Indices of players that share a structure."""
    groups: dict[tuple, list[int]] = {}
    for index, player in enumerate(players):
        groups.setdefault(player.structure.key, []).append(index)
    return list(groups.values())


def best_response(player: Player, payoffs: np.ndarray, *, num_rounds: int) -> float:
    """The most points a round that anyone can get from a player in an episode from its start.

    Whoever plays it knows its state and answers by dynamic programming. From a player that needs
    remembered rounds it is the mean over where these can end.

    Args:
      player: who is exploited.
      payoffs: `[2 (own move), other's moves]` of the exploiter.
      num_rounds: length of an episode.
    """
    structure = player.structure
    num_moves = structure.next_state.shape[1]
    value = np.zeros(len(structure.next_state))
    for _ in range(num_rounds):
        expected = np.zeros((len(value), 2))
        for own, outcome in np.ndindex(2, player.outcomes.shape[1]):
            other = structure.effective[:, outcome]
            after = structure.next_state[np.arange(len(value)), other, own]
            expected[:, own] += player.outcomes[:, outcome] * (payoffs[own, other] + value[after])
        value = expected.max(-1)
    now = {structure.start}
    for _ in range(structure.tosses):
        now = {
            int(structure.next_state[state, own, other])
            for state in now
            for own in range(num_moves)
            for other in (0, 1)
        }
    return float(value[list(now)].mean()) / num_rounds
