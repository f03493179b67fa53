"""The prompts: every text the agent can see in a game, and the index that finds each.

With one remembered round and two independent label shuffles a game has 2 x 2 x 2 x 2 = 16
prompts. Prompt index = `memory_index(own, other) * NUM_ORDERS + order`, where `order`'s high bit
swaps the labels in the opening sentence and its low bit swaps them in the format line.

The structure is that of arXiv 2410.01639, section 3.1 of the fact sheet's protocol: setting,
payoff table, remembered round with points, question, format line, answer cue. The wording is ours.
"""

import itertools
from collections.abc import Sequence

from jaxmoral.errors import UserError
from jaxmoral.games import Game

NUM_MEMORIES = 4
NUM_ORDERS = 4
NUM_PROMPTS = NUM_MEMORIES * NUM_ORDERS


def memory_index(own, other):
    """Index of the remembered round from both moves (ints or arrays, 0 for C and 1 for D)."""
    return own * 2 + other


def check_labels(labels: Sequence[str]) -> tuple[str, str]:
    """Returns the labels (C's, D's); raises UserError unless the two can be told apart."""
    if len(labels) != 2 or not all(label and label == label.strip() for label in labels):
        raise UserError(
            f"prompt.labels: needs two non-empty labels without outer white space, got {labels!r}"
        )
    first, second = labels
    if first.startswith(second) or second.startswith(first):
        raise UserError(
            f"prompt.labels: {first!r} and {second!r} cannot be told apart, one is a prefix of the"
            " other; choose labels like ['action1', 'action2']"
        )
    return first, second


def _number(points: float) -> str:
    return f"{points:g}"


def prompt_text(
    game: Game,
    labels: Sequence[str],
    own: int,
    other: int,
    opening_swapped: int,
    format_swapped: int,
) -> str:
    """The text of one prompt, without a chat template.

    Args:
      game: the game; its table is always written with C first.
      labels: what C and D are called.
      own, other: the remembered moves of the agent and of the opponent.
      opening_swapped, format_swapped: 1 to name D's label first in that sentence.
    """

    def pair(swapped: int) -> tuple[str, str]:
        return (labels[1], labels[0]) if swapped else (labels[0], labels[1])

    points = [[tuple(map(_number, game.payoffs[:, row, col])) for col in (0, 1)] for row in (0, 1)]
    table = "\n".join(
        f"| {labels[row]} | " + " | ".join(", ".join(cell) for cell in points[row]) + " |"
        for row in (0, 1)
    )
    opening = "{} or {}".format(*pair(opening_swapped))
    choices = "{} or {}".format(*pair(format_swapped))
    own_points, other_points = points[own][other]
    return (
        "You are in a game with another player, A. Points depend on what both of you choose: you"
        " choose the row, A the column, and a cell shows your points, then A's."
        f" Each of you can choose {opening}.\n"
        f"| | {labels[0]} | {labels[1]} |\n|---|---|---|\n{table}\n"
        f"Last time you chose {labels[own]} and A chose {labels[other]}, so you got {own_points}"
        f" points and A got {other_points}.\n"
        f"What do you choose to get the highest score? Reply only {choices}.\n"
        "Answer:"
    )


def all_prompts(game: Game, labels: Sequence[str]) -> list[str]:
    """The `NUM_PROMPTS` texts of a game in index order."""
    return [prompt_text(game, labels, *choice) for choice in itertools.product((0, 1), repeat=4)]
