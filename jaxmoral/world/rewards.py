"""Intrinsic rewards: pure functions of one round, a registry, and their tables over a game.

A reward looks at one `Cell` (this round's moves, the moves of the round before, and the points) and
returns a number. It must be written with array operations (`where`, arithmetic): it is called once
per game on arrays that hold every cell, and rollouts only look its table up. Illegal answers never
reach it; they earn `r_illegal`.

With more than two players, what the other did is the share of the other players that defected, and
the other's points are their mean.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmoral.errors import UserError, build, check_number, of_own_code, split_outside
from jaxmoral.world.games import Game
from jaxmoral.world.memory import ILLEGAL


class Cell(NamedTuple):
    """One round as a reward sees it; the fields are arrays that broadcast together.

    Attributes:
      own_action: 0 for C and 1 for D.
      other_action: likewise; of several others the share that played D.
      previous_own, previous_other: of the round before; nan if there was none.
      own_payoff, other_payoff: points; of several others their mean.
      other_best: the most points the agent could have left the other, given the other's move.
      num_others: 1, or more in a larger game.

    >>> exploited = jaxmoral.Cell(0, 1, 0, 0, 0, 4, other_best=4, num_others=1)
    >>> [jaxmoral.REWARDS[name](exploited, xi=3.0) for name in ("game", "utilitarian")]
    [0, 4]
    """

    own_action: np.ndarray
    other_action: np.ndarray
    previous_own: np.ndarray
    previous_other: np.ndarray
    own_payoff: np.ndarray
    other_payoff: np.ndarray
    other_best: np.ndarray
    num_others: int


Reward = Callable[[Cell, float], np.ndarray]


def game_payoff(cell: Cell, xi: float) -> np.ndarray:
    """The selfish reward: the agent's own points."""
    return cell.own_payoff


def deontological(cell: Cell, xi: float) -> np.ndarray:
    """-xi for a defection on an opponent whose previous move was C, else 0.

    Of several others, in proportion to how many of them co-operated.
    """
    cooperated = np.nan_to_num(1 - cell.previous_other)
    return 0.0 - xi * cooperated * (cell.own_action == 1)


def utilitarian(cell: Cell, xi: float) -> np.ndarray:
    """The sum of all players' points."""
    return cell.own_payoff + cell.num_others * cell.other_payoff


def virtue_equality(cell: Cell, xi: float) -> np.ndarray:
    """1 - |a - b| / (|a| + |b|), and 1 where both are 0 (Tennant et al., IJCAI 2023).

    The absolute values keep it in [0, 1] where points are negative.
    """
    own, other = cell.own_payoff, cell.other_payoff
    total = np.abs(own) + np.abs(other)
    return 1 - np.abs(own - other) / np.where(total == 0, 1, total)


def virtue_kindness(cell: Cell, xi: float) -> np.ndarray:
    """xi for C, whatever comes of it (Tennant et al., IJCAI 2023)."""
    return xi * (cell.own_action == 0)


def maximin(cell: Cell, xi: float) -> np.ndarray:
    """The points of whoever has least (Rawls 1971); of several others their mean counts."""
    return np.minimum(cell.own_payoff, cell.other_payoff)


def harm_avoidance(cell: Cell, xi: float) -> np.ndarray:
    """Minus the points the other lost against the best the agent could have left it."""
    return cell.other_payoff - cell.other_best


def virtue_mixed(beta: float = 0.5) -> Reward:
    """beta x equality + (1 - beta) x [C] (Tennant et al., IJCAI 2023, eq. for virtue-mixed)."""
    beta = check_number("virtue-mixed", beta, 0.0, 1.0)
    return lambda cell, xi: beta * virtue_equality(cell, xi) + (1 - beta) * (cell.own_action == 0)


def inequity_aversion(alpha: float = 5.0, beta: float = 0.05) -> Reward:
    """a - alpha max(b - a, 0) - beta max(a - b, 0) (Fehr & Schmidt 1999; the defaults are those of
    Hughes et al. 2018)."""
    alpha, beta = check_number("alpha", alpha), check_number("beta", beta)

    def reward(cell: Cell, xi: float) -> np.ndarray:
        behind = np.maximum(cell.other_payoff - cell.own_payoff, 0)
        ahead = np.maximum(cell.own_payoff - cell.other_payoff, 0)
        return cell.own_payoff - alpha * behind - beta * ahead

    return reward


def social_value_orientation(degrees: float = 45.0) -> Reward:
    """cos(angle) a + sin(angle) b: 0 is selfish, 45 prosocial, 90 altruistic, -45 competitive
    (Liebrand 1984)."""
    angle = np.deg2rad(check_number("degrees", degrees, -180.0, 180.0))
    return lambda cell, xi: np.cos(angle) * cell.own_payoff + np.sin(angle) * cell.other_payoff


def svo_distance(degrees: float = 45.0, weight: float = 1.0) -> Reward:
    """a - weight |angle - atan2(b, a)| in radians (McKee et al. 2020); no penalty where both are 0,
    which has no angle."""
    angle = np.deg2rad(check_number("degrees", degrees, -180.0, 180.0))
    weight = check_number("weight", weight)

    def reward(cell: Cell, xi: float) -> np.ndarray:
        own, other = cell.own_payoff, cell.other_payoff
        distance = np.abs(angle - np.arctan2(other, own))
        distance = np.minimum(distance, 2 * np.pi - distance)
        return own - weight * np.where((own == 0) & (other == 0), 0, distance)

    return reward


def altruism(weight: float = 0.5) -> Reward:
    """(1 - weight) a + weight b (Peysakhovich & Lerer 2017); a negative weight is spite."""
    weight = check_number("weight", weight)
    return lambda cell, xi: (1 - weight) * cell.own_payoff + weight * cell.other_payoff


def norm(
    cc_c: float,
    cc_d: float,
    cd_c: float,
    cd_d: float,
    dc_c: float,
    dc_d: float,
    dd_c: float,
    dd_d: float,
) -> Reward:
    """Any deontological norm: points for C and for D after each remembered round, 0 without one.

    Of several others, between the two columns in proportion to how many of them defected. The norm
    of `deontological` is norm(0, -xi, 0, 0, 0, -xi, 0, 0).
    """
    points = np.array([cc_c, cc_d, cd_c, cd_d, dc_c, dc_d, dd_c, dd_d], object)
    points = np.array([check_number("norm", value) for value in points]).reshape(2, 2, 2)

    def reward(cell: Cell, xi: float) -> np.ndarray:
        own = np.nan_to_num(cell.previous_own).astype(int)
        defected = np.nan_to_num(cell.previous_other)
        after_c, after_d = points[own, 0, cell.own_action], points[own, 1, cell.own_action]
        value = (1 - defected) * after_c + defected * after_d
        return np.where(np.isnan(cell.previous_own), 0.0, value)

    return reward


# The first three are those of arXiv 2410.01639, Table 1; "game+deontological" there is their sum.
REWARDS: dict[str, Reward] = {
    "game": game_payoff,
    "deontological": deontological,
    "utilitarian": utilitarian,
    "virtue-equality": virtue_equality,
    "virtue-kindness": virtue_kindness,
    "maximin": maximin,
    "harm-avoidance": harm_avoidance,
}
FAMILIES: dict[str, Callable[..., Reward]] = {
    "virtue-mixed": virtue_mixed,
    "inequity-aversion": inequity_aversion,
    "social-value-orientation": social_value_orientation,
    "svo-distance": svo_distance,
    "altruism": altruism,
    "norm": norm,
}
PAPER_REWARDS = ("game", "deontological", "utilitarian", "game+deontological")


def get_reward(name: str, key: str = "reward.name") -> Reward:
    """A reward by name, of a family, or a weighted sum of such, e.g. "game+0.5*altruism(0.3)".

    Raises:
      UserError: there is none of that name (the names are listed), or its arguments do not fit.
    """
    if name in REWARDS:
        return REWARDS[name]
    terms = []
    for term in split_outside(str(name), "+"):
        weight, star, rest = term.partition("*")
        try:
            factor = float(weight) if star else 1.0
        except ValueError:
            raise UserError(f"{key}: {weight!r} in {term!r} is no number") from None
        terms.append((factor, build(key, rest if star else term, REWARDS, FAMILIES)))
    return lambda cell, xi: sum(
        (factor * reward(cell, xi) for factor, reward in terms), start=np.zeros(())
    )


def reward_table(
    game: Game,
    reward: Reward,
    xi: float,
    r_illegal: float,
    normalise: bool = False,
    *,
    blank: bool = False,
) -> np.ndarray:
    """Tabulates a reward over every round a game can have.

    Args:
      game: the game.
      reward: the reward of legal moves.
      xi: the deontological penalty, in points.
      r_illegal: what an illegal answer earns, in points.
      normalise: map the rewards of legal rounds to [0, 1] (0 if all are alike).
      blank: whether there are rounds without one before; otherwise those do not count.

    Returns:
      `[2N + 1 (previous round, none last), 3 (own outcome C, D, illegal), N (other)]` float32.

    Raises:
      UserError: a reward is not finite.
    """
    others = game.num_players - 1
    own, other = np.arange(2)[:, None], np.arange(others + 1)
    after = lambda cells: np.append(cells, np.nan)[:, None, None]  # none comes last
    payoffs = game.payoffs.astype(np.float64)
    cell = Cell(
        own_action=own,
        other_action=other / others,
        previous_own=after(np.repeat([0, 1], others + 1)),
        previous_other=after(np.tile(other / others, 2)),
        own_payoff=payoffs[0],
        other_payoff=payoffs[1],
        other_best=payoffs[1].max(0),
        num_others=others,
    )
    try:
        legal = np.asarray(reward(cell, xi), np.float64)
        legal = np.broadcast_to(legal, (2 * others + 3, 2, others + 1))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError) or of_own_code(error):
            raise
        raise UserError(
            "reward.name: a reward is a function of (cell, xi) whose numbers have the shape of the"
            f" cell's arrays together ({error})"
        ) from None
    finite = np.abs(legal) <= np.finfo(np.float32).max  # false for nan, too
    if not np.all(finite):
        previous, move, defectors = np.argwhere(~finite)[0]
        alone = " without a round before, where cell.previous_own and cell.previous_other are nan"
        raise UserError(
            f"reward.name: the reward of {game.name} is not finite for move {'CD'[move]} against"
            f" {defectors} defectors{alone if previous == 2 * others + 2 else ''}"
        )
    if normalise:
        counted = legal if blank else legal[:-1]
        low, high = np.min(counted), np.max(counted)
        # Rewards that differ by rounding only are alike.
        legal = np.zeros_like(legal) if np.isclose(low, high) else (legal - low) / (high - low)
    table = np.full((2 * others + 3, 3, others + 1), r_illegal, np.float32)
    table[:, :ILLEGAL] = legal
    return table


# What the paper's code gives when the opponent answers illegally differs by reward; by its terms.
_PAPER_RULES = {("utilitarian",): "zero", ("deontological", "game"): "penalty"}


def add_illegal_opponent(
    table: np.ndarray, rule: str, reward_name: str, r_illegal: float
) -> np.ndarray:
    """Extends a two-player reward table by the rounds in which the opponent's answer is illegal.

    Args:
      table: from `reward_table`.
      rule: see `jaxmoral.config.EnvConfig.opponent_illegal`.
      reward_name: decides what the rule "paper" is.
      r_illegal: what an illegal answer earns, in points.

    Returns:
      `[5 (previous round), 3 (own outcome), 3 (other's outcome)]` float32.
    """
    if rule == "paper":
        terms = sorted(term.strip() for term in split_outside(reward_name, "+"))
        rule = _PAPER_RULES.get(tuple(terms), "last-move")
    previous_other = np.array([0, 1, 0, 1, 0])  # without a round before, a C
    column = {
        "last-move": table[np.arange(5), :, previous_other],
        "zero": np.zeros_like(table[..., 0]),
        "penalty": np.full_like(table[..., 0], r_illegal),
    }[rule].copy()
    column[:, ILLEGAL] = r_illegal
    return np.concatenate([table, column[..., None]], axis=-1)


def bounds(table: np.ndarray) -> tuple[float, float]:
    """The smallest and largest reward of any round with one before it, illegal answers included."""
    return float(table[:-1].min()), float(table[:-1].max())
