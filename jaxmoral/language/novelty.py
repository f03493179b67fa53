"""What a condition shows that training did not: by construction, from the axes trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmoral.language.prompts import (
    PERSONAS,
    TABLE_ORDERS,
    Condition,
    Presentation,
    shows_points,
    shows_table,
)
from jaxmoral.world.games import Game

_MOST_OF_AXIS = 8
_EVERY_IN_NEW_GAMES = 2  # pair of new labels also stands in a new game
WORDINGS = ("structured", "story", "unstructured", "explicit")


class Seen(NamedTuple):
    """The values of each axis that training drew from, in order.

    Attributes:
      games: as the first player saw them.
      labels: pairs of C's and D's.
      wordings, personas, table_orders: as in `prompts.Presentation`.
    """

    games: tuple[Game, ...]
    labels: tuple[tuple[str, str], ...]
    wordings: tuple[str, ...]
    personas: tuple[str, ...]
    table_orders: tuple[str, ...]


def novelty(condition: Condition, seen: Seen) -> list[str]:
    """The axes on which a condition is new; "exchanged labels" are known ones, C's for D's.

    What its wording does not show is not new: a story tells neither games nor orders apart.
    """
    game, shown = condition
    found = []
    if shows_points(game, shown.wording) and not _is_known(game, seen):
        found.append("game")
    if shown.labels not in seen.labels:
        found.append("exchanged labels" if shown.labels[::-1] in seen.labels else "labels")
    for axis, value, known in (
        ("wording", shown.wording, seen.wordings),
        ("persona", shown.persona, seen.personas),
        ("table order", shown.table_order, seen.table_orders),
    ):
        hidden = axis == "table order" and not shows_table(game, shown.wording)
        if value not in known and not hidden:
            found.append(axis)
    return found


def _is_known(game: Game, seen: Seen) -> bool:
    """By its name (its points may have been drawn) or by its points: prompts show no names."""
    return any(
        game.name == known.name or np.array_equal(game.payoffs, known.payoffs)
        for known in seen.games
    )


def mark(condition: Condition, seen: Seen) -> str:
    """ "seen", or what is new: "new game, new labels"."""
    new = novelty(condition, seen)
    return ", ".join(f"new {axis}".replace("new exchanged", "exchanged") for axis in new) or "seen"


def held_out_labels() -> list[tuple[str, str]]:
    """Pairs that are in no list to train on: words, letters, digits, strings, other languages."""
    lines = (Path(__file__).parent / "held_out.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return [(first, second) for first, second in pairs]


def generalisation(shown: Presentation, games: Sequence[Game], seen: Seen) -> dict[str, Condition]:
    """What was trained on, each axis new alone, and a game, labels and a look of it together.

    Args:
      shown: how the agent was shown games; its memory is kept.
      games: among which those not trained on are new.
      seen: of training.

    Returns:
      Conditions by name; `novelty` tells what each is for.
    """
    base = shown._replace(
        labels=seen.labels[0],
        wording=seen.wordings[0],
        persona=seen.personas[0],
        table_order=seen.table_orders[0],
    )
    own = seen.games[0]
    new_labels = [pair for pair in held_out_labels() if pair not in seen.labels]
    exchanged = [pair[::-1] for pair in seen.labels if pair[::-1] not in seen.labels]
    new_games = [game for game in games if not _is_known(game, seen)]
    if not shows_points(own, base.wording):
        new_games = []
    known_wordings = seen.wordings if own.num_players == 2 else WORDINGS  # they speak of one other
    new_wordings = [name for name in WORDINGS if name not in known_wordings]
    new_personas = [name for name in PERSONAS if name not in seen.personas]
    new_orders = [name for name in TABLE_ORDERS if name not in seen.table_orders]
    if not shows_table(own, base.wording):
        new_orders = []

    every: list[tuple[Game, dict[str, Any]]]
    every = [(own, {"labels": pair}) for pair in seen.labels[:_MOST_OF_AXIS]]
    every += [(game, {}) for game in [*seen.games[1:_MOST_OF_AXIS], *new_games]]
    every += [(own, {"labels": pair}) for pair in [*exchanged[:_MOST_OF_AXIS], *new_labels]]
    every += [(own, {"wording": name}) for name in new_wordings]
    every += [(own, {"table_order": name}) for name in new_orders]
    every += [(own, {"persona": name}) for name in new_personas]
    games_in_turn = new_games or [own]
    for index, pair in enumerate(new_labels[::_EVERY_IN_NEW_GAMES]):
        every.append((_in_turn(games_in_turn, index), {"labels": pair}))
    # Orders show in a table only, and a game only in its points.
    ways = [{"wording": name} for name in new_wordings if shows_points(own, name)]
    ways += [{"table_order": name} for name in new_orders]
    for index, pair in enumerate(new_labels[:: max(len(new_labels) // _MOST_OF_AXIS, 1)]):
        changes = {"labels": pair, **_in_turn(ways or [{}], index)}
        every.append((_in_turn(games_in_turn, index), changes))
    conditions = [Condition(game, base._replace(**changes)) for game, changes in every]
    return {_name(condition): condition for condition in conditions}


def _in_turn(values: Sequence[Any], index: int) -> Any:
    return values[index % len(values)]


def _name(condition: Condition) -> str:
    game, shown = condition
    rest = [shown.wording.split("\n")[0][:20], shown.table_order, shown.persona[:20]]
    usual = ["structured", "original", "none"]
    parts = [part for part, known in zip(rest, usual, strict=True) if part != known]
    return " ".join([game.name, "/".join(shown.labels), *parts])
