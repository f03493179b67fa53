"""Two-player 2x2 matrix games: a registry of payoff arrays and the pure step.

A game is one array `[2 (player), 2 (own action), 2 (other's action)]` as seen by the first
player: `payoffs[0]` are the first player's points, `payoffs[1]` the second player's. Action 0 is
C and action 1 is D in every game, whatever the labels in the prompt are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.errors import UserError, choose

CELLS = ("CC", "CD", "DC", "DD")


class Game(NamedTuple):
    """A named game; `payoffs` is `[2 (player), 2 (own action), 2 (other's action)]` float32."""

    name: str
    title: str
    payoffs: np.ndarray


GAMES: dict[str, Game] = {}


def make_game(name: str, pairs: Mapping[str, Sequence[float]], title: str | None = None) -> Game:
    """Builds a game from its four payoff pairs.

    Args:
      name: the registry key.
      pairs: for each joint action "CC", "CD", "DC", "DD" (the first player's letter first) the
        points of the first and of the second player.
      title: how tables and pictures call it; the name when not given.

    Raises:
      UserError: a joint action is missing or unknown, or its points are not two finite numbers.
    """
    if set(pairs) != set(CELLS):
        raise UserError(f"games.{name}: needs exactly the keys {', '.join(CELLS)}")
    for cell, pair in pairs.items():
        if len(pair) != 2 or not np.all(np.isfinite(pair)):
            raise UserError(f"games.{name}.{cell}: needs two finite numbers, got {list(pair)}")
    cells = np.array([pairs[cell] for cell in CELLS], np.float32)
    return Game(name, title or name, np.moveaxis(cells.reshape(2, 2, 2), -1, 0))


def register(game: Game) -> Game:
    """Adds a game to the registry. Raises UserError if the name is taken by another game."""
    known = GAMES.setdefault(game.name, game)
    if not np.array_equal(known.payoffs, game.payoffs):
        raise UserError(f"games.{game.name}: the name is taken by a game with other payoffs")
    return known


def get_game(name: str) -> Game:
    """Looks a game up by name; raises UserError that lists the names when there is none."""
    return choose("game", name, GAMES)


def mirror(game: Game) -> Game:
    """The same game as the second player sees it."""
    return game._replace(payoffs=game.payoffs[::-1].transpose(0, 2, 1))


def step(
    payoffs: chex.Array, own_action: chex.Array, other_action: chex.Array
) -> tuple[jax.Array, jax.Array]:
    """One simultaneous move.

    Args:
      payoffs: `[2, 2, 2]`.
      own_action: `[...]` integers, 0 for C and 1 for D.
      other_action: `[...]` likewise.

    Returns:
      The points of the first and of the second player, `[...]` each.
    """
    chex.assert_shape(payoffs, (2, 2, 2))
    points = jnp.asarray(payoffs)[:, own_action, other_action]
    return points[0], points[1]


# arXiv 2410.01639, Fig. 1 and Table 3; "ivd" is defined in the authors' code but not reported.
for _name, _title, _cc, _cd, _dc, _dd in (
    ("ipd", "Prisoner's Dilemma", (3, 3), (0, 4), (4, 0), (1, 1)),
    ("ish", "Stag Hunt", (4, 4), (0, 3), (3, 0), (1, 1)),
    ("icn", "Chicken", (2, 2), (1, 4), (4, 1), (0, 0)),
    ("bos", "Bach or Stravinsky", (3, 2), (0, 0), (0, 0), (2, 3)),
    ("icd", "Defective Coordination", (1, 1), (0, 0), (0, 0), (4, 4)),
    ("ivd", "Volunteer's Dilemma", (3, 3), (1, 4), (4, 1), (0, 0)),
):
    register(make_game(_name, dict(zip(CELLS, (_cc, _cd, _dc, _dd), strict=True)), _title))
