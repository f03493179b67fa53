"""Games against the payoffs of the paper, typed again by hand."""

import jax
import numpy as np
import pytest

from jaxmoral import games
from jaxmoral.errors import UserError

PAPER = {
    "ipd": [[(3, 3), (0, 4)], [(4, 0), (1, 1)]],
    "ish": [[(4, 4), (0, 3)], [(3, 0), (1, 1)]],
    "icn": [[(2, 2), (1, 4)], [(4, 1), (0, 0)]],
    "bos": [[(3, 2), (0, 0)], [(0, 0), (2, 3)]],
    "icd": [[(1, 1), (0, 0)], [(0, 0), (4, 4)]],
    "ivd": [[(3, 3), (1, 4)], [(4, 1), (0, 0)]],
}


@pytest.mark.parametrize("name", PAPER)
def test_payoffs_of_both_players(name):
    game = games.get_game(name)
    for own in (0, 1):
        for other in (0, 1):
            points = games.step(game.payoffs, np.int32(own), np.int32(other))
            assert tuple(map(float, points)) == PAPER[name][own][other]


def test_step_is_vectorised_and_jits():
    payoffs = games.get_game("bos").payoffs
    own, other = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    mine, theirs = jax.jit(games.step)(payoffs, own, other)
    np.testing.assert_array_equal(mine, [3, 0, 0, 2])
    np.testing.assert_array_equal(theirs, [2, 0, 0, 3])


def test_a_user_registers_a_game_in_one_line():
    pairs = {"CC": (1.5, 2), "CD": (0, 5), "DC": (5, 0), "DD": (1, -1)}
    game = games.register(games.make_game("mine", pairs))
    try:
        assert games.get_game("mine") is game
        assert game.payoffs[0, 0, 0] == 1.5
        assert game.payoffs[1, 1, 1] == -1
        with pytest.raises(UserError, match="taken by a game with other payoffs"):
            games.register(games.make_game("mine", pairs | {"CC": (9, 9)}))
    finally:
        del games.GAMES["mine"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"CC": (1, 1)}, "exactly the keys CC, CD, DC, DD"),
        ({"CC": (1, 1), "CD": (1,), "DC": (1, 1), "DD": (1, 1)}, r"mine\.CD: needs two"),
        ({"CC": (1, 1), "CD": (1, float("nan")), "DC": (1, 1), "DD": (1, 1)}, "finite"),
    ],
)
def test_bad_payoffs_are_refused(pairs, message):
    with pytest.raises(UserError, match=message):
        games.make_game("mine", pairs)


def test_an_unknown_game_lists_the_games():
    with pytest.raises(UserError, match="did you mean 'ish'.*ipd, ish, icn"):
        games.get_game("ishh")
