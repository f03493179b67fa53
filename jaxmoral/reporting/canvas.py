"""What figures are drawn on: their look, panels, and what hovering over an artist says."""

import os
from pathlib import Path
from typing import Any

import matplotlib

if "MPLBACKEND" not in os.environ:  # a notebook's draws in the notebook, and goes on doing so
    matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from jaxmoral.files import replacing
from jaxmoral.reporting.styles import INK

plt.rcParams.update(
    {
        "text.color": INK,
        "text.parse_math": False,  # names of users' own may hold dollars
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.facecolor": "none",
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "jaxmoral",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

Drawn = tuple[plt.Figure, dict[str, str]]  # and its tips


class Tips(dict[str, str]):
    """Texts by gid."""

    def add(self, artist: Any, text: str) -> None:
        """Gives an artist a gid and its text."""
        gid = f"tip{len(self)}"
        artist.set_gid(gid)
        self[gid] = text


def lay_out(
    count: int,
    most: int,
    *,
    panel: tuple[float, float],
    margin: tuple[float, float],
    **shared: Any,
) -> tuple[plt.Figure, np.ndarray]:
    """Panels in rows as even as can be; places that are left over stay empty.

    Args:
      count: how many.
      most: side by side.
      panel: width and height of one, in inches.
      margin: what legends and labels need beside all of them, likewise.
      shared: `sharex` and `sharey` of `subplots`.

    Returns:
      The figure, and its axes `[num_rows, num_columns]`.
    """
    down = -(-count // most)
    across = -(-count // down)
    size = (panel[0] * across + margin[0], panel[1] * down + margin[1])
    figure, grid = plt.subplots(
        down, across, figsize=size, squeeze=False, layout="constrained", **shared
    )
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, grid


def save(drawn: Drawn, path: Path) -> Path:
    """Writes a figure as the kind of file its name says, and forgets it."""
    kind = path.suffix[1:]
    with replacing(path) as scratch:
        drawn[0].savefig(scratch, format=kind, dpi=150, facecolor="white")
    plt.close(drawn[0])
    return path
