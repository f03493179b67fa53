"""Figures of runs and evaluations: the counterparts of those in arXiv 2410.01639.

Every function returns a matplotlib figure and its tips: what hovering over an artist (found by its
gid) says.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from jaxmoral.learning.metrics import ACTION_TYPES
from jaxmoral.measuring.comparing import MEASURES
from jaxmoral.measuring.measures import REGRET_METRICS
from jaxmoral.measuring.runs import Run, half_width, summarise
from jaxmoral.reporting.canvas import Drawn, Tips, lay_out
from jaxmoral.reporting.styles import (
    DOTS,
    INK,
    MARK,
    TITLE_WIDTH,
    TYPE_COLOURS,
    folded,
    game_styles,
    game_title,
    level,
    line_styles,
    number_of_runs,
    reward_colour,
    wrapped,
)


def training_types(panels: Mapping[str, Sequence[Run]]) -> Drawn:
    """Stacked shares of what agents did given the opponent's previous move, by update.

    Args:
      panels: a title to the runs whose mean is drawn, which made equally many updates.
    """
    figure, grid = lay_out(len(panels), 4, panel=(2.6, 2.3), margin=(1.6, 0.5), sharey=True)
    tips = Tips()
    marked: dict[str, Any] = {}
    for axes, (title, runs) in zip(grid.flat, panels.items(), strict=False):
        updates, shares = mean_types(runs)
        edges = updates if len(updates) > 1 else [0.5, 1.5]  # an area, not a line
        areas = np.broadcast_to(shares, (len(shares), len(edges)))
        axes.stackplot(edges, areas, labels=ACTION_TYPES, colors=TYPE_COLOURS)
        step = max(1, len(updates) // 40)
        for index in range(0, len(updates), step):
            band = axes.axvspan(updates[index] - step / 2, updates[index] + step / 2, alpha=0)
            pairs = zip(ACTION_TYPES, shares[:, index], strict=True)
            parts = [f"{kind} {share:.1%}" for kind, share in pairs]
            tips.add(band, f"{title}, update {updates[index]:.0f}: " + ", ".join(parts))
        switch_at = runs[0].config.reward.switch_at
        if switch_at is not None:
            switch = axes.axvline(switch_at, **MARK)
            marked["another reward from here"] = switch
        if shares.sum(0).min() < 0.999:  # episodes began blank
            marked["no round before"] = plt.Rectangle((0, 0), 1, 1, facecolor="w", edgecolor=INK)
        axes.set(xlabel="update", ylim=(0, 1), xlim=(edges[0], edges[-1]))
        axes.set_title(wrapped(title))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    for row in grid:
        row[0].set_ylabel("share of rounds")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        [*handles[::-1], *marked.values()],
        [*labels[::-1], *marked],
        loc="outside right center",
        title="agent's action |\nopponent's previous",
    )
    return figure, tips


def mean_types(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Updates and mean shares, `[6, num_points]`, of at most 100 windows.

    Raises:
      ValueError: the runs made different numbers of updates.
    """
    size = len(runs[0].history)
    if any(len(run.history) != size for run in runs):
        raise ValueError("only runs with equally many updates have a mean")
    shares = np.mean(
        [
            [[record["action_types"][kind] for kind in ACTION_TYPES] for record in run.history]
            for run in runs
        ],
        axis=0,
    )
    windows = np.array_split(np.arange(size), min(size, 100))
    updates = np.array([window.mean() + 1 for window in windows])
    return updates, np.array([shares[window].mean(0) for window in windows]).T


class Curve(NamedTuple):
    """A line of `reward_curves`.

    Attributes:
      name: what the legend calls it.
      title: the reward, which has a colour.
      values: `[num_runs, num_updates]` from 0 to 1.
      tabular: whether the runs are of the tabular policy; then the line is dotted.
    """

    name: str
    title: str
    values: np.ndarray
    tabular: bool = False


def reward_curves(panels: Mapping[str, Sequence[Curve]]) -> Drawn:
    """Normalised training reward with 95 % intervals over runs, a line per series.

    Args:
      panels: a title to its lines.
    """
    figure, grid = lay_out(len(panels), 2, panel=(4.2, 2.8), margin=(2.4, 0.2), sharey=True)
    tips = Tips()
    handles: dict[str, Any] = {}
    styles = _curve_styles([curve for curves in panels.values() for curve in curves])
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for curve in curves:
            colour, style = styles[curve.name, curve.tabular]
            mean, count = curve.values.mean(0), len(curve.values)
            updates = np.arange(1, len(mean) + 1)
            (line,) = axes.plot(
                updates, mean, color=colour, linestyle=style, linewidth=1 if curve.tabular else 1.5
            )
            if count > 1 and not curve.tabular:
                width = half_width(curve.values.std(0, ddof=1), count)
                axes.fill_between(updates, mean - width, mean + width, color=colour, alpha=0.2)
            runs = number_of_runs(count)
            tips.add(line, f"{curve.name}: {mean[0]:.2f} at first, {mean[-1]:.2f} at last, {runs}")
            name = curve.name
            if curve.tabular:
                name = tabular_name(curve.name, curve.title)
                if curve.name == curve.title:  # one entry for all of them
                    line = plt.Line2D([], [], color=INK, linestyle=style)
            handles.setdefault(name, line)
        handles["the most of a round"] = level(axes, 1)
        axes.set(xlabel="update", ylim=(-0.03, 1.05))
        axes.set_title(wrapped(title, 2 * TITLE_WIDTH))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for row in grid:
        row[0].set_ylabel("reward, from 0 (worst) to 1")
    names = [wrapped(name) for name in handles]
    figure.legend(list(handles.values()), names, loc="outside right center", fontsize=8)
    return figure, tips


def tabular_name(name: str, title: str) -> str:
    """What legends call a series of tables of a reward."""
    return "tabular policy" if name == title else f"tabular policy, {name}"


def _curve_styles(curves: Sequence[Curve]) -> dict[tuple[str, bool], tuple[str, Any]]:
    """Colour and line by name and whether it is a table's, the same in every panel."""
    titles = {(curve.name, curve.tabular): curve.title for curve in curves}
    solid = {key: title for key, title in titles.items() if not key[1]}
    found = dict(zip(solid, line_styles(solid.values()), strict=True))
    used: Counter[str] = Counter()
    for key, title in titles.items():
        if key[1]:
            found[key] = reward_colour(title), DOTS[used[title] % len(DOTS)]
            used[title] += 1
    return found


def regrets(
    table: pd.DataFrame,
    models: Sequence[str],
    games: Sequence[str],
    marks: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    tabular: pd.DataFrame | None = None,
) -> Drawn:
    """Moral regret per agent and game, with 95 % intervals over runs.

    Args:
      table: tidy rows of one suite, protocol and opponent, with a column `agent`.
      models: agents in the order they are drawn.
      games: likewise.
      marks: the paper's figures: kind of regret to agent to game to a number.
      tabular: the same rows of tabular policies, with a column `table` that names them.
    """
    bars = len(models) * len(games)
    size = (min(max(9.0, 2.2 + 1.05 * len(models), 2.2 + 0.08 * bars), 20.0), 5)
    figure, panels = plt.subplots(2, 1, figsize=size, sharex=True, layout="constrained")
    tips, width = Tips(), 0.8 / len(games)
    tables = [] if tabular is None else list(dict.fromkeys(tabular["table"]))
    dots = dict(zip(tables, (DOTS[index % len(DOTS)] for index in range(len(tables))), strict=True))
    legend: dict[str, Any] = {}
    for axes, (kind, metric) in zip(panels, REGRET_METRICS.items(), strict=True):
        found = _summary_of(table, metric, _BESIDE)
        alone = None if tabular is None else _summary_of(tabular, metric, [*_BESIDE, "table"])
        printed = (marks or {}).get(kind, {})
        for offset, (game, (colour, hatch)) in enumerate(
            zip(games, game_styles(games), strict=True)
        ):
            places = np.arange(len(models)) + (offset + 0.5) * width - 0.4
            for place, model in zip(places, models, strict=True):
                if (model, game) not in found.index:
                    continue
                mean, interval, runs = found.loc[(model, game), ["mean", "interval", "runs"]]
                (bar,) = axes.bar(
                    place,
                    mean,
                    width,
                    yerr=interval or None,
                    color=colour,
                    hatch=hatch,
                    edgecolor=INK,
                    linewidth=0,
                    error_kw={"ecolor": INK, "elinewidth": 0.8},
                )
                legend.setdefault(game_title(game), bar)
                many = number_of_runs(int(runs))
                text = f"{model}, {game_title(game)}: {mean:.3f} ± {interval:.3f} ({many})"
                if (value := printed.get(model, {}).get(game)) is not None:
                    axes.plot(place, value, "x", color=INK, markersize=4)
                    text += f"; the paper: {value:.2f}"
                for name in tables:
                    if alone is not None and (model, game, name) in alone.index:
                        value = alone.loc[(model, game, name), "mean"]
                        ends = [place - width / 2, place + width / 2]
                        axes.plot(ends, [value] * 2, linestyle=dots[name], color=INK)
                        text += f"; {name}: {value:.3f}"
                tips.add(bar, text)
        axes.set_ylabel(MEASURES[metric])
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # so that the line at 0 is seen
        legend["optimum: no regret"] = level(axes, 0)
    crowded = len(models) > 8
    panels[1].set_xlabel("agent, named by its reward")
    panels[1].set_xticks(
        range(len(models)), list(map(folded, models)), fontsize=7 if crowded else 9
    )
    if any(marks.values() if marks else ()):
        legend["paper (Gemma-2-2b-it)"] = plt.Line2D([], [], color=INK, marker="x", linestyle="")
    for name in tables:
        legend[wrapped(name)] = plt.Line2D([], [], color=INK, linestyle=dots[name])
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside right center",
        ncols=-(-len(legend) // 18),
        fontsize=9 if len(legend) < 19 else 7,
    )
    return figure, tips


_BESIDE = ["agent", "condition"]


def _summary_of(table: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    return summarise(table[table["metric"] == metric], by).set_index(list(by))


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
    side = max(2.3, 0.18 * len(conditions))
    figure, grid = lay_out(
        len(models),
        max(1, int(10 / side)),
        panel=(side, 2.4),
        margin=(1.8, 0.4),
        sharex=True,
        sharey=True,
    )
    tips = Tips()
    rows = table[table["metric"].isin(metrics)]
    found = summarise(rows, ["agent", "condition", "metric"]).set_index(
        ["agent", "condition", "metric"]
    )["mean"]
    for axes in grid.flat[max(len(models) - grid.shape[1], 0) : len(models)]:
        axes.tick_params(labelbottom=True)
    for axes, model in zip(grid.flat, models, strict=False):
        for place, condition in enumerate(conditions):
            bottom = 0.0
            for (metric, name), colour in zip(metrics.items(), colours, strict=True):
                share = found.get((model, condition, metric))
                if share is None:  # this agent was not tested in it
                    continue
                (bar,) = axes.bar(place, share, 0.8, bottom=bottom, color=colour, label=name)
                tips.add(bar, f"{model}, {condition}: {name} {share:.1%}")
                bottom += share
        axes.set(ylim=(0, 1))
        axes.set_title(wrapped(model), fontsize=8)
        shown = list(map(game_title, conditions))
        slanted = max(map(len, shown)) > 4
        upright = len(shown) > 8
        axes.set_xticks(
            range(len(shown)),
            shown,
            rotation=90 if upright else 40 if slanted else 0,
            ha="right" if slanted and not upright else "center",
            fontsize=7 if slanted or upright else 9,
        )
    for row in grid:
        row[0].set_ylabel("share of rounds")
    names = list(metrics.values())
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    figure.legend(handles[::-1], names[::-1], loc="outside right center", title=title)
    return figure, tips


def reciprocity(
    panels: Mapping[str, pd.DataFrame], models: Sequence[str], *, even: bool = True
) -> Drawn:
    """The six action types per agent.

    Args:
      panels: a title to tidy rows of one condition, with a column `agent`.
      models: agents in the order they are drawn.
      even: whether an agent that tosses a coin has a quarter of each legal type, which gets a line.
    """
    width = max(9.0, 1.1 * len(models) + 1.5)
    figure, grid = lay_out(len(panels), 1, panel=(width, 2.2), margin=(0, 0.6), sharex=True)
    tips, width = Tips(), 0.8 / len(ACTION_TYPES)
    lines: dict[str, Any] = {}
    for axes, (title, table) in zip(grid[:, 0], panels.items(), strict=True):
        for offset, (kind, colour) in enumerate(zip(ACTION_TYPES, TYPE_COLOURS, strict=True)):
            rows = table[table["metric"] == f"action_types/{kind}"]
            found = summarise(rows, ["agent"]).set_index("agent")["mean"]
            for index, model in enumerate(models):
                share = found.get(model)
                if share is None:
                    continue
                place = index + (offset + 0.5) * width - 0.4
                (bar,) = axes.bar(place, share, width, color=colour)
                tips.add(bar, f"{model}: {kind} {share:.1%}")
        if even:
            lines["chance: 1/4"] = level(axes, 0.25)
        axes.set(title=title, ylabel="share of rounds", ylim=(0, 1))
    crowded = len(models) > 8
    grid[-1, 0].set_xticks(
        range(len(models)), list(map(folded, models)), fontsize=7 if crowded else 9
    )
    handles = [*(plt.Rectangle((0, 0), 1, 1, color=colour) for colour in TYPE_COLOURS)]
    title = "agent's action |\nopponent's previous"
    handles, names = [*handles, *lines.values()], [*ACTION_TYPES, *lines]
    figure.legend(handles, names, loc="outside right center", title=title)
    return figure, tips
