"""Opponents as data: Moore machines with random moves that play a game against the agent.

A machine in state s plays move j with probability `moves[s, j]`, then goes to
`next_state[s, j, agent's move]`. With two players move 0 is C and 1 is D; with N the machine is all
the others together and its move is how many of them defect. When the agent's answer is illegal, its
last legal move stands in for it, as in arXiv 2410.01639.

Most episodes begin with *remembered rounds* that were never played but that the prompt shows. The
machine goes through them as if it had played them, against an agent that tosses coins. Its own
first remembered move is `opening`, the move it really begins with (for tit-for-tat a fair coin, as
in the paper).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.errors import UserError, check_number, check_whole
from jaxmoral.world.memory import ILLEGAL, Memory


class Opponent(NamedTuple):
    """A Moore machine against which one game is played.

    Attributes:
      moves: `[num_states, num_moves]` float32 probabilities.
      next_state: `[num_states, num_moves (its own move), 2 (agent's move)]` int32.
      start: `[]` int32, the state before any round.
      opening: `[num_moves]` float32 probabilities of the first remembered move.

    >>> jaxmoral.OPPONENTS["tit-for-tat"].moves[:, 0]  # P(C) in its two states
    array([1., 0.], dtype=float32)
    """

    moves: np.ndarray | jax.Array
    next_state: np.ndarray | jax.Array
    start: np.ndarray | jax.Array
    opening: np.ndarray | jax.Array


def machine(
    cooperate: Sequence[float], transitions: Sequence[Sequence[int]], start: int = 0
) -> Opponent:
    """A machine for two players.

    Args:
      cooperate: each state's probability of C.
      transitions: per state, where it goes after (its own move, the agent's) = CC, CD, DC, DD.
      start: the first state.

    Raises:
      UserError: a probability is none, a transition is missing or leads to no state.

    >>> grim = jaxmoral.machine([1, 0], [[0, 1, 0, 1], [1, 1, 1, 1]])
    >>> int(grim.next_state[0, 0, 1])  # after its own C and the agent's D
    1
    """
    p = [check_number("cooperate", value, 0.0, 1.0) for value in cooperate]
    if len(transitions) != len(p) or any(len(row) != 4 for row in transitions):
        raise UserError(
            f"transitions: needs {len(p)} rows (one a state) of 4 states, for CC, CD, DC, DD"
        )
    for row in transitions:
        for state in row:
            check_whole("transitions", state, 0, len(p) - 1)
    first = check_whole("start", start, 0, len(p) - 1)
    moves = np.stack([p, 1 - np.array(p)], axis=-1).astype(np.float32)
    next_state = np.array(transitions, np.int32).reshape(-1, 2, 2)
    return Opponent(moves, next_state, np.array(first, np.int32), moves[first])


def watcher(states: Mapping[str, tuple[str, str, str]]) -> Opponent:
    """A machine for two players that goes by the agent's moves alone.

    Args:
      states: by name, its first one first; of each what it plays, "C" or "D", and the names of the
        states it goes to after the agent's C and after the agent's D.
    """
    numbers = {name: number for number, name in enumerate(states)}
    cooperate = [float(move == "C") for move, _, _ in states.values()]
    after = [[numbers[after_c], numbers[after_d]] for _, after_c, after_d in states.values()]
    return machine(cooperate, [row * 2 for row in after])  # the same after its own C and D


def memoryless(p_cooperate: float) -> Opponent:
    """Plays C with one probability, whatever happened.

    >>> jaxmoral.memoryless(0.75).moves
    array([[0.75, 0.25]], dtype=float32)
    """
    return machine([p_cooperate], [[0, 0, 0, 0]])


def memory_one(cc: float, cd: float, dc: float, dd: float, first: float = 1.0) -> Opponent:
    """Plays C with a probability that depends on the last round, its own move named first.

    Args:
      cc, cd, dc, dd: the four probabilities.
      first: the probability of C in the first round.

    >>> jaxmoral.memory_one(1, 0, 1, 0.25).moves[:, 0]
    array([1.  , 0.  , 1.  , 0.25, 1.  ], dtype=float32)
    """
    last_round = [[0, 1, 2, 3]] * 5
    return machine([cc, cd, dc, dd, first], last_round, start=4)


def noisy(opponent: Opponent, noise: float) -> Opponent:
    """A trembling hand: each move comes out as the other one with probability `noise`."""
    noise = check_number("noise", noise, 0.0, 1.0)
    moves, opening = (
        ((1 - noise) * chances + noise * chances[..., ::-1]).astype(np.float32)
        for chances in (opponent.moves, opponent.opening)
    )
    return opponent._replace(moves=moves, opening=opening)


# Of machines with a state for each move that they play next.
C, D = 0, 1


def next_move(after: Sequence[int], first: int = C) -> Opponent:
    """A machine whose state is the move that it plays next.

    Args:
      after: what it plays after (its own move, the agent's) = CC, CD, DC, DD.
      first: what it plays first.
    """
    return machine([1, 0], [after, after], first)


def agent_machine(memory: Memory, policy: np.ndarray) -> Opponent:
    """An agent that does not learn, as a machine: what counts instead of an illegal answer, too.

    In remembered rounds it tosses coins.

    Args:
      memory: of the agent.
      policy: `[num_histories, 3]` probabilities of its outcomes; see `chain.memory_policy`.
    """
    outcomes = np.asarray(policy, np.float32)[memory.shown[: memory.num_playable]]
    counted = memory.effective[: memory.num_playable, ILLEGAL]
    moves = np.full((len(memory.previous), 2), 0.5, np.float32)
    moves[: memory.num_playable] = outcomes[:, :ILLEGAL]
    moves[np.arange(len(counted)), counted] += outcomes[:, ILLEGAL]
    coin = np.full(2, 0.5, np.float32)
    return Opponent(moves, memory.next_state, np.array(memory.start, np.int32), coin)


def stack(opponents: Sequence[Opponent]) -> Opponent:
    """Stacks machines on a new leading axis, padded to one number of states for `vmap`.

    Padding states are never entered: no real state leads to one.
    """
    size = max(opponent.moves.shape[-2] for opponent in opponents)

    def pad(opponent: Opponent) -> Opponent:
        missing = (0, size - opponent.moves.shape[-2])
        lead = [(0, 0)] * np.ndim(opponent.start)  # machines that are stacks themselves
        return opponent._replace(
            moves=np.pad(opponent.moves, (*lead, missing, (0, 0)), mode="edge"),
            next_state=np.pad(opponent.next_state, (*lead, missing, (0, 0), (0, 0))),
        )

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(pad, opponents))


def side_by_side(opponent: Opponent) -> Opponent:
    """A stack of machines as one whose states are all of theirs.

    Its `start` `[num_machines]` and `opening` `[num_machines, num_moves]` are each machine's. A
    machine that is no stack counts as a stack of one.
    """
    if jnp.ndim(opponent.start) == 0:
        opponent = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], opponent)
    num_machines, num_states, num_moves = opponent.moves.shape
    first = jnp.arange(num_machines) * num_states
    return Opponent(
        moves=jnp.reshape(opponent.moves, (-1, num_moves)),
        next_state=jnp.reshape(
            opponent.next_state + first[:, None, None, None], (-1, num_moves, 2)
        ),
        start=opponent.start + first,
        opening=jnp.asarray(opponent.opening),
    )
