"""The others in a game of more than two players, together as one machine."""

from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from typing import NamedTuple

import numpy as np

from jaxmoral.errors import build, check_number, check_whole
from jaxmoral.world.machines import Opponent


class Contributor(NamedTuple):
    """One of several others in a game of N players; all of them are alike.

    Attributes:
      cooperate: `[2 (its own last move), N (co-operators among the rest)]` probability of C.
      first: of C in the first round.
    """

    cooperate: np.ndarray
    first: float


def steady(num_players: int, p_cooperate: float) -> Contributor:
    """Contributes with one probability, whatever happened."""
    p = check_number("p_cooperate", p_cooperate, 0.0, 1.0)
    return Contributor(np.full((2, num_players), p), p)


def conditional(num_players: int, threshold: float | None = None) -> Contributor:
    """Contributes first, and then if at least `threshold` of the rest did (by default, half)."""
    needed = num_players // 2 if threshold is None else threshold
    needed = check_whole("threshold", needed, 0, num_players - 1)
    cooperates = (np.arange(num_players) >= needed) * 1.0
    return Contributor(np.tile(cooperates, (2, 1)), 1.0)


def noisy_contributor(num_players: int, name: str, noise: float) -> Contributor:
    """Another kind of contributor with a trembling hand."""
    plain = get_contributor(num_players, name)
    noise = check_number("noise", noise, 0.0, 1.0)

    def blur(p):
        return (1 - noise) * p + noise * (1 - p)

    return Contributor(blur(plain.cooperate), blur(plain.first))


# What the others do in a game of more than two players (after Fischbacher et al. 2001).
CONTRIBUTORS: dict[str, Callable[..., Contributor]] = {
    "always-cooperate": partial(steady, p_cooperate=1.0),
    "always-defect": partial(steady, p_cooperate=0.0),
    "random": lambda num_players, p_cooperate=0.5: steady(num_players, p_cooperate),
    "conditional": conditional,
    "noisy": noisy_contributor,
}


def get_contributor(num_players: int, name: str) -> Contributor:
    """The contributor of a name, as in "noisy(conditional,0.1)"; raises UserError if unknown."""
    return build("opponent", name, {}, CONTRIBUTORS, (num_players,))


def crowd(contributor: Contributor, num_players: int) -> Opponent:
    """All the other players of a game together, exactly.

    They are alike, so the state is what they saw last: the agent's move, and how many of them
    defected. Those who co-operated saw one co-operator less than those who did not.
    """
    others = num_players - 1
    moves = [_binomial_sum([(others, contributor.first)])]
    for agent in (0, 1):
        for defectors in range(num_players):
            cooperators = others - defectors
            seen = cooperators + (agent == 0)
            kept = contributor.cooperate[0, max(seen - 1, 0)]
            left = contributor.cooperate[1, min(seen, others)]
            moves.append(_binomial_sum([(cooperators, kept), (defectors, left)]))
    step = 1 + np.arange(2) * num_players + np.arange(num_players)[:, None]  # [defectors, agent]
    table = np.array(moves, np.float32)
    next_state = np.broadcast_to(step, (len(table), num_players, 2)).astype(np.int32)
    return Opponent(table, next_state, np.array(0, np.int32), table[0])


def _binomial_sum(parts: Sequence[tuple[int, float]]) -> np.ndarray:
    """Distribution of the number of D among groups of `size` who each play C with probability p."""
    total = np.ones(1)
    for size, p in parts:
        k = np.arange(size + 1)
        ways = np.array([comb(size, int(j)) for j in k], float)
        total = np.convolve(total, ways * (1 - p) ** k * p ** (size - k))
    return total
