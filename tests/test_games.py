"""Games against payoffs and equilibria typed again by hand, closed forms and enumeration."""

import itertools

import numpy as np
import pytest

from jaxmoral.errors import UserError
from jaxmoral.world import games

MOVES = [(0, 0), (0, 1), (1, 0), (1, 1)]  # CC, CD, DC, DD
# The points of both players; pure Nash equilibria; joint actions of the highest total.
TWO_PLAYERS = {
    "ipd": ([(3, 3), (0, 4), (4, 0), (1, 1)], "DD", "CC"),
    "ish": ([(4, 4), (0, 3), (3, 0), (1, 1)], "CC DD", "CC"),
    "icn": ([(2, 2), (1, 4), (4, 1), (0, 0)], "CD DC", "CD DC"),
    "bos": ([(3, 2), (0, 0), (0, 0), (2, 3)], "CC DD", "CC DD"),
    "icd": ([(1, 1), (0, 0), (0, 0), (4, 4)], "CC DD", "DD"),
    "ivd": ([(3, 3), (1, 4), (4, 1), (0, 0)], "CD DC", "CC"),
    "matching-pennies": ([(1, -1), (-1, 1), (-1, 1), (1, -1)], "", "CC CD DC DD"),
    "samaritans-dilemma": ([(4, 3), (3, 4), (2, 2), (1, 1)], "CD", "CC CD"),
    "trust": ([(3, 3), (0, 5), (1, 1), (1, 1)], "DD", "CC"),
    "inspection": ([(3, 2), (0, 3), (2, 2), (1, 0)], "", "CC"),
}
SYMMETRIC = {  # R, S, T, P
    "prisoners-dilemma": ((3, 1, 4, 2), "DD", "CC"),
    "chicken": ((3, 2, 4, 1), "CD DC", "CC CD DC"),
    "battle": ((2, 3, 4, 1), "CD DC", "CD DC"),
    "hero": ((2, 4, 3, 1), "CD DC", "CD DC"),
    "compromise": ((1, 2, 4, 3), "DD", "CD DC DD"),
    "deadlock": ((2, 1, 4, 3), "DD", "DD"),
    "stag-hunt": ((4, 1, 3, 2), "CC DD", "CC"),
    "assurance": ((4, 1, 2, 3), "CC DD", "CC"),
    "coordination": ((4, 2, 1, 3), "CC DD", "CC"),
    "peace": ((4, 3, 1, 2), "CC", "CC"),
    "harmony": ((4, 3, 2, 1), "CC", "CC"),
    "concord": ((4, 2, 3, 1), "CC", "CC"),
}
for _name, ((_r, _s, _t, _p), *_rest) in SYMMETRIC.items():
    TWO_PLAYERS[_name] = ([(_r, _r), (_s, _t), (_t, _s), (_p, _p)], *_rest)


def pairs_of(name):
    payoffs = games.get_game(name).payoffs
    return [(float(payoffs[0, i, j]), float(payoffs[1, i, j])) for i, j in MOVES]


def rstp(name):
    """R, S, T, P of a game that is the same for both players."""
    own, other = zip(*pairs_of(name), strict=True)
    assert other == (own[0], own[2], own[1], own[3])
    return own


@pytest.mark.parametrize("name", TWO_PLAYERS)
def test_payoffs_equilibria_and_welfare(name):
    pairs, equilibria, best = TWO_PLAYERS[name]
    assert pairs_of(name) == pairs
    points = dict(zip(MOVES, pairs_of(name), strict=True))
    stable = lambda i, j: (
        points[i, j][0] >= points[1 - i, j][0] and points[i, j][1] >= points[i, 1 - j][1]
    )
    spell = lambda moves: " ".join("CD"[i] + "CD"[j] for i, j in moves)
    assert spell(cell for cell in MOVES if stable(*cell)) == equilibria
    total = {cell: sum(pair) for cell, pair in points.items()}
    assert spell(cell for cell in MOVES if total[cell] == max(total.values())) == best


def test_payoffs_are_own_points_by_own_and_other_action():
    payoffs = games.get_game("samaritans-dilemma").payoffs
    own, other = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    mine, theirs = payoffs[:, own, other]
    np.testing.assert_array_equal(mine, [4, 2, 3, 1])
    np.testing.assert_array_equal(theirs, [3, 2, 4, 1])


def test_mirror_is_the_game_from_the_other_side():
    trust = games.get_game("trust")
    other_side = games.mirror(trust)
    for i, j in MOVES:
        np.testing.assert_array_equal(other_side.payoffs[:, j, i], trust.payoffs[::-1, i, j])
    group = games.get_game("public-goods")
    assert games.mirror(group) is group


def relabelled(game):
    """The game as bytes under the four namings of the actions."""
    return frozenset(
        game.payoffs[:, ::own, ::other].tobytes() for own in (1, -1) for other in (1, -1)
    )


def test_the_144_ordinal_games_are_different_and_twelve_of_them_symmetric():
    every = [games.get_game(f"ordinal({number})") for number in range(1, 145)]
    for game in every:
        assert all(sorted(points.flat) == [1, 2, 3, 4] for points in game.payoffs)
        # C lets the other reach its best.
        assert game.payoffs[0, :, 0].max() == game.payoffs[1, 0].max() == 4
    classes = [relabelled(game) for game in every]
    assert len(set(classes)) == 144  # so no other is one of them with actions swapped
    same = [game.payoffs[0].tolist() == game.payoffs[1].T.tolist() for game in every]
    assert sum(same) == 12
    named = [classes.index(relabelled(games.get_game(name))) for name in SYMMETRIC]
    assert sorted(named) == [index for index in range(144) if same[index]]


def test_families_of_two_players_have_their_closed_forms():
    assert rstp("donation(5,2)") == (3, -2, 5, 0)
    assert rstp("plane(-6,12)") == (10, -6, 12, 0)
    assert rstp("affine(ipd, 0.5, -2)") == (-0.5, -2, 0, -1.5)
    assert rstp("affine(ipd,10)") == (30, 0, 40, 10)
    assert pairs_of("affine(bos,2,1)") == [(7, 5), (1, 1), (1, 1), (5, 7)]


@pytest.mark.parametrize("multiplier", [0.5, 1, 1.5, 2, 2.5])
def test_public_goods_of_two_is_a_prisoners_dilemma(multiplier):
    e, share = 12.0, multiplier * 6.0  # what each gets of one contribution
    r, s, t, p = rstp(f"public-goods(2,{e},{multiplier})")
    assert (r, s, t, p) == (2 * share, share, e + share, e)
    assert (t > r > p > s) == (e / 2 < share < e)


# What player `i` gets when all have moved, straight from the definitions.
LARGER = {
    "public-goods({},12,1.5)": lambda moves, i: (
        12 * moves[i] + 1.5 * 12 * moves.count(0) / len(moves)
    ),
    "threshold-goods({},2,9,4)": lambda moves, i: 9 * (moves.count(0) >= 2) - 4 * (1 - moves[i]),
    "volunteers-dilemma({})": lambda moves, i: 10 * (0 in moves) - 4 * (1 - moves[i]),
    "group(hero,{})": lambda moves, i: np.mean(
        [((2, 4), (3, 1))[moves[i]][move] for j, move in enumerate(moves) if j != i]
    ),
}


@pytest.mark.parametrize("name", LARGER)
@pytest.mark.parametrize("players", [2, 3, 5])
def test_payoffs_of_several_players_are_those_of_every_joint_action(name, players):
    payoffs, points = games.get_game(name.format(players)).payoffs, LARGER[name]
    assert payoffs.shape == (2, 2, players)
    for moves in itertools.product((0, 1), repeat=players):
        own, others = payoffs[:, moves[0], sum(moves[1:])]
        assert own == pytest.approx(points(moves, 0))
        assert others == pytest.approx(np.mean([points(moves, i) for i in range(1, players)]))


def test_a_group_of_two_is_the_game_itself():
    np.testing.assert_array_equal(
        games.get_game("group(ipd,2)").payoffs, games.get_game("ipd").payoffs
    )


def test_a_family_member_is_found_again_by_its_name():
    for name in ("public-goods", "affine(donation(3, 1), 2)", "group(ipd, 3)", "ordinal(7)"):
        game = games.get_game(name)
        again = games.get_game(game.name)
        assert (again.name, again.title) == (game.name, game.title)
        np.testing.assert_array_equal(again.payoffs, game.payoffs)


def test_games_that_differ_by_little_have_names_that_differ():
    names = ["affine(ipd,1.0000001,100000.3)", "affine(ipd,1,100000.3)", "affine(ipd,1,100000)"]
    assert [games.get_game(name).name for name in names] == names
    assert games.get_game("donation(3.0, 1e0)").name == "donation(3,1)"


PAIRS = {"CC": (1.5, 2), "CD": (0, 5), "DC": (5, 0), "DD": (1, -1)}
PAPER = ["ipd", "ish", "icn", "bos", "icd", "ivd"]


def test_a_user_registers_a_game_in_one_line():
    game = games.register(games.make_game("mine", PAIRS))
    try:
        assert games.get_game("mine") is game
        assert pairs_of("mine") == list(PAIRS.values())
        assert [game.name for game in games.choose_games(["all"])] == [*games.GAMES]
        assert [*games.GAMES][-1] == "mine"
        assert games.register(games.make_game("mine", PAIRS)) is game
        with pytest.raises(UserError, match="taken by a game with other payoffs"):
            games.register(games.make_game("mine", PAIRS | {"CC": (9, 9)}))
    finally:
        del games.GAMES["mine"]


@pytest.mark.parametrize("name", ["ipd", "chicken", "trust", "donation", "plane"])
def test_a_game_cannot_take_a_name_that_means_another(name):
    with pytest.raises(UserError, match=f"games.{name}: the name"):
        games.register(games.make_game(name, PAIRS))


def test_sets_of_games():
    chosen = lambda *names: [game.name for game in games.choose_games(names)]
    assert chosen("all")[:6] == PAPER
    assert chosen("ordinal-symmetric") == list(SYMMETRIC)
    assert chosen("ordinal-all") == [f"ordinal({number})" for number in range(1, 145)]
    assert len(chosen("asymmetric")) == 4
    grid = itertools.product([10], (-10, -6, -2, 2, 6, 10), (0, 4, 8, 12, 16, 20), [0])
    assert sorted(rstp(name) for name in chosen("plane")) == [*grid]
    assert chosen("bos", "all", "ish")[:6] == ["bos", "ipd", "ish", "icn", "icd", "ivd"]
    assert chosen("donation(3,1)", "donation(3, 1)") == ["donation(3,1)"]


@pytest.mark.parametrize("name", ["ipd", "bos", "icd", "trust", "threshold-goods(4,2)"])
def test_drawn_payoffs_keep_order_and_ties(name):
    game = games.get_game(name)
    order = lambda points: np.sign(points.ravel()[:, None] - points.ravel()).tolist()
    drawn = [games.draw_payoffs(np.random.default_rng(seed), game, 1, 9) for seed in range(100)]
    for other in drawn:
        assert order(other.payoffs[0]) == order(game.payoffs[0])
        if name in ("bos", "trust"):
            assert order(other.payoffs[1]) == order(game.payoffs[1])
        else:  # the others of a symmetric game get the same points
            again = games.make_group_game(name, other.payoffs[0][:, ::-1])
            np.testing.assert_array_equal(other.payoffs, again.payoffs)
    assert {*np.ravel([other.payoffs[0] for other in drawn])} == set(range(1, 10))
    again = games.draw_payoffs(np.random.default_rng(99), game, 1, 9)
    np.testing.assert_array_equal(again.payoffs, drawn[99].payoffs)


def test_a_range_must_hold_as_many_numbers_as_a_game_has_payoffs():
    ipd = games.get_game("ipd")
    tight = games.draw_payoffs(np.random.default_rng(0), ipd, 1, 4)
    np.testing.assert_array_equal(tight.payoffs[0], [[3, 1], [4, 2]])
    with pytest.raises(UserError, match=r"^env.payoff_range: 1 to 3 .* ipd .*\(4\)$"):
        games.draw_payoffs(np.random.default_rng(0), ipd, 1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: games.make_game("mine", {"CC": (1, 1)}), "exactly the keys CC, CD, DC, DD"),
        (lambda: games.make_game("mine", PAIRS | {"CD": (1,)}), r"mine\.CD: needs two"),
        (lambda: games.make_game("mine", PAIRS | {"CD": 1}), r"mine\.CD: needs two"),
        (lambda: games.make_game("mine", PAIRS | {"CD": (1, float("nan"))}), "finite"),
        (lambda: games.make_group_game("mine", [[1, 2]]), "needs two rows"),
        (lambda: games.make_group_game("mine", [[1, 2], [3]]), "needs two rows"),
        (lambda: games.make_group_game("mine", [[1], [3]]), "2 to 10 players"),
        (lambda: games.make_group_game("mine", np.zeros((2, 11))), "2 to 10 players"),
        (lambda: games.make_group_game("mine", [[1, 2], [3, float("inf")]]), "finite"),
        ("ishh", "did you mean 'ish'.*ipd, ish, icn"),
        ("donation(3)", r"does not fit donation\(benefit, cost\)"),
        ("donation(3,1", "closing bracket"),
        ("donation(3,x)", "cost: needs a finite number, got 'x'"),
        ("ordinal(145)", "whole number from 1 to 144"),
        ("ordinal(1.5)", "whole number from 1 to 144"),
        ("affine(ipd,0)", "scale: needs a finite number from 1e-06"),
        ("group(bos,3)", "bos is not a symmetric game"),
        ("group(public-goods,3)", "public-goods is not a symmetric game of two"),
        ("public-goods(11)", "players: needs a whole number from 2 to 10"),
        ("threshold-goods(3,4)", "threshold: needs a whole number from 1 to 3"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_wrong(make, message):
    with pytest.raises(UserError, match=message) as error:
        games.get_game(make) if isinstance(make, str) else make()
    assert "\n" not in str(error.value)
