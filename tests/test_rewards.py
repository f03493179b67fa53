"""Reward tables against loops that spell the paper's Table 1 out."""

import itertools

import numpy as np
import pytest

from jaxmoral import games, rewards
from jaxmoral.errors import UserError

XI, R_ILLEGAL = 2.75, -6.5


def by_hand(name, payoffs, previous_other, own, other):
    if own == 2:
        return R_ILLEGAL
    mine, theirs = float(payoffs[0, own, other]), float(payoffs[1, own, other])
    penalty = XI if own == 1 and previous_other == 0 else 0.0
    return {
        "game": mine,
        "utilitarian": mine + theirs,
        "deontological": -penalty,
        "game+deontological": mine - penalty,
    }[name]


@pytest.mark.parametrize("name", rewards.REWARDS)
@pytest.mark.parametrize("game", ["ipd", "bos", "icd"])
def test_every_cell(name, game):
    payoffs = games.get_game(game).payoffs
    table = rewards.reward_table(payoffs, rewards.get_reward(name), XI, R_ILLEGAL)
    assert table.shape == (2, 2, 3, 2)
    for cell in itertools.product((0, 1), (0, 1), (0, 1, 2), (0, 1)):
        _, previous_other, own, other = cell
        # Fractions survive: a peer cuts its rewards to integers.
        assert table[cell] == pytest.approx(by_hand(name, payoffs, previous_other, own, other))


def test_bounds_come_from_the_cells():
    table = rewards.reward_table(
        games.get_game("ish").payoffs, rewards.get_reward("utilitarian"), XI, R_ILLEGAL
    )
    assert rewards.bounds(table) == (R_ILLEGAL, 8.0)


def test_a_user_adds_a_reward_as_a_pure_function():
    def equality(cell, xi):
        return -np.abs(cell.own_payoff - cell.other_payoff)

    table = rewards.reward_table(games.get_game("ipd").payoffs, equality, XI, R_ILLEGAL)
    np.testing.assert_array_equal(table[1, 0, :2], [[0, -4], [-4, 0]])


def test_an_unknown_reward_lists_the_rewards():
    with pytest.raises(UserError, match="choose from game, deontological, utilitarian"):
        rewards.get_reward("virtue")
