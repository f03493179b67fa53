"""Pictures: action types over training, and moral regret per game."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from jaxmoral.measures import REGRETS
from jaxmoral.metrics import ACTION_TYPES

# arXiv 2410.01639, Fig. 2: M's move | O's previous move.
_COLOURS = ("#28641E", "#B0DC82", "#FBE6F1", "#8E0B52", "#A9A9A9", "#D3D3D3")
_POLICY_COLOURS = {"base": "#A9A9A9", "tuned": "#28641E"}


def plot_action_types(histories: dict[str, list[dict]], path: Path) -> Path:
    """Stacked shares of what the agent did given the opponent's previous move, by update.

    Args:
      histories: a panel's title to its run's records, as in `metrics.jsonl`.
      path: of the picture.
    """
    count = len(histories)
    figure, panels = plt.subplots(
        1, count, figsize=(3 + 3 * count, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (title, history) in zip(panels[0], histories.items(), strict=True):
        types = [record["action_types"] for record in history]
        shares = np.array([[share[kind] for share in types] for kind in ACTION_TYPES])
        updates = [record["update"] for record in history]
        axes.stackplot(updates, shares, labels=ACTION_TYPES, colors=_COLOURS)
        axes.set(xlabel="update", ylim=(0, 1), title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0)
    panels[0, 0].set_ylabel("share of rounds")
    handles, labels = panels[0, -1].get_legend_handles_labels()
    title = "agent's action |\nopponent's previous"
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", title=title)
    return _save(figure, path)


def plot_regret(evaluation: dict[str, Any], path: Path) -> Path:
    """Exact normalised regret per condition of the first suite, base beside tuned.

    Against the first opponent.
    """
    opponent = evaluation["opponents"][0]
    games = next(iter(evaluation["suites"].values()))
    width = 0.8 / len(evaluation["policies"])
    figure, panels = plt.subplots(
        1, len(REGRETS), figsize=(9, 3.4), sharey=True, layout="constrained"
    )
    for axes, kind in zip(panels, REGRETS, strict=True):
        for offset, policy in enumerate(evaluation["policies"]):
            heights = [
                game["policies"][policy]["opponents"][opponent]["exact"]["regret"][kind][
                    "normalised"
                ]
                for game in games.values()
            ]
            places = np.arange(len(games)) + (offset + 0.5) * width - 0.4
            bars = axes.bar(places, heights, width, label=policy, color=_POLICY_COLOURS[policy])
            axes.bar_label(bars, fmt="%.2f", fontsize=7)
        axes.set_xticks(range(len(games)), [name.upper() for name in games])
        axes.set(title=f"{kind} regret", ylim=(0, 1.1))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"normalised, against {opponent}")
    panels[-1].legend()
    return _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
