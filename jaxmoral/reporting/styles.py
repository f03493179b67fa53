"""What pictures have in common: a colour for each reward and game, and how names are shown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any
from zlib import crc32

INK = "#1a1b1c"  # of all text and lines; a page may replace it by its own
# arXiv 2410.01639, Fig. 2: M's move | O's previous move.
TYPE_COLOURS = ("#28641E", "#B0DC82", "#FBE6F1", "#8E0B52", "#A9A9A9", "#D3D3D3")
# Told apart also by the colour-blind (Okabe & Ito 2008).
DISTINCT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAME_COLOURS = dict(zip(("ipd", "ish", "icn", "bos", "icd", "ivd"), DISTINCT, strict=True))
BASE = "No fine-tuning"
# One reward, or strategy, has one colour in every figure: these their own (the paper's six those of
# `DISTINCT`), others by their name.
COLOURS = {
    BASE: "#8C8C8C",
    "game": "#E69F00",
    "deontological": "#CC79A7",
    "utilitarian": "#009E73",
    "game+deontological": "#D55E00",
    "game, then deontological": "#0072B2",
    "game, then utilitarian": "#56B4E9",
    "virtue-equality": "#17A2A2",
    "virtue-kindness": "#E0529C",
    "maximin": "#7A5230",
    "harm-avoidance": "#6B8E23",
    "tit-for-tat": "#4C5FD7",
    "always-defect": "#A23B4A",
    "always-cooperate": "#00A878",
    "random": "#556B8D",
    "grim-trigger": "#E4572E",
    "win-stay-lose-shift": "#52B2CF",
    "joss": "#5C3D99",
    "alternator": "#E58FB1",
}
MORE_COLOURS = (
    "#4C5FD7",
    "#E4572E",
    "#00A878",
    "#B5179E",
    "#7F9C3B",
    "#5C3D99",
    "#C9A227",
    "#2274A5",
    "#A23B4A",
    "#52B2CF",
    "#8D6A9F",
    "#D17A22",
    "#3D6B4F",
    "#E58FB1",
    "#556B8D",
)
MARK = {"color": INK, "linestyle": "--", "linewidth": 0.8}  # the look of what is marked on an axis
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# What tells lines of one colour apart, and bars.
LINES = ("-", "--", "-.", (0, (9, 2, 3, 2)), (0, (6, 1, 1, 1, 1, 1)), (0, (12, 3)))
DOTS = ((0, (1, 1)), (0, (1, 3)), (0, (1, 1, 1, 4)), (0, (1, 6)))
HATCHES = ("", "////", "....", "xxxx", r"\\\\", "++++", "oo", "||||", "----", "**")
OUTCOME_COLOURS = {"C": DISTINCT[0], "D": DISTINCT[1], "illegal": "#A9A9A9"}
TITLE_WIDTH = 30  # characters of a panel's title on a line


def mark_style(index: int) -> dict[str, Any]:
    """How the marks of the agent of a number look."""
    colour, marker = DISTINCT[index % len(DISTINCT)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 5}


def number_of_runs(count: int) -> str:
    """What a mean is of, in words."""
    return "1 run" if count == 1 else f"{count} runs"


def reward_colour(title: str) -> str:
    """The colour of agents of a reward (or of a strategy), the same in every figure."""
    if title in COLOURS:
        return COLOURS[title]
    return MORE_COLOURS[crc32(title.encode()) % len(MORE_COLOURS)]


def line_styles(titles: Iterable[str]) -> list[tuple[str, Any]]:
    """Each title's colour, and what tells the lines of one colour apart."""
    used: Counter[str] = Counter()
    found = []
    for title in titles:
        colour = reward_colour(title)
        found.append((colour, LINES[used[colour] % len(LINES)]))
        used[colour] += 1
    return found


def game_styles(games: Sequence[str]) -> list[tuple[str, str]]:
    """A colour and a hatch for each game; no two have both in common."""
    others = [game for game in games if game not in GAME_COLOURS]
    found = {game: (colour, "") for game, colour in GAME_COLOURS.items()}
    for index, game in enumerate(others):
        round_, place = divmod(index, len(MORE_COLOURS))
        found[game] = MORE_COLOURS[place], HATCHES[round_ % len(HATCHES)]
    return [found[game] for game in games]


def game_title(name: str) -> str:
    """How pictures and tables call a game."""
    return name.upper() if name in GAME_COLOURS else name


def level(axes: Any, height: float, label: str = "") -> Any:
    """Draws a dashed line from side to side, of chance or of the optimum; returns the artist."""
    across = axes.get_yaxis_transform()
    return axes.hlines(
        height, 0, 1, transform=across, label=label, colors=INK, linestyles="--", linewidth=0.8
    )


def wrapped(name: str, width: int = TITLE_WIDTH) -> str:
    """A name on lines of so many characters at most."""
    return fill(name, width, break_on_hyphens=False)


def folded(agent: str) -> str:
    """An agent's name on several short lines."""
    lines = agent.replace(", then ", ",\nthen\n").replace(", ", ",\n").replace("+", "+\n")
    return "\n".join(wrapped(line, 18) for line in lines.split("\n"))
