"""Opponents as data: probabilistic Moore machines that play a 2x2 game against the agent.

A machine in state s plays C with probability `p_cooperate[s]`, then moves to
`next_state[s, opponent's move, agent's move]`. When the agent's move is illegal, its last legal
move stands in for it, as in arXiv 2410.01639.

An episode begins with a *remembered round* that was never played (the prompt always shows one):
`start_state` says where the machine is after it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxmoral.errors import choose


class Opponent(NamedTuple):
    """A Moore machine.

    Attributes:
      p_cooperate: `[num_states]` probability of C.
      next_state: `[num_states, 2 (opponent's move), 2 (agent's move)]` int32.
      start_state: `[2 (agent's remembered move), 2 (opponent's)]` int32.
      p_remembered_cooperate: `[]` probability that the opponent's remembered move is C.
    """

    p_cooperate: np.ndarray | jax.Array
    next_state: np.ndarray | jax.Array
    start_state: np.ndarray | jax.Array
    p_remembered_cooperate: np.ndarray | jax.Array


def memoryless(p_cooperate: float) -> Opponent:
    """An opponent that plays C with one probability, in the remembered round as well."""
    return Opponent(
        p_cooperate=np.array([p_cooperate], np.float32),
        next_state=np.zeros((1, 2, 2), np.int32),
        start_state=np.zeros((2, 2), np.int32),
        p_remembered_cooperate=np.array(p_cooperate, np.float32),
    )


def tit_for_tat() -> Opponent:
    """Repeats the agent's last legal move; its first move answers the remembered round."""
    agents_move = np.array([0, 1], np.int32)
    return Opponent(
        p_cooperate=np.array([1.0, 0.0], np.float32),
        next_state=np.broadcast_to(agents_move, (2, 2, 2)).copy(),
        start_state=np.broadcast_to(agents_move[:, None], (2, 2)).copy(),
        p_remembered_cooperate=np.array(0.5, np.float32),
    )


OPPONENTS: dict[str, Opponent] = {
    "tit-for-tat": tit_for_tat(),
    "random": memoryless(0.5),
    "always-cooperate": memoryless(1.0),
    "always-defect": memoryless(0.0),
}


def get_opponent(name: str) -> Opponent:
    """Looks an opponent up by name; raises UserError that lists the names when there is none."""
    return choose("opponent", name, OPPONENTS)


def stack(opponents: Sequence[Opponent]) -> Opponent:
    """Stacks machines on a new leading axis, padded to one number of states for `vmap`.

    Padding states are never entered: no real state leads to one.
    """
    size = max(len(opponent.p_cooperate) for opponent in opponents)

    def pad(opponent: Opponent) -> Opponent:
        missing = size - len(opponent.p_cooperate)
        return opponent._replace(
            p_cooperate=np.pad(opponent.p_cooperate, (0, missing)),
            next_state=np.pad(opponent.next_state, ((0, missing), (0, 0), (0, 0))),
        )

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(pad, opponents))
