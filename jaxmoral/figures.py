"""Figures of runs and evaluations: the counterparts of those in arXiv 2410.01639.

Every function returns a matplotlib figure and its tips: what hovering over an artist (found by its
gid) says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.experiment import transition
from jaxmoral.lookup import training_game
from jaxmoral.metrics import ACTION_TYPES
from jaxmoral.rewards import bounds, get_reward, reward_table
from jaxmoral.runs import Run, summarise

INK = "#1a1b1c"  # of all text and lines; a page may replace it by its own
# arXiv 2410.01639, Fig. 2: M's move | O's previous move.
TYPE_COLOURS = ("#28641E", "#B0DC82", "#FBE6F1", "#8E0B52", "#A9A9A9", "#D3D3D3")
GAME_COLOURS = {
    "ipd": "#40C4C0",
    "ish": "#9932CC",
    "icn": "#DAA520",
    "bos": "#2E8B57",
    "icd": "#6495ED",
    "ivd": "#CD5C5C",
}
CURVE_COLOURS = ("#B8860B", "#9932CC", "#2E8B57", "#FF8C00", "#CD5C5C", "#1E90FF")
OUTCOME_COLOURS = {"C": "#3B6FB6", "D": "#C8443C", "illegal": "#A9A9A9"}
BASE = "No fine-tuning"

plt.rcParams.update(
    {
        "text.color": INK,
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

Drawn = tuple[plt.Figure, dict[str, str]]


class Tips(dict[str, str]):
    """Texts by gid."""

    def add(self, artist: Any, text: str) -> None:
        """Gives an artist a gid and its text."""
        gid = f"tip{len(self)}"
        artist.set_gid(gid)
        self[gid] = text


def training_types(panels: Mapping[str, Sequence[Run]], columns: int = 4) -> Drawn:
    """Stacked shares of what agents did given the opponent's previous move, by update.

    Args:
      panels: a title to the runs whose mean is drawn.
      columns: panels side by side.
    """
    count = len(panels)
    across = min(columns, count)
    down = -(-count // across)
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(2.6 * across + 1.6, 2.3 * down + 0.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    tips = Tips()
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for axes, (title, runs) in zip(grid.flat, panels.items(), strict=False):
        updates, shares = mean_types(runs)
        axes.stackplot(updates, shares, labels=ACTION_TYPES, colors=TYPE_COLOURS)
        step = max(1, len(updates) // 40)
        for index in range(0, len(updates), step):
            band = axes.axvspan(updates[index] - step / 2, updates[index] + step / 2, alpha=0)
            pairs = zip(ACTION_TYPES, shares[:, index], strict=True)
            parts = [f"{kind} {share:.1%}" for kind, share in pairs]
            tips.add(band, f"{title}, update {updates[index]:.0f}: " + ", ".join(parts))
        switch_at = runs[0].config.reward.switch_at
        if switch_at is not None:
            axes.axvline(switch_at, color=INK, linestyle="--", linewidth=1)
        axes.set(xlabel="update", ylim=(0, 1), title=title, xlim=(updates[0], updates[-1] + 1e-9))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    for row in grid:
        row[0].set_ylabel("share of rounds")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside right center",
        title="agent's action |\nopponent's previous",
    )
    return figure, tips


def mean_types(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Updates all runs have made, and mean shares, `[6, num_points]`, of at most 100 windows."""
    size = min(len(run.history) for run in runs)
    shares = np.mean(
        [
            [
                [record["action_types"][kind] for kind in ACTION_TYPES]
                for record in run.history[:size]
            ]
            for run in runs
        ],
        axis=0,
    )
    windows = np.array_split(np.arange(size), min(size, 100))
    updates = np.array([window.mean() + 1 for window in windows])
    return updates, np.array([shares[window].mean(0) for window in windows]).T


# What the paper's Fig. 12 scales rewards by: the smallest and largest of a reward on the IPD.
REWARD_SPANS = {
    "game": (-6.0, 4.0),
    "deontological": (-6.0, 0.0),
    "utilitarian": (-6.0, 6.0),
    "game+deontological": (-6.0, 4.0),
}


def _span(config: Config, name: str) -> tuple[float, float]:
    reward = config.reward
    try:
        game, function = training_game(config), get_reward(name)
    except UserError:  # of a run that was made with a reward of the user's own
        return reward.illegal, 6.0
    return bounds(reward_table(game, function, reward.xi, reward.illegal, reward.normalise))


def normalised_rewards(run: Run) -> np.ndarray:
    """The run's mean reward by update, from 0 to 1."""
    names = [run.config.reward.name, run.config.reward.then or run.config.reward.name]
    first, later = (
        np.array(REWARD_SPANS[name] if name in REWARD_SPANS else _span(run.config, name))
        for name in names
    )
    values = []
    for index, record in enumerate(run.history):
        share = transition(run.config, index)
        low, high = (1 - share) * first + share * later
        values.append((record["reward_mean"] - low) / (high - low))
    return np.array(values)


def reward_curves(
    panels: Mapping[str, Mapping[str, Sequence[Run]]],
    tabular: Mapping[str, Mapping[str, Sequence[Run]]],
) -> Drawn:
    """Normalised training reward with 95 % intervals over runs, a line per reward.

    Args:
      panels: a title to the lines: a reward's title to its runs.
      tabular: the same of runs of the tabular policy, drawn dotted.
    """
    figure, grid = plt.subplots(
        1,
        len(panels),
        figsize=(4.6 * len(panels) + 1.8, 3),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    tips = Tips()
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        for colour, (name, runs) in zip(CURVE_COLOURS, lines.items(), strict=False):
            size = min(len(run.history) for run in runs)
            curves = np.array([normalised_rewards(run)[:size] for run in runs])
            updates = np.arange(1, size + 1)
            mean = curves.mean(0)
            (line,) = axes.plot(updates, mean, color=colour, label=name, linewidth=1.5)
            if len(runs) > 1:
                width = 1.96 * curves.std(0, ddof=1) / len(runs) ** 0.5
                axes.fill_between(updates, mean - width, mean + width, color=colour, alpha=0.2)
            tips.add(
                line, f"{name}: {mean[0]:.2f} at first, {mean[-1]:.2f} at last, {len(runs)} runs"
            )
            if beside := tabular.get(title, {}).get(name):
                shown = np.mean([normalised_rewards(run)[:size] for run in beside], axis=0)
                (line,) = axes.plot(
                    np.arange(1, len(shown) + 1), shown, color=colour, linestyle=":", linewidth=1
                )
                tips.add(line, f"{name}, tabular policy: {shown[-1]:.2f} at last")
        axes.set(xlabel="update", title=title, ylim=(-0.03, 1.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].set_ylabel("reward, from 0 (worst) to 1")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if any(tabular.values()):
        handles.append(plt.Line2D([], [], color=INK, linestyle=":"))
        labels.append("tabular policy")
    figure.legend(handles, labels, loc="outside right center")
    return figure, tips


def regrets(
    table: pd.DataFrame,
    models: Sequence[str],
    games: Sequence[str],
    marks: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    tabular: pd.DataFrame | None = None,
) -> Drawn:
    """Moral regret per agent and game, with 95 % intervals over runs.

    Args:
      table: tidy rows of one suite, protocol and opponent, with a column `agent`.
      models: agents in the order they are drawn.
      games: likewise.
      marks: the paper's figures: kind of regret to agent to a number per game.
      tabular: the same rows of tabular policies.
    """
    kinds = {
        "deontological": ("regret/deontological/points", "deontological, points"),
        "utilitarian": ("regret/utilitarian/normalised", "utilitarian, 0 to 1"),
    }
    figure, panels = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    tips, width = Tips(), 0.8 / len(games)
    for axes, (kind, (metric, label)) in zip(panels, kinds.items(), strict=True):
        found = _by_agent_and_game(table, metric)
        alone = None if tabular is None else _by_agent_and_game(tabular, metric)
        for offset, game in enumerate(games):
            places = np.arange(len(models)) + (offset + 0.5) * width - 0.4
            colour = GAME_COLOURS.get(game, CURVE_COLOURS[offset % len(CURVE_COLOURS)])
            shown = game.upper() if game in GAME_COLOURS else game
            for place, model in zip(places, models, strict=True):
                if (model, game) not in found.index:
                    continue
                mean, interval, runs = found.loc[(model, game), ["mean", "interval", "runs"]]
                label_once = shown if model == models[0] else None
                (bar,) = axes.bar(
                    place,
                    mean,
                    width,
                    yerr=interval or None,
                    color=colour,
                    label=label_once,
                    error_kw={"ecolor": INK, "elinewidth": 0.8},
                )
                text = f"{model}, {shown}: {mean:.3f} ± {interval:.3f} ({int(runs)} runs)"
                if marks and model in marks.get(kind, {}) and offset < len(marks[kind][model]):
                    value = marks[kind][model][offset]
                    axes.plot(place, value, "x", color=INK, markersize=4)
                    text += f"; the paper: {value:.2f}"
                if alone is not None and (model, game) in alone.index:
                    value = alone.loc[(model, game), "mean"]
                    axes.plot([place - width / 2, place + width / 2], [value] * 2, ":", color=INK)
                    text += f"; tabular policy: {value:.3f}"
                tips.add(bar, text)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    panels[1].set_xticks(range(len(models)), list(map(folded, models)))
    handles, labels = panels[0].get_legend_handles_labels()
    if marks:
        handles.append(plt.Line2D([], [], color=INK, marker="x", linestyle=""))
        labels.append("paper (Gemma-2-2b-it)")
    if tabular is not None:
        handles.append(plt.Line2D([], [], color=INK, linestyle=":"))
        labels.append("tabular policy")
    figure.legend(handles, labels, loc="outside right center")
    return figure, tips


def folded(agent: str) -> str:
    """An agent's name on several short lines."""
    return agent.replace(", then ", ",\nthen\n").replace(", ", ",\n").replace("+", "+\n")


def _by_agent_and_game(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = table[table["metric"] == metric]
    return summarise(rows, ["agent", "condition"]).set_index(["agent", "condition"])


def stacked_bars(
    table: pd.DataFrame,
    models: Sequence[str],
    conditions: Sequence[str],
    metrics: Mapping[str, str],
    colours: Sequence[str],
    title: str,
) -> Drawn:
    """A panel per agent, a stacked bar per condition.

    Args:
      table: tidy rows of one suite, protocol and opponent, with a column `agent`.
      models: agents in the order they are drawn.
      conditions: likewise.
      metrics: a metric's name to what the legend calls it, from the bottom up.
      colours: of the metrics.
      title: of the legend.
    """
    across = min(4, len(models))
    down = -(-len(models) // across)
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(2.3 * across + 1.8, 2.4 * down + 0.4),
        sharey=True,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    tips = Tips()
    rows = table[table["metric"].isin(metrics)]
    found = summarise(rows, ["agent", "condition", "metric"]).set_index(
        ["agent", "condition", "metric"]
    )["mean"]
    for axes in grid.flat[len(models) :]:
        axes.set_visible(False)
    for axes, model in zip(grid.flat, models, strict=False):
        for place, condition in enumerate(conditions):
            bottom = 0.0
            for (metric, name), colour in zip(metrics.items(), colours, strict=True):
                share = found.get((model, condition, metric), 0.0)
                (bar,) = axes.bar(place, share, 0.8, bottom=bottom, color=colour, label=name)
                tips.add(bar, f"{model}, {condition}: {name} {share:.1%}")
                bottom += share
        axes.set(ylim=(0, 1))
        axes.set_title(model, fontsize=8)
        shown = [name.upper() if name in GAME_COLOURS else name for name in conditions]
        slanted = max(map(len, shown)) > 4
        axes.set_xticks(
            range(len(shown)),
            shown,
            rotation=40 if slanted else 0,
            ha="right" if slanted else "center",
        )
    for row in grid:
        row[0].set_ylabel("share of rounds")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(unique.values())[::-1], list(unique)[::-1], loc="outside right center", title=title
    )
    return figure, tips


def reciprocity(panels: Mapping[str, pd.DataFrame], models: Sequence[str]) -> Drawn:
    """The six action types per agent, beside the line of chance.

    Args:
      panels: a title to tidy rows of one condition, with a column `agent`.
      models: agents in the order they are drawn.
    """
    figure, grid = plt.subplots(
        len(panels),
        1,
        figsize=(9, 2.2 * len(panels) + 0.6),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    tips, width = Tips(), 0.8 / len(ACTION_TYPES)
    for axes, (title, table) in zip(grid[:, 0], panels.items(), strict=True):
        for offset, (kind, colour) in enumerate(zip(ACTION_TYPES, TYPE_COLOURS, strict=True)):
            rows = table[table["metric"] == f"action_types/{kind}"]
            found = summarise(rows, ["agent"]).set_index("agent")["mean"]
            for index, model in enumerate(models):
                share = found.get(model, 0.0)
                place = index + (offset + 0.5) * width - 0.4
                (bar,) = axes.bar(
                    place, share, width, color=colour, label=kind if not index else None
                )
                tips.add(bar, f"{model}: {kind} {share:.1%}")
        axes.axhline(0.25, color=INK, linestyle="--", linewidth=0.8)
        axes.set(title=title, ylabel="share of rounds", ylim=(0, 1))
    grid[-1, 0].set_xticks(range(len(models)), list(map(folded, models)))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right center", title="agent's action |\nopponent's previous"
    )
    return figure, tips


def save(drawn: Drawn, path: Path) -> Path:
    """Writes a figure as the kind of file its name says, and forgets it."""
    drawn[0].savefig(path, dpi=150, facecolor="white")
    plt.close(drawn[0])
    return path
