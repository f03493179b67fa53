"""Reward tables against loops over plain floats, the papers' formulas spelled out once more."""

import cmath
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest

from jaxmoral.errors import UserError
from jaxmoral.world import rewards
from jaxmoral.world.games import get_game, make_game
from jaxmoral.world.rewards import REWARDS, get_reward, reward_table

C, D, ILLEGAL = 0, 1, 2
XI, R_ILLEGAL = 2.75, -6.5  # fractions survive: a peer cuts its rewards to integers
NEGATIVE = {"CC": (-1, -1), "CD": (-3, 0), "DC": (0, -3), "DD": (-2, -2)}
MIXED = {"CC": (2, -1), "CD": (-3, 4.5), "DC": (0, -2), "DD": (-1.5, 0)}
GAMES = {name: get_game(name) for name in ("ipd", "ish", "icn", "bos", "icd")}
GAMES |= {"negative": make_game("negative", NEGATIVE), "mixed": make_game("mixed", MIXED)}
ROUNDS = [(C, C), (C, D), (D, C), (D, D), None]


class Round(NamedTuple):
    """One legal round: points of both, the most it could have left the other, moves."""

    a: float
    b: float
    best: float
    own: int
    before: tuple[int, int] | None


def penalty(r):
    return XI if r.own == D and r.before is not None and r.before[1] == C else 0.0


def equality(r):
    return 1.0 if r.a == r.b == 0 else 1 - abs(r.a - r.b) / (abs(r.a) + abs(r.b))


def distance(r, degrees):
    """Of the points' direction from an angle, the short way round; (0, 0) has no direction."""
    turned = complex(r.a, r.b) * cmath.exp(-1j * math.radians(degrees))
    return abs(cmath.phase(turned)) if (r.a, r.b) != (0, 0) else 0.0


BY_HAND = {
    "game": lambda r: r.a,
    "deontological": lambda r: -penalty(r),
    "utilitarian": lambda r: r.a + r.b,
    "virtue-equality": equality,
    "virtue-kindness": lambda r: XI if r.own == C else 0,
    "maximin": lambda r: min(r.a, r.b),
    "harm-avoidance": lambda r: r.b - r.best,
    "virtue-mixed": lambda r: (equality(r) + (r.own == C)) / 2,
    "virtue-mixed(0.25)": lambda r: 0.25 * equality(r) + 0.75 * (r.own == C),
    "inequity-aversion": lambda r: r.a - 5 * max(r.b - r.a, 0) - 0.05 * max(r.a - r.b, 0),
    "inequity-aversion(0,0.5)": lambda r: r.a - 0.5 * max(r.a - r.b, 0),
    "social-value-orientation": lambda r: (r.a + r.b) / math.sqrt(2),
    "social-value-orientation(-90)": lambda r: -r.b,
    "social-value-orientation(60)": lambda r: r.a / 2 + r.b * math.sqrt(3) / 2,
    "svo-distance": lambda r: r.a - distance(r, 45),
    "svo-distance(-150,0.5)": lambda r: r.a - 0.5 * distance(r, -150),
    "altruism": lambda r: (r.a + r.b) / 2,
    "altruism(-0.5)": lambda r: 1.5 * r.a - 0.5 * r.b,
    "norm(1,2,3,4,5,6,7,8)": lambda r: (
        0 if r.before is None else 1 + 4 * r.before[0] + 2 * r.before[1] + r.own
    ),
    "game+deontological": lambda r: r.a - penalty(r),
    "0.5*game+0.25*altruism(0.3)": lambda r: 0.5 * r.a + 0.25 * (0.7 * r.a + 0.3 * r.b),
    "-1*utilitarian": lambda r: -r.a - r.b,
    " game + -2 * norm(0,1e+0, 0,1, 0,1, 0,1) + maximin": lambda r: (
        r.a - (2 if r.before is not None and r.own == D else 0) + min(r.a, r.b)
    ),
}


def by_hand(name, game, before, own, other):
    if own == ILLEGAL:
        return R_ILLEGAL
    a, b = (float(points[own, other]) for points in game.payoffs)
    best = max(float(game.payoffs[1, move, other]) for move in (C, D))
    return BY_HAND[name](Round(a, b, best, own, before))


def tabulate(name, game, normalise=False):
    return reward_table(game, get_reward(name), XI, R_ILLEGAL, normalise)


def test_every_reward_and_family_is_spelled_out_here():
    assert {*rewards.REWARDS, *rewards.FAMILIES} <= {name.partition("(")[0] for name in BY_HAND}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("game", GAMES)
def test_every_cell(name, game):
    table = tabulate(name, GAMES[game])
    assert table.shape == (5, 3, 2)
    assert table.dtype == np.float32
    for (row, before), own, other in itertools.product(enumerate(ROUNDS), (C, D, ILLEGAL), (C, D)):
        hand = by_hand(name, GAMES[game], before, own, other)
        assert table[row, own, other] == pytest.approx(hand, rel=1e-6, abs=1e-6)


# Worked out apart from this package, to two digits: CC, CD, DC, DD.
VALUES = {
    "utilitarian": ((6, 4, 4, 2), (8, 3, 3, 2), (4, 5, 5, 0), (5, 0, 0, 5), (2, 0, 0, 8)),
    "maximin": ((3, 0, 0, 1), (4, 0, 0, 1), (2, 1, 1, 0), (2, 0, 0, 2), (1, 0, 0, 4)),
    "virtue-equality": ((1, 0, 0, 1), (1, 0, 0, 1), (1, 0.4, 0.4, 1), (0.8, 1, 1, 0.8), (1,) * 4),
    "inequity-aversion": (
        *((3, -20, 3.8, 1), (4, -15, 2.85, 1), (2, -14, 3.85, 0)),
        *((2.95, 0, 0, -3), (1, 0, 0, 4)),
    ),
    "svo-distance(45,0.2)": (  # (0, 0) is not penalised
        *((3, -0.16, 3.84, 1), (4, -0.16, 2.84, 1), (2, 0.89, 3.89, 0)),
        *((2.96, 0, 0, 1.96), (1, 0, 0, 4)),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_known_values_in_the_papers_games(name):
    for game, values in zip(("ipd", "ish", "icn", "bos", "icd"), VALUES[name], strict=True):
        np.testing.assert_allclose(tabulate(name, GAMES[game])[0, :2].ravel(), values, atol=6e-3)


def test_known_values_where_points_are_negative():
    value = lambda name: tabulate(name, GAMES["negative"])[0, :2].ravel().round(2).tolist()
    assert value("virtue-equality") == [1, 0, 0, 1]  # without absolute values 1 2 2 1
    assert value("inequity-aversion") == pytest.approx([-1, -18, -0.15, -2])
    assert value("svo-distance(45,0.2)") == pytest.approx([-1.63, -3.47, -0.47, -2.63])


def test_the_norm_with_the_deontological_numbers_is_deontological():
    name = f"norm(0,{-XI},0,0,0,{-XI},0,0)"
    for game in (*GAMES.values(), get_game("public-goods(3)")):
        np.testing.assert_allclose(tabulate(name, game), tabulate("deontological", game), rtol=1e-6)


def test_of_several_others_all_points_count_and_the_norm_is_graded():
    game = get_game("public-goods(4,10,2)")  # 5 points to each for every contribution
    total = tabulate("utilitarian", game)
    harm = tabulate("harm-avoidance", game)
    norm = tabulate("deontological", game)
    share = reward_table(game, lambda cell, xi: cell.other_action, XI, R_ILLEGAL)
    assert norm.shape == (9, 3, 4)
    for own, others in itertools.product((C, D), range(4)):
        defectors = own + others
        assert (total[:, own, others] == 4 * 5 * (4 - defectors) + 10 * defectors).all()
        assert share[:, own, others] == pytest.approx(others / 3)
        assert harm[:, own, others] == pytest.approx(-5.0 if own == D else 0.0)
        for before_own, before in itertools.product((C, D), range(4)):
            expected = -XI * (3 - before) / 3 if own == D else 0
            assert norm[4 * before_own + before, own, others] == pytest.approx(expected)
        assert norm[8, own, others] == 0  # without a round before


@pytest.mark.parametrize("name", ["utilitarian", "game+deontological", "norm(1,2,3,4,5,6,7,8)"])
@pytest.mark.parametrize("game", GAMES)
def test_normalised_rewards_of_legal_rounds_span_0_to_1(name, game):
    table = tabulate(name, GAMES[game], normalise=True)
    cells = [*itertools.product(enumerate(ROUNDS), (C, D), (C, D))]
    hand = [by_hand(name, GAMES[game], before, own, other) for (_, before), own, other in cells]
    seen = [value for ((row, _), _, _), value in zip(cells, hand, strict=True) if row < 4]
    low, high = min(seen), max(seen)  # of the rounds with one before
    for ((row, _), own, other), value in zip(cells, hand, strict=True):
        assert table[row, own, other] == pytest.approx((value - low) / (high - low), abs=1e-6)
    assert (table[:, ILLEGAL] == R_ILLEGAL).all()


def test_where_episodes_begin_without_a_round_before_that_counts_too():
    norm = get_reward("norm(1,1,1,2,1,1,1,1)")  # 0 without a round before
    table = reward_table(get_game("ipd"), norm, XI, R_ILLEGAL, True, blank=True)
    assert (table[:, :2].min(), table[:, :2].max()) == (0, 1)
    assert (table[-1, :2] == 0).all()


@pytest.mark.parametrize(
    ("name", "game"),
    [("virtue-equality", "icd"), ("altruism(0.3)+altruism(0.7)", "matching-pennies")],
)
def test_normalised_rewards_that_are_alike_are_0(name, game):
    # The second is zero in every cell but for rounding, which must not be blown up.
    assert (tabulate(name, get_game(game), normalise=True)[:, :2] == 0).all()


@pytest.mark.parametrize("name", ["virtue-kindness", "-1*utilitarian", "norm(1,2,3,4,5,6,7,8)"])
def test_bounds_come_from_the_rounds_with_one_before(name):
    table = tabulate(name, GAMES["ipd"])
    rounds = itertools.product(ROUNDS[:-1], (C, D, ILLEGAL), (C, D))
    values = [by_hand(name, GAMES["ipd"], *each) for each in rounds]
    assert rewards.bounds(table) == (min(values), max(values))
    above = reward_table(GAMES["ipd"], get_reward("norm" + str((5.0,) * 8)), XI, r_illegal=6.0)
    assert rewards.bounds(above) == (5, 6)  # not the 0 without a round before


@pytest.mark.parametrize("name", ["game", "utilitarian", "deontological", "game+deontological"])
@pytest.mark.parametrize("rule", ["last-move", "zero", "penalty", "paper"])
def test_rounds_in_which_the_opponents_answer_is_illegal(name, rule):
    table = rewards.add_illegal_opponent(tabulate(name, GAMES["bos"]), rule, name, R_ILLEGAL)
    assert table.shape == (5, 3, 3)
    np.testing.assert_array_equal(table[..., :2], tabulate(name, GAMES["bos"]))
    if rule == "paper":  # the deontological reward there does not look at the opponent's answer
        rule = {"utilitarian": "zero", "game+deontological": "penalty"}.get(name, "last-move")
    for (row, before), own in itertools.product(enumerate(ROUNDS), (C, D)):
        last = C if before is None else before[1]
        expected = {
            "last-move": by_hand(name, GAMES["bos"], before, own, last),
            "zero": 0,
            "penalty": R_ILLEGAL,
        }[rule]
        assert table[row, own, ILLEGAL] == expected
    assert (table[:, ILLEGAL] == R_ILLEGAL).all()
    other = " + ".join(reversed(name.split("+")))
    again = rewards.add_illegal_opponent(tabulate(name, GAMES["bos"]), rule, other, R_ILLEGAL)
    np.testing.assert_array_equal(again, table)  # one reward, written otherwise


def test_a_user_adds_a_reward_as_a_pure_function():
    table = reward_table(
        GAMES["ipd"], lambda cell, xi: -np.abs(cell.own_payoff - cell.other_payoff), XI, R_ILLEGAL
    )
    np.testing.assert_array_equal(table[1, :2], [[0, -4], [-4, 0]])


@pytest.mark.parametrize("name", ["1e39*game", "nan*game"])  # the first is too much for float32
def test_a_reward_that_is_not_finite_is_refused(name):
    with pytest.raises(UserError, match=r"^reward.name: the reward of ipd is not finite for move"):
        tabulate(name, GAMES["ipd"])


@pytest.mark.parametrize(
    "reward",
    [
        lambda cell: cell.own_payoff,
        lambda cell, xi: None,
        lambda cell, xi: np.zeros(7),
        lambda cell, xi: "much",
        3,
    ],
)
def test_what_is_no_reward_is_refused(reward, monkeypatch):
    says = r"^reward.name: a reward is a function of \(cell, xi\)"
    with pytest.raises(UserError, match=f"{says}|is not finite"):
        reward_table(GAMES["ipd"], reward, XI, R_ILLEGAL)
    monkeypatch.setitem(REWARDS, "own", reward)
    with pytest.raises(UserError, match=says):
        tabulate("game+own", GAMES["ipd"])


def test_a_round_without_one_before_is_named():
    """None comes before it, so that its previous moves are no numbers."""
    with pytest.raises(UserError, match="without a round before, where cell.previous_own"):
        reward_table(GAMES["ipd"], lambda cell, xi: cell.previous_other, XI, R_ILLEGAL)


def test_a_cell_that_is_not_finite_is_named():
    reward = lambda cell, xi: np.where((cell.own_action == D) & (cell.other_action == 0), np.nan, 1)
    with pytest.raises(UserError, match="move D against 0 defectors"):
        reward_table(GAMES["ipd"], reward, XI, R_ILLEGAL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("utilitarain", "did you mean 'utilitarian'.*choose from game, deontological, utilitarian"),
        ("game+virtue", "unknown name 'virtue'"),
        ("game+", "unknown name ''"),
        ("game-deontological", "unknown name 'game-deontological'"),
        ("game*0.5", "'game' in 'game\\*0.5' is no number"),
        ("altruism(0.5", "closing bracket"),
        ("altruism(1,2)", r"does not fit altruism\(weight\)"),
        ("altruism(much)", "weight: needs a finite number, got 'much'"),
        ("virtue-mixed(1.5)", "virtue-mixed: needs a finite number from 0 to 1"),
        ("svo-distance(200)", "degrees: needs a finite number from -180 to 180"),
        ("norm(1,2,3)", r"does not fit norm\(cc_c, cc_d, "),
        ("norm", r"does not fit norm\(cc_c, cc_d, "),
        ("norm(1,2,3,4,5,6,7,x)", "norm: needs a finite number"),
    ],
)
def test_bad_names_are_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        get_reward(name)
    assert "\n" not in str(error.value)
