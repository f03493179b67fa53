"""What an agent remembers of an episode: histories of a few rounds as the states of a machine.

A round is one of `2 * num_moves` cells, `own * num_moves + other`. A history of L rounds has the
number whose base-(2 * num_moves) digits are its cells, the newest last, so remembering a round is
a table look-up. Shorter histories, at the start of an episode that remembers nothing yet, come
after the full ones.

At least one round is kept even if the prompt shows none, because rewards may look at it.
"""

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np

History = tuple[tuple[int, int], ...]  # (own, other) per round, oldest first
# Of the labels in a prompt, drawn anew every round. Prompt `history * NUM_ORDERS + order` shows a
# history in an order.
NUM_ORDERS = 4
ILLEGAL = 2  # the third outcome, after 0 for C and 1 for D


class Memory(NamedTuple):
    """The states of remembering; all arrays are constants of a run.

    Attributes:
      num_moves: of the other side: 2, or the number of players of a larger game.
      opening: rounds drawn at random before the first; 0 if an episode starts with a blank memory.
      start: the state before those.
      next_state: `[num_states, 3 (own outcome), num_moves]` int32. After an illegal answer the last
        legal move (C before any) takes its place.
      last_own: `[num_states]` int32, that last legal move.
      previous: `[num_states]` int32, the newest round's cell; `2 * num_moves` if there is none.
      shown: `[num_states]` int32, which of `histories` the prompt shows.
      histories: those a prompt can show.
    """

    num_moves: int
    opening: int
    start: int
    next_state: np.ndarray
    last_own: np.ndarray
    previous: np.ndarray
    shown: np.ndarray
    histories: tuple[History, ...]

    @property
    def num_previous(self) -> int:
        """Kinds of previous rounds, "none" included."""
        return 2 * self.num_moves + 1


@cache
def make_memory(num_rounds: int = 1, num_moves: int = 2, blank: bool = False) -> Memory:
    """Builds the tables.

    Args:
      num_rounds: how many rounds a prompt shows.
      num_moves: of the other side.
      blank: whether episodes start without a remembered round.
    """
    kept = max(num_rounds, 1)
    cells = list(itertools.product(range(2), range(num_moves)))
    histories: list[History] = list(itertools.product(cells, repeat=kept))
    # Shorter ones are needed on the way to the first full one, remembered or played.
    for length in range(kept - 1, -1, -1):
        histories += list(itertools.product(cells, repeat=length))
    numbers = {history: number for number, history in enumerate(histories)}
    next_state = np.zeros((len(histories), 3, num_moves), np.int32)
    last_own = np.array([history[-1][0] if history else 0 for history in histories], np.int32)
    for state, history in enumerate(histories):
        for outcome, other in np.ndindex(3, num_moves):
            own = int(last_own[state]) if outcome == ILLEGAL else outcome
            next_state[state, outcome, other] = numbers[(*history, (own, other))[-kept:]]
    none = 2 * num_moves
    previous = [h[-1][0] * num_moves + h[-1][1] if h else none for h in histories]
    shown = np.arange(len(histories)) if num_rounds else np.zeros(len(histories))
    full = len(cells) ** kept
    visible = histories if blank else histories[:full]
    return Memory(
        num_moves,
        opening=0 if blank else kept,
        start=numbers[()],
        next_state=next_state,
        last_own=last_own,
        previous=np.array(previous, np.int32),
        shown=shown.astype(np.int32),
        histories=tuple(visible) if num_rounds else ((),),
    )


def playable(memory: Memory) -> int:
    """How many states a round can be played in: the full histories, or all from a blank start."""
    if memory.opening:
        return (2 * memory.num_moves) ** memory.opening
    return len(memory.previous)


def after_matrix(num_moves: int) -> np.ndarray:
    """What another player had done before, by the kind of the previous round.

    Of several others each counts in equal parts, so a column tells of one picked at random.

    Returns:
      `[num_previous, 3 (C, D, no round before)]` shares.
    """
    defected = np.tile(np.arange(num_moves) / (num_moves - 1), 2)
    after = np.pad(np.stack([1 - defected, defected], -1), ((0, 1), (0, 1)))
    after[-1, -1] = 1.0
    return after


def cell_name(own: int, other: int, num_moves: int) -> str:
    """ "CD" for an own C and the other's D; "C1" if 1 of several others played D."""
    return "CD"[own] + ("CD"[other] if num_moves == 2 else str(other))


def history_name(history: History, num_moves: int) -> str:
    """Cells, the oldest first, e.g. "CC CD"; "-" for none."""
    return " ".join(cell_name(*cell, num_moves) for cell in history) or "-"
