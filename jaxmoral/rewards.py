"""Intrinsic rewards: pure functions of one round, a registry, and their tables over a game.

A reward looks at one `Cell` (this round's two moves, the two moves the prompt showed, and the
points) and returns a number. It must be written with array operations (`where`, arithmetic): it
is called once per game on arrays that hold every cell, and rollouts only look its table up.
Illegal answers never reach it; they earn `r_illegal`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmoral.errors import choose

ILLEGAL = 2  # the third outcome, after 0 for C and 1 for D


class Cell(NamedTuple):
    """One round as a reward sees it; the fields are arrays that broadcast together."""

    own_action: np.ndarray
    other_action: np.ndarray
    previous_own: np.ndarray
    previous_other: np.ndarray
    own_payoff: np.ndarray
    other_payoff: np.ndarray


Reward = Callable[[Cell, float], np.ndarray]


def game_payoff(cell: Cell, xi: float) -> np.ndarray:
    """The selfish reward: the agent's own points."""
    return cell.own_payoff


def deontological(cell: Cell, xi: float) -> np.ndarray:
    """-xi for a defection on an opponent whose previous move was C, else 0."""
    return np.where((cell.own_action == 1) & (cell.previous_other == 0), -xi, 0.0)


def utilitarian(cell: Cell, xi: float) -> np.ndarray:
    """The sum of both players' points."""
    return cell.own_payoff + cell.other_payoff


def game_deontological(cell: Cell, xi: float) -> np.ndarray:
    """The agent's own points, and -xi for a defection on a cooperator."""
    return game_payoff(cell, xi) + deontological(cell, xi)


# arXiv 2410.01639, Table 1.
REWARDS: dict[str, Reward] = {
    "game": game_payoff,
    "deontological": deontological,
    "utilitarian": utilitarian,
    "game+deontological": game_deontological,
}


def get_reward(name: str, key: str = "reward.name") -> Reward:
    """Looks a reward up by name; raises UserError that lists the names when there is none."""
    return choose(key, name, REWARDS)


def reward_table(payoffs: np.ndarray, reward: Reward, xi: float, r_illegal: float) -> np.ndarray:
    """Tabulates a reward over every round a game can have.

    Args:
      payoffs: `[2, 2, 2]` of the game.
      reward: the reward of legal moves.
      xi: the deontological penalty, in points.
      r_illegal: what an illegal answer earns, in points.

    Returns:
      `[2 (previous own), 2 (previous other), 3 (own outcome C, D, illegal), 2 (other)]` float32.
    """
    previous_own, previous_other, own, other = np.indices((2, 2, 2, 2))
    cell = Cell(own, other, previous_own, previous_other, *payoffs[:, own, other])
    table = np.full((2, 2, 3, 2), r_illegal, np.float32)
    table[:, :, :ILLEGAL] = reward(cell, xi)
    return table


# What the paper's code gives when the opponent answers illegally differs by reward.
_PAPER_RULES = {"game": "last-move", "utilitarian": "zero", "game+deontological": "penalty"}


def add_illegal_opponent(
    table: np.ndarray, rule: str, reward_name: str, r_illegal: float
) -> np.ndarray:
    """Extends a reward table by the rounds in which the opponent's answer is illegal.

    Args:
      table: from `reward_table`.
      rule: see `jaxmoral.config.EnvConfig.opponent_illegal`.
      reward_name: decides what the rule "paper" is.
      r_illegal: what an illegal answer earns, in points.

    Returns:
      `[2 (previous own), 2 (previous other), 3 (own outcome), 3 (other's outcome)]` float32.
    """
    if rule == "paper":
        rule = _PAPER_RULES.get(reward_name, "last-move")
    previous_other = np.arange(2)
    column = {
        "last-move": table[:, previous_other, :, previous_other].swapaxes(0, 1),
        "zero": np.zeros_like(table[..., 0]),
        "penalty": np.full_like(table[..., 0], r_illegal),
    }[rule].copy()
    column[:, :, ILLEGAL] = r_illegal
    return np.concatenate([table, column[..., None]], axis=-1)


def bounds(table: np.ndarray) -> tuple[float, float]:
    """The smallest and largest reward of any round, illegal answers included."""
    return float(table.min()), float(table.max())
