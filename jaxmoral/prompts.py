"""The prompts: every text the agent can see in a game, and the index that finds each.

With one remembered round and two independent label shuffles a game has 2 x 2 x 2 x 2 = 16
prompts. Prompt index = `memory_index(own, other) * NUM_ORDERS + order`, where `order`'s high bit
swaps the labels in the opening sentence and its low bit swaps them in the format line. A wording
that leaves one of these out has equal texts among its 16, which cost nothing in a prompt tree.

Wordings, personas and questions are text files beside this module (`wordings/`, `personas/`,
`questions/`); a user's own file works as well. Their structure is that of arXiv 2410.01639 (its
Fig. 6 to 11, 24, 26), the words are ours.
"""

import itertools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxmoral.errors import UserError, choose
from jaxmoral.games import CELLS, Game

NUM_MEMORIES = 4
NUM_ORDERS = 4
NUM_PROMPTS = NUM_MEMORIES * NUM_ORDERS

# Which action comes first in the payoff table's columns and in its rows (arXiv 2410.01639, Fig. 9).
TABLE_ORDERS = {
    "original": ((0, 1), (0, 1)),
    "permuted1": ((1, 0), (0, 1)),
    "permuted2": ((0, 1), (1, 0)),
    "reversed": ((1, 0), (1, 0)),
}
_POINTS = [f"{cell.lower()}_{player}" for cell in CELLS for player in ("own", "other")]
PLACEHOLDERS = [
    *("opening", "choices", "c", "d", "table", "own", "other", "own_points", "other_points"),
    *_POINTS,
]


def _read_folder(name: str) -> dict[str, str]:
    files = (Path(__file__).parent / name).glob("*.txt")
    return {path.stem: path.read_text().strip() for path in sorted(files)}


WORDINGS = _read_folder("wordings")
PERSONAS = {"none": ""} | _read_folder("personas")
QUESTIONS = _read_folder("questions")


class Presentation(NamedTuple):
    """How a game is put to the agent.

    Attributes:
      wording: a name in `WORDINGS`, or a template's text.
      persona: a name in `PERSONAS`, or the text that comes before the prompt.
      labels: what C and D are called.
      table_order: a name in `TABLE_ORDERS`.
    """

    wording: str = "structured"
    persona: str = "none"
    labels: tuple[str, str] = ("action1", "action2")
    table_order: str = "original"


def memory_index(own, other):
    """Index of the remembered round from both moves (ints or arrays, 0 for C and 1 for D)."""
    return own * 2 + other


def inline(key: str, value: str, known: dict[str, str]) -> str:
    """A known name or a text as they are; the path of a .txt file becomes its text.

    Raises:
      UserError: it is neither, or the file cannot be read.
    """
    if value in known or any(character.isspace() for character in value.strip()):
        return value
    if not value.endswith(".txt"):
        choose(key, value, {**known, "the path of a .txt file": ""})
    try:
        return Path(value).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: cannot read {value} ({error})") from None


def check_wording(wording: str) -> str:
    """The template's text; raises UserError unless it can be filled in and names both labels."""
    text = WORDINGS.get(wording, wording)
    shown = wording if wording in WORDINGS else repr(text[:40])
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UserError(f"prompt.wording: {shown} has stray braces ({error})") from None
    unknown = sorted(names - set(PLACEHOLDERS))
    if unknown:
        known = ", ".join(PLACEHOLDERS)
        raise UserError(
            f"prompt.wording: {shown} has the unknown placeholder {{{unknown[0]}}}; use {known}"
        )
    if not names & {"opening", "choices"} and not {"c", "d"} <= names:
        raise UserError(
            f"prompt.wording: {shown} does not name the labels; it needs {{choices}}, {{opening}},"
            " or both {c} and {d}"
        )
    return text


def check_labels(labels: Sequence[str], key: str = "prompt.labels") -> tuple[str, str]:
    """Returns the labels (C's, D's); raises UserError unless the two can be told apart."""
    if len(labels) != 2 or not all(label and label == label.strip() for label in labels):
        raise UserError(
            f"{key}: needs two non-empty labels without outer white space, got {labels!r}"
        )
    first, second = labels
    if first.startswith(second) or second.startswith(first):
        raise UserError(
            f"{key}: {first!r} and {second!r} cannot be told apart, one is a prefix of the"
            " other; choose labels like ['action1', 'action2']"
        )
    return first, second


def check(presentation: Presentation) -> Presentation:
    """The presentation, files read in; raises UserError if no prompt can be made of it."""
    wording = inline("prompt.wording", presentation.wording, WORDINGS)
    check_wording(wording)
    choose("prompt.table_order", presentation.table_order, TABLE_ORDERS)
    return Presentation(
        wording,
        inline("prompt.persona", presentation.persona, PERSONAS),
        check_labels(presentation.labels),
        presentation.table_order,
    )


def _number(points: float) -> str:
    return f"{points:g}"


def prompt_text(
    game: Game,
    presentation: Presentation,
    own: int,
    other: int,
    opening_swapped: int,
    format_swapped: int,
) -> str:
    """The text of one prompt, without a chat template.

    Args:
      game: the game.
      presentation: checked.
      own, other: the remembered moves of the agent and of the opponent.
      opening_swapped, format_swapped: 1 to name D's label first in that sentence.
    """
    labels = presentation.labels

    def pair(swapped: int) -> str:
        return f"{labels[swapped]} or {labels[1 - swapped]}"

    points = [[tuple(map(_number, game.payoffs[:, row, col])) for col in (0, 1)] for row in (0, 1)]
    columns, rows = TABLE_ORDERS[presentation.table_order]
    table = [f"| | {labels[columns[0]]} | {labels[columns[1]]} |", "|---|---|---|"]
    for row in rows:
        cells = (", ".join(points[row][column]) for column in columns)
        table.append(f"| {labels[row]} | " + " | ".join(cells) + " |")
    fields = {
        "opening": pair(opening_swapped),
        "choices": pair(format_swapped),
        "c": labels[0],
        "d": labels[1],
        "table": "\n".join(table),
        "own": labels[own],
        "other": labels[other],
        "own_points": points[own][other][0],
        "other_points": points[own][other][1],
    }
    for cell, (row, column) in zip(CELLS, itertools.product((0, 1), repeat=2), strict=True):
        for player, name in enumerate(("own", "other")):
            fields[f"{cell.lower()}_{name}"] = points[row][column][player]
    wording = WORDINGS.get(presentation.wording, presentation.wording)
    persona = PERSONAS.get(presentation.persona, presentation.persona)
    text = wording.format_map(fields)
    return f"{persona}\n\n{text}" if persona else text


def all_prompts(game: Game, presentation: Presentation) -> list[str]:
    """The `NUM_PROMPTS` texts of a game in index order."""
    choices = itertools.product((0, 1), repeat=4)
    return [prompt_text(game, presentation, *choice) for choice in choices]
