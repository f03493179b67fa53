"""Matrix games: payoff arrays by name and families of them.

A game is one array `[2 (player), 2 (own action), N (others)]` as seen by one player: its own points
and the mean of the other players' points. Action 0 is C and action 1 is D in every game, whatever
the labels in the prompt are. The last axis counts how many of the N - 1 other players chose D, so
with two players it is the other's action.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxmoral.errors import UserError, build, check_number, check_whole

CELLS = ("CC", "CD", "DC", "DD")
MAX_PLAYERS = 10
MAX_POINTS = 1e6  # of a game from a configuration; what is made of them stays finite


class Game(NamedTuple):
    """A named game.

    Attributes:
      name: by which `get_game` finds it.
      title: for tables and pictures.
      payoffs: `[2 (own, mean of the others), 2 (own action), N (others that chose D)]` float32.

    >>> jaxmoral.Game("silence", "Nothing at stake", np.zeros((2, 2, 3), np.float32)).num_players
    3
    """

    name: str
    title: str
    payoffs: np.ndarray

    @property
    def num_players(self) -> int:
        return self.payoffs.shape[2]


def make_game(name: str, pairs: Mapping[str, Sequence[float]], title: str | None = None) -> Game:
    """Builds a two-player game from its four payoff pairs.

    Args:
      name: the registry key.
      pairs: for each joint action "CC", "CD", "DC", "DD" (the first player's letter first) the
        points of the first and of the second player.
      title: how tables and pictures call it; the name when not given.

    Raises:
      UserError: a joint action is missing or unknown, its points are not two or too large.

    >>> pairs = {"CC": (3, 3), "CD": (0, 5), "DC": (5, 0), "DD": (1, 1)}
    >>> jaxmoral.make_game("dilemma", pairs).payoffs[0]
    array([[3., 0.],
           [5., 1.]], dtype=float32)
    """
    if not isinstance(pairs, Mapping) or set(pairs) != set(CELLS):
        raise UserError(f"games.{name}: needs exactly the keys {', '.join(CELLS)}")
    for cell, pair in pairs.items():
        points = _numbers(pair)
        if points.shape != (2,) or not np.all(np.abs(points) <= MAX_POINTS):
            raise UserError(
                f"games.{name}.{cell}: needs two finite numbers up to {MAX_POINTS:g}, got {pair}"
            )
    cells = np.array([pairs[cell] for cell in CELLS], np.float32)
    return Game(name, title or name, np.moveaxis(cells.reshape(2, 2, 2), -1, 0))


def make_group_game(
    name: str,
    points: Sequence[Sequence[float] | np.ndarray] | Mapping[str, Sequence[float]],
    title: str | None = None,
) -> Game:
    """Builds a game of N players that all have the same payoffs.

    Args:
      name: the registry key.
      points: `[2 (own action), N (number of other co-operators)]`, or its rows by "C" and "D".
      title: how tables and pictures call it; the name when not given.

    Raises:
      UserError: the table has another shape, holds what is no finite number, or is too large.

    >>> jaxmoral.make_group_game("commons", [[0, 2, 4], [1, 3, 5]]).num_players
    3
    """
    if isinstance(points, Mapping):
        points = [points[action] for action in "CD"] if set(points) == {"C", "D"} else []
    table = _numbers(points)
    if table.ndim != 2 or len(table) != 2 or not 2 <= table.shape[1] <= MAX_PLAYERS:
        raise UserError(
            f"games.{name}: needs two rows (C, D) of one number per count of other co-operators,"
            f" 0 to N - 1, for 2 to {MAX_PLAYERS} players"
        )
    if not np.all(np.abs(table) <= MAX_POINTS):
        raise UserError(f"games.{name}: needs finite numbers up to {MAX_POINTS:g}")
    own = table[:, ::-1]  # by defectors
    others = own.shape[1] - 1
    means = np.zeros_like(own)
    for action, defectors in np.ndindex(own.shape):
        # The others face each other and this player; one that defects is no defector to itself.
        seen = defectors + action
        total = (others - defectors) * own[0, min(seen, others)]
        total += defectors * own[1, max(seen - 1, 0)]
        means[action, defectors] = total / others
    return Game(name, title or name, np.stack([own, means]).astype(np.float32))


def _numbers(given: Any) -> np.ndarray:
    """What is given as an array of float64; an empty one if it is none."""
    try:
        return np.array(given, np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)


def register(game: Game) -> Game:
    """Adds a game to the registry. Raises UserError if the name is taken by another game.

    >>> pairs = {"CC": (3, 3), "CD": (1, 4), "DC": (4, 1), "DD": (2, 2)}
    >>> jaxmoral.register(jaxmoral.make_game("mild", pairs)) is jaxmoral.get_game("mild")
    True
    """
    return GAMES.setdefault(game.name, _unless_taken(game, {**BUILT_IN, **GAMES}))


def _unless_taken(game: Game, known: Mapping[str, Game]) -> Game:
    """The known game of that name, or else this one; raises UserError if they differ."""
    if game.name in FAMILIES or game.name in SETS:
        raise UserError(f"games.{game.name}: the name already stands for several games")
    same = known.get(game.name, game)
    if not np.array_equal(same.payoffs, game.payoffs):
        raise UserError(f"games.{game.name}: the name is taken by a game with other payoffs")
    return same


def make_games(described: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Game]:
    """A configuration's own games by name, which no other configuration sees.

    Args:
      described: a name to the arguments of `make_game`, or of `make_group_game` as {C, D}.

    Raises:
      UserError: as those two, or a name is taken by a built-in game with other payoffs.
    """
    found = {}
    for name, pairs in described.items():
        make = make_group_game if set(pairs) == {"C", "D"} else make_game
        found[name] = _unless_taken(make(name, pairs), BUILT_IN)
    return found


def symmetric(name: str, r: float, s: float, t: float, p: float, title: str | None = None) -> Game:
    """Reward, sucker's payoff, temptation and punishment as a game."""
    return make_game(name, {"CC": (r, r), "CD": (s, t), "DC": (t, s), "DD": (p, p)}, title)


def mirror(game: Game) -> Game:
    """The same game as another player sees it."""
    if game.num_players > 2:
        return game
    return game._replace(payoffs=game.payoffs[::-1].transpose(0, 2, 1))


# arXiv 2410.01639, Fig. 1 and Table 3; "ivd" is defined in the authors' code but not reported.
GAMES: dict[str, Game] = {
    name: make_game(name, dict(zip(CELLS, pairs, strict=True)), title)
    for name, title, pairs in (
        ("ipd", "Prisoner's Dilemma", ((3, 3), (0, 4), (4, 0), (1, 1))),
        ("ish", "Stag Hunt", ((4, 4), (0, 3), (3, 0), (1, 1))),
        ("icn", "Chicken", ((2, 2), (1, 4), (4, 1), (0, 0))),
        ("bos", "Bach or Stravinsky", ((3, 2), (0, 0), (0, 0), (2, 3))),
        ("icd", "Defective Coordination", ((1, 1), (0, 0), (0, 0), (4, 4))),
        ("ivd", "Volunteer's Dilemma", ((3, 3), (1, 4), (4, 1), (0, 0))),
    )
}
# The twelve strict symmetric ordinal games (names: Bruns 2015, doi 10.3390/g6040495): R, S, T, P.
ORDINAL = {
    name: symmetric(name, *points, title=name.replace("-", " ").capitalize())
    for name, points in {
        "prisoners-dilemma": (3, 1, 4, 2),
        "chicken": (3, 2, 4, 1),
        "battle": (2, 3, 4, 1),
        "hero": (2, 4, 3, 1),
        "compromise": (1, 2, 4, 3),
        "deadlock": (2, 1, 4, 3),
        "stag-hunt": (4, 1, 3, 2),
        "assurance": (4, 1, 2, 3),
        "coordination": (4, 2, 1, 3),
        "peace": (4, 3, 1, 2),
        "harmony": (4, 3, 2, 1),
        "concord": (4, 2, 3, 1),
    }.items()
}
# Games whose players have different roles. The first player matches pennies; helps (Buchanan 1975)
# or not; trusts (Kreps 1990) or not; leaves alone or inspects.
ASYMMETRIC = {
    name: make_game(name, dict(zip(CELLS, pairs, strict=True)), title)
    for name, title, pairs in (
        ("matching-pennies", "Matching Pennies", ((1, -1), (-1, 1), (-1, 1), (1, -1))),
        ("samaritans-dilemma", "Samaritan's Dilemma", ((4, 3), (3, 4), (2, 2), (1, 1))),
        ("trust", "Trust Game", ((3, 3), (0, 5), (1, 1), (1, 1))),
        ("inspection", "Inspection Game", ((3, 2), (0, 3), (2, 2), (1, 0))),
    )
}


def ordinal(number: float) -> Game:
    """One of the 144 strict ordinal games, payoffs 1 to 4, by a number from 1.

    Of the four ways to name a game's actions, C is what lets the other reach its best.
    """
    index = check_whole("game ordinal(number)", number, 1, 144)
    orders = list(itertools.permutations((1, 2, 3, 4)))
    own = [order for order in orders if 4 in order[::2]]  # best where the other plays C
    other = [order for order in orders if 4 in order[:2]]
    pairs = zip(own[(index - 1) // 12], other[(index - 1) % 12], strict=True)
    return make_game(f"ordinal({index})", dict(zip(CELLS, pairs, strict=True)))


def _exactly(number: float) -> str:
    """A number in a name, as short as it can be told from all others."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def donation(benefit: float, cost: float) -> Game:
    """A pays `cost` so that the other gets `benefit`: R = b - c, S = -c, T = b, P = 0."""
    b, c = check_number("benefit", benefit), check_number("cost", cost)
    name = f"donation({_exactly(b)},{_exactly(c)})"
    return symmetric(name, b - c, -c, b, 0, f"Donation {b:g}:{c:g}")


def plane(sucker: float, temptation: float) -> Game:
    """A point of the S-T plane in tenths: R = 10, P = 0, S from -10 to 10, T from 0 to 20."""
    s, t = check_number("sucker", sucker), check_number("temptation", temptation)
    return symmetric(f"plane({_exactly(s)},{_exactly(t)})", 10, s, t, 0, f"S={s:g} T={t:g}")


def affine(own: Mapping[str, Game], name: str, scale: float, shift: float = 0.0) -> Game:
    """Another game with its points multiplied by a positive number, and a number added."""
    game = get_game(name, own)
    scale, shift = check_number("scale", scale, 1e-6, 1e6), check_number("shift", shift)
    title = f"{game.title} x {scale:g} + {shift:g}"
    name = f"affine({game.name},{_exactly(scale)},{_exactly(shift)})"
    return Game(name, title, game.payoffs * scale + shift)


def group(own: Mapping[str, Game], name: str, players: float) -> Game:
    """A symmetric two-player game played with each of the others at once: the points' mean."""
    n = check_whole("players", players, 2, MAX_PLAYERS)
    game = get_game(name, own)
    if not _alike(game) or game.num_players > 2:
        raise UserError(f"game group({name},{n}): {name} is not a symmetric game of two players")
    share = np.arange(n) / (n - 1)  # of the others that co-operate
    mine = game.payoffs[0]
    points = mine[:, :1] * share + mine[:, 1:] * (1 - share)
    return make_group_game(f"group({game.name},{n})", points.tolist(), f"{game.title}, {n} players")


def public_goods(players: float = 4, endowment: float = 10, multiplier: float = 2) -> Game:
    """Linear public goods: what is contributed is multiplied and shared by all (C contributes).

    With k other contributors, s = multiplier * endowment / N: s (k + 1) for C, endowment + s k for
    D. A dilemma if 1 < multiplier < N.
    """
    n = check_whole("players", players, 2, MAX_PLAYERS)
    e, r = check_number("endowment", endowment, 0, 1e6), check_number("multiplier", multiplier)
    others, s = np.arange(n), r * e / n
    name = f"public-goods({n},{_exactly(e)},{_exactly(r)})"
    return make_group_game(name, [s * (others + 1), e + s * others], f"Public Goods, {n} players")


def threshold_goods(players: float, threshold: float, benefit: float = 10, cost: float = 4) -> Game:
    """All get `benefit` once `threshold` players contribute; contributing costs `cost`."""
    n = check_whole("players", players, 2, MAX_PLAYERS)
    needed = check_whole("threshold", threshold, 1, n)
    b, c = check_number("benefit", benefit), check_number("cost", cost)
    others = np.arange(n)
    points = [b * (others + 1 >= needed) - c, b * (others >= needed) * 1.0]
    name = f"threshold-goods({n},{needed},{_exactly(b)},{_exactly(c)})"
    return make_group_game(name, points, f"{needed} of {n} must contribute")


def volunteers_dilemma(players: float, benefit: float = 10, cost: float = 4) -> Game:
    """One volunteer is enough (Diekmann 1985): `threshold_goods` with a threshold of 1."""
    game = threshold_goods(players, 1, benefit, cost)
    name = f"volunteers-dilemma({game.num_players},{_exactly(benefit)},{_exactly(cost)})"
    return game._replace(name=name, title=f"Volunteer's Dilemma, {game.num_players} players")


FAMILIES: dict[str, Callable[..., Game]] = {
    "ordinal": ordinal,
    "donation": donation,
    "plane": plane,
    "affine": partial(affine, {}),
    "group": partial(group, {}),
    "public-goods": public_goods,
    "threshold-goods": threshold_goods,
    "volunteers-dilemma": volunteers_dilemma,
}

BUILT_IN: Mapping[str, Game] = MappingProxyType({**GAMES, **ORDINAL, **ASYMMETRIC})
NONE: Mapping[str, Game] = MappingProxyType({})


def get_game(name: str, own: Mapping[str, Game] = NONE) -> Game:
    """A registered game, an ordinal or asymmetric one, or one of a family, e.g. "donation(3,1)".

    Args:
      name: of the game; in a family's brackets too.
      own: games that are looked up first, e.g. those of a configuration (`make_games`).

    Raises:
      UserError: there is none of that name (the names are listed), or its arguments do not fit.

    >>> [jaxmoral.get_game(name).title for name in ("ipd", "donation(3,1)")]
    ["Prisoner's Dilemma", 'Donation 3:1']
    """
    families = FAMILIES | {"affine": partial(affine, own), "group": partial(group, own)}
    found = build("game", name, {**GAMES, **ORDINAL, **ASYMMETRIC, **own}, families)
    if not isinstance(found, Game):
        raise UserError(f"game: {name} is registered as {found!r}; register what make_game makes")
    return found


# Names that stand for several games wherever a list of games is asked for.
SETS: dict[str, Callable[[], list[str]]] = {
    "all": lambda: list(GAMES),
    "ordinal-symmetric": lambda: list(ORDINAL),
    "ordinal-all": lambda: [f"ordinal({number})" for number in range(1, 145)],
    "asymmetric": lambda: list(ASYMMETRIC),
    "plane": lambda: [f"plane({s},{t})" for t in range(20, -1, -4) for s in range(-10, 11, 4)],
}


def spelled_out(names: Sequence[str], own: Iterable[str] = ()) -> list[str]:
    """Names of games, sets spelled out; `own` ones belong to "all"."""
    found: list[str] = []
    for name in names:
        found += SETS[name]() if name in SETS else [name]
        found += own if name == "all" else []
    return found


def choose_games(names: Sequence[str], own: Mapping[str, Game] = NONE) -> list[Game]:
    """The named games, sets spelled out, each once; `own` ones belong to "all"."""
    found = [get_game(name, own) for name in spelled_out(names, own)]
    return list({game.name: game for game in found}.values())


def draw_payoffs(random: np.random.Generator, game: Game, low: int, high: int) -> Game:
    """The game with whole points from `low` to `high` that order each player's cells as it does.

    Ties stay ties, and a game with the same payoffs for all players stays one. Raises UserError if
    the range holds fewer numbers than the game has ranks.
    """
    choose = lambda count: np.sort(random.choice(np.arange(low, high + 1), count, replace=False))
    return _with_numbers(game, low, high, choose)


def corner_payoffs(game: Game, low: int, high: int) -> list[Game]:
    """The draws of `draw_payoffs` that span all others.

    A player's lowest ranks are as low, the rest as high as they can be. What is linear in a
    player's points and holds for these holds for every draw. Raises UserError as `draw_payoffs`.
    """

    def corner(lowest: Sequence[int]) -> Game:
        of_player = iter(lowest)

        def choose(count: int) -> np.ndarray:
            few = min(next(of_player), count)
            return np.r_[low : low + few, high + 1 - count + few : high + 1]

        return _with_numbers(game, low, high, choose)

    players = 1 if _alike(game) else 2
    ranks = range(game.payoffs[0].size + 1)
    return [corner(lowest) for lowest in itertools.product(ranks, repeat=players)]


def drawn_points(game: Game, low: int, high: int) -> tuple[float, ...]:
    """Every number that a game of `draw_payoffs` can have: of several others also their means."""
    others = game.num_players - 1
    return tuple((np.arange(low * others, high * others + 1) / others).tolist())


def _alike(game: Game) -> bool:
    """Whether all players have the same payoffs."""
    return np.array_equal(game.payoffs, mirror(game).payoffs)


def _with_numbers(game: Game, low: int, high: int, choose: Callable[[int], np.ndarray]) -> Game:
    """The game with a player's distinct payoffs replaced by so many rising numbers."""

    def renumber(points: np.ndarray) -> np.ndarray:
        values, ranks = np.unique(points, return_inverse=True)
        if high - low + 1 < len(values):
            raise UserError(
                f"env.payoff_range: {low} to {high} holds fewer numbers than {game.name} has"
                f" different payoffs ({len(values)})"
            )
        return choose(len(values))[ranks.reshape(points.shape)]

    own = renumber(game.payoffs[0])
    if _alike(game):
        return make_group_game(game.name, own[:, ::-1].tolist(), game.title)
    payoffs = np.stack([own, renumber(game.payoffs[1])])
    return game._replace(payoffs=payoffs.astype(np.float32))
