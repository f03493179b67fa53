"""The prompts: every text the agent can see in a game, and the index that finds each.

With one remembered round and two independent label shuffles a game has 2 x 2 x 2 x 2 = 16
prompts. Prompt index = `history * NUM_ORDERS + order`, where `history` numbers what is remembered
(`memory.Memory.histories`) and `order`'s high bit swaps the labels in the opening sentence, its low
bit those in the format line. A wording that leaves one of these out has equal texts among its
prompts, which cost nothing in a prompt tree.

Wordings, personas and questions are text files beside this module (`wordings/`, `personas/`,
`questions/`); a user's own file works as well. Their structure is that of arXiv 2410.01639 (its
Fig. 6 to 11, 24, 26), the words are ours. The line of a template that speaks of a remembered round
stands once for each, the oldest first, and not at all when nothing is remembered. A wording for
more than two players has the same name with "-group" at its end.

An agent that thinks does so where a template has {think}: there its prompt ends, with a sentence
that asks for a thought, and the rest of the template is the cue between the thought and the answer.
Without thinking {think} is nothing.
"""

import itertools
import os
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmoral.config import MAX_TEXT
from jaxmoral.errors import UserError, choose
from jaxmoral.world.games import CELLS, Game
from jaxmoral.world.memory import History, Memory, make_memory

# Which action comes first in the payoff table's columns and in its rows (arXiv 2410.01639, Fig. 9).
TABLE_ORDERS = {
    "original": ((0, 1), (0, 1)),
    "permuted1": ((1, 0), (0, 1)),
    "permuted2": ((0, 1), (1, 0)),
    "reversed": ((1, 0), (1, 0)),
}
_POINTS = [f"{cell.lower()}_{player}" for cell in CELLS for player in ("own", "other")]
_ROUND = ("when", "own", "other", "own_points", "other_points", "others_c")
_GROUP = ("num_players", "num_others")
PLACEHOLDERS = ["opening", "choices", "c", "d", "table", "think", *_ROUND, *_GROUP, *_POINTS]
THINK = " First think about it in one line."
_MARK = "\x02"  # where a prompt ends if the agent thinks; no text of a configuration holds it
_WHEN = ("Last time", "The time before that", "Three times ago")


def _read_folder(name: str) -> dict[str, str]:
    files = (Path(__file__).parent / name).glob("*.txt")
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(files)}


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
      memory: how many past rounds are shown.
      blank: whether episodes start without a remembered round.
    """

    wording: str = "structured"
    persona: str = "none"
    labels: tuple[str, str] = ("action1", "action2")
    table_order: str = "original"
    memory: int = 1
    blank: bool = False

    def remembers(self, game: Game) -> Memory:
        """The memory an agent has in a game."""
        return make_memory(*self.memory_key(game))

    def memory_key(self, game: Game) -> tuple[int, int, bool]:
        """Arguments of `make_memory`, for what is hashed."""
        return self.memory, game.num_players, self.blank


def is_path(value: str) -> bool:
    """Whether a line stands for a file: there is one, or it looks like nothing but a path.

    A sentence may hold a slash ("and/or"), so a slash alone makes no path.
    """
    if len(value.splitlines()) != 1:
        return False
    folder, name = os.path.split(value)
    suffix = os.path.splitext(name)[1][1:]
    rooted = value.startswith(("/", "./", "../", "~"))
    in_folder = bool(folder) and (rooted or suffix in ("txt", "md") or os.path.isdir(folder))
    return value.endswith(".txt") or os.path.isfile(value) or in_folder


def inline(key: str, value: str, known: dict[str, str]) -> str:
    """A known name or a text as they are; the path of a text file becomes its text.

    Raises:
      UserError: it is neither, the file cannot be read, or its text could be taken for something
        else where the run's configuration has it.
    """
    if value in known:
        return value
    if not is_path(value):
        if not any(character.isspace() for character in value.strip()):
            choose(key, value, {**known, "the path of a .txt file": ""})
        return value
    try:
        with Path(value).open(encoding="utf-8-sig") as file:
            text = file.read(MAX_TEXT + 1).strip()
    except (OSError, ValueError) as error:  # also of other bytes than UTF-8
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}: cannot read {value} ({reason})") from None
    if len(text) > MAX_TEXT:
        raise UserError(f"{key}: {value} has more than {MAX_TEXT:,} characters")
    if len(text.split()) < 2 or is_path(text):
        raise UserError(f"{key}: {value} must hold a text of several words that is no path itself")
    odd = [c for c in text if unicodedata.category(c) == "Cc" and c not in "\t\n"]
    if odd:
        raise UserError(f"{key}: {value} holds a control character, {odd[0]!r}")
    return text


def _fields(line: str) -> set[str]:
    """The placeholders; raises ValueError if one says how it wants to be formatted."""
    found = set()
    for _, name, layout, conversion in string.Formatter().parse(line):
        if layout or conversion:
            raise ValueError(f"{{{name}}} stands for a text as it is, without ':' and '!'")
        if name is not None:
            found.add(name)
    return found


def check_wording(wording: str, memory: int = 1) -> str:
    """The template's text; raises UserError unless it can be filled in and names both labels."""
    text = WORDINGS.get(wording, wording)
    shown = wording if wording in WORDINGS else repr(text[:40])
    try:
        names = _fields(text)
    except ValueError as error:
        raise UserError(f"prompt.wording: {shown} cannot be filled in ({error})") from None
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
    for line in text.splitlines() if memory != 1 else []:
        of_round = _fields(line) & set(_ROUND)
        if of_round and _fields(line) - set(_ROUND):
            raise UserError(
                f"prompt.wording: {shown} needs a line of its own for a remembered round (one with"
                f" {', '.join(sorted(of_round))}), to show {memory} of them"
            )
        if memory > 1 and of_round and "when" not in of_round:
            raise UserError(
                f"prompt.wording: {shown} needs {{when}} in the line of a remembered round, to show"
                f" {memory} of them"
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
    check_wording(wording, 0 if presentation.blank else presentation.memory)
    if presentation.blank:
        check_wording(wording, presentation.memory)
    choose("prompt.table_order", presentation.table_order, TABLE_ORDERS)
    return presentation._replace(
        wording=wording,
        persona=inline("prompt.persona", presentation.persona, PERSONAS),
        labels=check_labels(presentation.labels),
    )


def thinking_cue(wording: str, cue: str | None = None) -> str:
    """What follows {think} in a wording, without white space at its end; or a cue of one's own.

    Raises:
      UserError: the wording has no {think}, or no cue.
    """
    shown = wording if wording in WORDINGS else repr(wording[:40])
    _, found, following = WORDINGS.get(wording, wording).partition("{think}")
    if not found:
        raise UserError(
            f"prompt.wording: {shown} has no {{think}}, where an agent with thinking.tokens would"
            " think; put it before the last line"
        )
    if cue is None and (not following.strip() or _fields(following)):
        raise UserError(
            f"thinking.cue: in the wording {shown} no plain text follows {{think}} that could be"
            " the cue; put the cue there or set thinking.cue"
        )
    return following.rstrip() if cue is None else cue


def _template(game: Game, wording: str) -> str:
    """The wording's text for so many players; raises UserError if it is for another number."""
    if game.num_players > 2 and f"{wording}-group" in WORDINGS:
        wording = f"{wording}-group"
    text = WORDINGS.get(wording, wording)
    for_group = bool(_fields(text) & {"others_c", *_GROUP})
    # Wordings of ours speak of one other player, also where no placeholder tells.
    for_two = bool(_fields(text) & {"other", *_POINTS}) or (wording in WORDINGS and not for_group)
    if for_two if game.num_players > 2 else for_group:
        shown = wording if wording in WORDINGS else repr(text[:40])
        raise UserError(
            f"prompt.wording: {shown} is not for the {game.num_players} players of {game.name}; use"
            " structured"
        )
    return text


def shows_table(game: Game, wording: str) -> bool:
    """Whether the order of the payoff table changes the prompts."""
    return "table" in _fields(_template(game, wording))


def shows_points(game: Game, wording: str) -> bool:
    """Whether prompts differ between games; a story is the same in all."""
    of_points = {"table", "own_points", "other_points", *_POINTS}
    return bool(_fields(_template(game, wording)) & of_points)


def number_text(points: float | str) -> str:
    """How prompts show points; a text stands in for a number as it is."""
    if isinstance(points, str):
        return points
    text = f"{round(float(points), 2) + 0.0:.2f}"  # no negative zero
    return text.rstrip("0").rstrip(".")


def _check_points(game: Game) -> None:
    """Raises UserError if points that differ are shown as one number."""
    shown: dict[str, float] = {}
    for points in game.payoffs.flat:
        text = number_text(points)
        known = shown.setdefault(text, points)
        if not isinstance(points, str) and not np.isclose(points, known, rtol=1e-5, atol=0):
            raise UserError(
                f"{game.name}: prompts show two decimals, {known:g} and {points:g} points both as"
                f" {text}; choose larger ones"
            )


def _table(game: Game, presentation: Presentation) -> str:
    """The payoffs in Markdown: a column per what the others do, a row per own action."""
    labels, others = presentation.labels, game.num_players - 1
    first, rows = TABLE_ORDERS[presentation.table_order]
    columns = list(range(others + 1))[:: -1 if first == (1, 0) else 1]
    heads: tuple[str, ...] = labels
    if others > 1:
        heads = tuple(f"{others - d} of {others} others {labels[0]}" for d in range(others + 1))
    lines = ["| | " + " | ".join(heads[column] for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in rows:
        cells = [game.payoffs[:, row, column] for column in columns]
        shown = [", ".join(map(number_text, cell[: 1 if others > 1 else 2])) for cell in cells]
        lines.append(f"| {labels[row]} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def prompt_text(
    game: Game,
    presentation: Presentation,
    history: History,
    opening_swapped: int,
    format_swapped: int,
    *,
    think: bool = False,
) -> str:
    """The text of one prompt, without a chat template.

    Args:
      game: the game.
      presentation: checked.
      history: remembered moves of the agent and of the opponent (of several, how many chose D),
        the oldest round first.
      opening_swapped, format_swapped: 1 to name D's label first in that sentence.
      think: whether it ends where the agent thinks, with a sentence that asks for it.

    Raises:
      UserError: the wording is for another number of players.
    """
    labels, others = presentation.labels, game.num_players - 1

    def pair(swapped: int) -> str:
        return f"{labels[swapped]} or {labels[1 - swapped]}"

    fields = {
        "opening": pair(opening_swapped),
        "choices": pair(format_swapped),
        "c": labels[0],
        "d": labels[1],
        "table": _table(game, presentation),
        "think": THINK + _MARK if think else "",
        "num_players": str(others + 1),
        "num_others": str(others),
    }
    if others == 1:
        for cell, (row, column) in zip(CELLS, itertools.product((0, 1), repeat=2), strict=True):
            for player, name in enumerate(("own", "other")):
                fields[f"{cell.lower()}_{name}"] = number_text(game.payoffs[player, row, column])
    lines = []
    for line in _template(game, presentation.wording).splitlines():
        if not _fields(line) & set(_ROUND):
            lines.append(line.format_map(fields))
            continue
        for age, (own, other) in reversed(list(enumerate(reversed(history)))):
            about = {
                "when": _WHEN[age],
                "own": labels[own],
                "other": labels[other] if others == 1 else "",
                "others_c": str(others - other),
                "own_points": number_text(game.payoffs[0, own, other]),
                "other_points": number_text(game.payoffs[1, own, other]),
            }
            lines.append(line.format_map(fields | about))
    text = "\n".join(lines)
    if think:
        text, _, _ = text.partition(_MARK)
    persona = PERSONAS.get(presentation.persona, presentation.persona)
    return f"{persona}\n\n{text}" if persona else text


def all_prompts(game: Game, presentation: Presentation, *, think: bool = False) -> list[str]:
    """The texts of a game in index order, of an agent that thinks up to its thought.

    Raises:
      UserError: the wording is for another number of players, or some points look alike.
    """
    _check_points(game)
    histories = presentation.remembers(game).histories
    orders = itertools.product((0, 1), repeat=2)
    return [
        prompt_text(game, presentation, history, *order, think=think)
        for history, order in itertools.product(histories, list(orders))
    ]


class Condition(NamedTuple):
    """A game as it is put to the agent."""

    game: Game
    presentation: Presentation

    @property
    def key(self) -> tuple[str, bytes, Presentation]:
        """What tells two conditions apart."""
        return self.game.name, self.game.payoffs.tobytes(), self.presentation
