"""What an agent remembers of an episode: histories of a few rounds as the states of a machine.

A round is one of `2 * num_moves` cells, `own * num_moves + other`. A history of L rounds has the
number whose base-(2 * num_moves) digits are its cells, the newest last. Shorter histories, at the
start of an episode that remembers nothing yet, come after the full ones.

The rule of a round is the same wherever one is played: an outcome counts as a move (`counted`), and
with the other's move it leads into the next state (`after`).

At least one round is kept even if the prompt shows none, because rewards may look at it.
"""

import itertools
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

History = tuple[tuple[int, int], ...]  # (own, other) per round, oldest first
# Of the labels in a prompt, drawn anew every round. Prompt `history * NUM_ORDERS + order` shows a
# history in an order.
NUM_ORDERS = 4
OUTCOMES = ("C", "D", "illegal")  # of a round, by their numbers
ILLEGAL = 2


def look_up(table: np.ndarray | jax.Array, *index: jax.Array | int) -> jax.Array:
    """`table[index]` for indices that are known to be in range, which is faster."""
    flat = index[0]
    for size, part in zip(table.shape[1:], index[1:], strict=True):
        flat = flat * size + part
    return jnp.ravel(table).at[flat].get(mode="promise_in_bounds", wrap_negative_indices=False)


class Memory(NamedTuple):
    """The states of remembering; all arrays are constants of a run.

    Attributes:
      num_moves: of the other side: 2, or the number of players of a larger game.
      opening: rounds drawn at random before the first; 0 if an episode starts with a blank memory.
      start: the state before those.
      effective: `[num_states, 3]` int32, the move that an outcome counts as: instead of an illegal
        answer the last legal move, C before any.
      next_state: `[num_states, 2 (own move that counts), num_moves]` int32.
      previous: `[num_states]` int32, the newest round's cell; `2 * num_moves` if there is none.
      shown: `[num_states]` int32, which of `histories` the prompt shows.
      histories: those a prompt can show.
    """

    num_moves: int
    opening: int
    start: int
    effective: np.ndarray
    next_state: np.ndarray
    previous: np.ndarray
    shown: np.ndarray
    histories: tuple[History, ...]

    @property
    def num_previous(self) -> int:
        """Kinds of previous rounds, "none" included."""
        return 2 * self.num_moves + 1

    @property
    def num_prompts(self) -> int:
        """Every history in every order of the labels."""
        return len(self.histories) * NUM_ORDERS

    @property
    def names(self) -> list[str]:
        """What the histories are called, e.g. "CC" or "CC CD"."""
        return [history_name(history, self.num_moves) for history in self.histories]

    @property
    def num_playable(self) -> int:
        """How many states a round can be played in: full histories, or all from a blank start."""
        return (2 * self.num_moves) ** self.opening if self.opening else len(self.previous)

    # The rule, for arrays of states in which a round can be played. A full history is a number of
    # known digits, and to reckon with those costs less than to look tables up.

    def newest(self, state: jax.Array) -> jax.Array:
        """The cell of the round before, as `previous`."""
        if not self.opening:
            return look_up(self.previous, state)
        return jax.lax.rem(state, 2 * self.num_moves)

    def prompt(self, state: jax.Array, order: jax.Array) -> jax.Array:
        """The prompt that shows what is remembered, with the labels in an order."""
        if len(self.histories) == 1:
            return order
        history = state if self.opening else look_up(self.shown, state)
        return history * NUM_ORDERS + order

    def counted(self, state: jax.Array, outcome: jax.Array) -> jax.Array:
        """The move that an outcome counts as, as `effective`."""
        if not self.opening:
            return look_up(self.effective, state, outcome)
        last = jax.lax.div(self.newest(state), self.num_moves)
        return jnp.where(outcome == ILLEGAL, last, outcome)

    def after(self, state: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
        """The state after a round, as `next_state`.

        A full history forgets its oldest round, so `opening` rounds lead from any number, `start`
        included, to the history that they are.
        """
        if not self.opening:
            return look_up(self.next_state, state, own, other)
        cells = 2 * self.num_moves
        newest = own * self.num_moves + other
        return jax.lax.rem(state * cells + newest, cells**self.opening)


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
    next_state = np.zeros((len(histories), 2, num_moves), np.int32)
    for state, history in enumerate(histories):
        for own, other in cells:
            next_state[state, own, other] = numbers[(*history, (own, other))[-kept:]]
    effective = np.tile(np.array([0, 1, 0], np.int32), (len(histories), 1))
    effective[:, ILLEGAL] = [history[-1][0] if history else 0 for history in histories]
    none = 2 * num_moves
    previous = [h[-1][0] * num_moves + h[-1][1] if h else none for h in histories]
    shown = np.arange(len(histories)) if num_rounds else np.zeros(len(histories))
    full = len(cells) ** kept
    visible = histories if blank else histories[:full]
    return Memory(
        num_moves,
        opening=0 if blank else kept,
        start=numbers[()],
        effective=effective,
        next_state=next_state,
        previous=np.array(previous, np.int32),
        shown=shown.astype(np.int32),
        histories=tuple(visible) if num_rounds else ((),),
    )


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
