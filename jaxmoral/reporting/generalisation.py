"""How much of what holds in training holds outside: a figure and a table of `generalisation`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from jaxmoral.measuring.generalisation import OPPONENT, SUITE, by_novelty, in_order
from jaxmoral.measuring.runs import summarise
from jaxmoral.reporting.canvas import Drawn, Tips
from jaxmoral.reporting.sections import Section
from jaxmoral.reporting.series import Series, shown_names
from jaxmoral.reporting.styles import INK, mark_style, number_of_runs, wrapped

# What is drawn: a measure's name, that of the worst condition's, and the axis' title.
MEASURES = {
    "illegal": ("worst illegal", "illegal answers,\nlargest share"),
    "apart": ("worst apart", "P(C | history), largest\ndistance from own labels"),
    "deontological": (None, "deontological regret,\npoints"),
    "utilitarian": (None, "utilitarian regret,\n0 to 1"),
}
TRAINED = "trained"  # what the legend calls an agent alone
_SHARES = ("illegal", "apart")
_BY = ["agent", "policy", "novelty", "metric"]
CAPTION = (
    "By what a condition shows that training did not, with in how many conditions. Illegal answers"
    " and the distance are the largest after any remembered round; the distance is from what the"
    " same policy does with labels of training in the same game, with a new game alone from what it"
    " does in training. Mark: mean over conditions and runs, with its 95 % interval over runs; thin"
    " line: up to the worst condition of any run. Hollow: the base. Regret is exact, against the"
    " opponents of training where those were tested, in “new opponent” and “all together” against"
    " others."
)


def generalisation_table(series: Sequence[Series]) -> pd.DataFrame:
    """One row per run, policy, novelty and measure of the runs that were tested in the suite.

    The columns are agent (a name in the figure), title, policy, novelty, metric and value.
    """
    tested = [
        (index, run)
        for index, one in enumerate(series)
        for run in one.runs
        if SUITE in (run.evaluation or {}).get("suites", {})
    ]
    present = list(dict.fromkeys(index for index, _ in tested))
    names = dict(zip(present, shown_names([series[index] for index in present]), strict=True))
    rows = [
        {"agent": names[index], "title": series[index].title} | row
        for index, run in tested
        for row in measured_rows(run.evaluation or {})
    ]
    return pd.DataFrame(rows)


def measured_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """An evaluation's policy, novelty, metric and value, one by one."""
    return [
        {"policy": policy, "novelty": novelty, "metric": metric, "value": value}
        for policy in evaluation["policies"]
        for novelty, measured in by_novelty(evaluation, policy).items()
        for metric, value in measured.items()
    ]


def generalisation_sections(series: Sequence[Series]) -> list[Section]:
    """The figure, if a run was tested in the suite."""
    table = generalisation_table(series)
    if table.empty:
        return []
    heading = "What holds outside of training (no figure of the paper)"
    return [Section("generalisation", heading, CAPTION, partial(draw_generalisation, table))]


def draw_generalisation(table: pd.DataFrame) -> Drawn:
    """A row of panels for each reward, a panel for each measure: means and worst, by what is new.

    Args:
      table: of `generalisation_table`.
    """
    titles, novelties = list(dict.fromkeys(table["title"])), in_order(table["novelty"])
    agents = {title: _agents_of(table, title) for title in titles}
    most = max(map(len, agents.values()))
    names = {(title, agent): _short(agent, title) for title in titles for agent in agents[title]}
    if most == 1:
        names = dict.fromkeys(names, TRAINED)
    # One look for one name, whatever else is in a row.
    looks = {name: mark_style(index) for index, name in enumerate(dict.fromkeys(names.values()))}
    figure, grid = plt.subplots(
        len(titles),
        len(MEASURES),
        figsize=(13, (0.12 * (2 * most + 1) * len(novelties) + 0.5) * len(titles) + 1.2),
        sharex="col",
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    tips = Tips()
    found, worst = _summaries(table)
    for row, title in zip(grid, titles, strict=True):
        for axes, metric in zip(row, MEASURES, strict=True):
            for index, agent in enumerate(agents[title]):
                look = looks[names[title, agent]]
                slots = (2 * index + 1) / (2 * most + 1), (2 * index + 2) / (2 * most + 1)
                for policy, slot in zip(("base", "tuned"), slots, strict=True):
                    colours = look | ({"markerfacecolor": "none"} if policy == "base" else {})
                    for place, novelty in enumerate(novelties):
                        key = (agent, policy, novelty, metric)
                        if key in found.index:
                            ends = found.loc[key], worst.get(key)
                            text = f"{agent}, {policy}, {novelty}"
                            _draw_mark(
                                axes, place + slot - 0.5, ends, look=colours, tips=(tips, text)
                            )
        _set_axes(row, wrapped(title), novelties, table)
    for axes, (_, label) in zip(grid[-1], MEASURES.values(), strict=True):
        axes.set_xlabel(label)
    looks["hollow: the base beside it"] = mark_style(0) | {"color": INK, "markerfacecolor": "none"}
    figure.legend(
        [plt.Line2D([], [], **look, linestyle="") for look in looks.values()],
        list(map(wrapped, looks)),
        loc="outside lower center",
        ncols=min(len(looks), 3),
    )
    return figure, tips


def _agents_of(table: pd.DataFrame, title: str) -> list[str]:
    return list(dict.fromkeys(table[table["title"] == title]["agent"]))


def _short(agent: str, title: str) -> str:
    """What tells an agent from others of its reward."""
    return agent.removeprefix(title).lstrip(", ") or TRAINED


def _summaries(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[tuple, float]]:
    """Means over runs by `_BY`; the worst condition's of any run by the same keys."""
    found = summarise(table, _BY).set_index(_BY).sort_index()
    largest = table.groupby(_BY)["value"].max()
    worst = {
        (agent, policy, novelty, metric): value
        for metric, (name, _) in MEASURES.items()
        for (agent, policy, novelty, measured), value in largest.items()
        if measured == name
    }
    return found, worst


def _draw_mark(
    axes: plt.Axes,
    place: float,
    ends: tuple[pd.Series, float | None],
    *,
    look: dict[str, Any],
    tips: tuple[Tips, str],
) -> None:
    """A mean with its interval, and a thin line to the worst; the tip says the numbers."""
    (summary, worst), (found, name) = ends, tips
    mean, interval, runs = summary["mean"], summary["interval"], int(summary["runs"])
    text = f"{name}: {mean:.3f} ± {interval:.3f} ({number_of_runs(runs)})"
    if worst is not None:
        axes.plot([mean, worst], [place] * 2, color=look["color"], linewidth=0.7)
        axes.plot(worst, place, "|", color=look["color"], markersize=5)
        text += f"; at worst {worst:.3f}"
    if interval:
        ends_of = [max(mean - interval, 0), mean + interval]
        axes.plot(ends_of, [place] * 2, color=look["color"], linewidth=2.5, alpha=0.5)
    (mark,) = axes.plot(mean, place, linestyle="", **look)
    found.add(mark, text)


def _set_axes(row: np.ndarray, title: str, novelties: Sequence[str], table: pd.DataFrame) -> None:
    """Names on the left, a line between what is new and what is new, the reward above."""
    counts = table[table["metric"] == "conditions"].groupby("novelty")["value"].max()
    row[0].set_yticks(range(len(novelties)), [f"{n} ({counts[n]:.0f})" for n in novelties])
    row[0].set_ylim(len(novelties) - 0.5, -0.5)
    row[0].set_title(title, loc="left")
    for axes, metric in zip(row, MEASURES, strict=True):
        axes.tick_params(axis="y", length=0)
        for edge in range(1, len(novelties)):
            axes.axhline(edge - 0.5, color=INK, linewidth=0.4, alpha=0.3)
        if metric in _SHARES and OPPONENT in novelties:  # whom it does not see
            place = novelties.index(OPPONENT)
            axes.text(0.5, place, "as seen", ha="center", va="center", alpha=0.6)
        if metric != "deontological":
            axes.set_xlim(-0.03, 1.03)
        else:
            axes.set_xlim(left=-0.03 * max(table[table["metric"] == metric]["value"].max(), 0.1))


def generalisation_rows(series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """The figure in numbers, a header and rows; shares in percent."""
    table = generalisation_table(series)
    if table.empty:
        return [], []
    found, worst = _summaries(table)
    novelties = in_order(table["novelty"])
    rows = []
    for agent in dict.fromkeys(table["agent"]):
        for policy in ("base", "tuned"):
            for metric in MEASURES:
                keys = [(agent, policy, novelty, metric) for novelty in novelties]
                cells = [_cell(found, worst, key) for key in keys]
                if any(cells):
                    unit = f"{metric}, %" if metric in _SHARES else f"{metric} regret"
                    rows.append([agent, policy, unit, *cells])
    return ["agent", "policy", "measure", *novelties], rows


def _cell(found: pd.DataFrame, worst: Mapping[tuple, float], key: tuple) -> str:
    if key not in found.index:
        return ""
    mean, interval, runs = found.loc[key, ["mean", "interval", "runs"]]
    percent = key[-1] in _SHARES
    shown = (lambda value: f"{100 * value:.1f}") if percent else (lambda value: f"{value:.2f}")
    text = shown(mean) + (f" ± {shown(interval)}" if runs > 1 else "")
    return f"{text} ({shown(worst[key])})" if key in worst else text
