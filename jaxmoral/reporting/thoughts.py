"""What answers owe to thoughts: a figure, a table and samples of the suite `thoughts`."""

from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from typing import Any, NamedTuple

import numpy as np

from jaxmoral.measuring.thoughts import SUITE
from jaxmoral.reporting.canvas import Drawn, Tips, lay_out
from jaxmoral.reporting.sections import Section
from jaxmoral.reporting.series import Series, shown_names
from jaxmoral.reporting.styles import DISTINCT, level, wrapped

CAPTION = (
    "How likely C is after a remembered round (the agent's move first), given thoughts of different"
    " origin; a thin line is one standard error over thoughts to each side. Where all bars of a"
    " round are alike, the answer does not depend on what was thought."
)


class Studied(NamedTuple):
    """A run's study in a condition; see `measuring.thoughts.study`."""

    name: str
    study: dict[str, Any]


def studied(series: Sequence[Series]) -> list[Studied]:
    """Every study of the runs, named by agent and seed, and by condition where there are more."""
    found = []
    for name, one in zip(shown_names(series), series, strict=True):
        for run in one.runs:
            suite = (run.evaluation or {}).get("suites", {}).get(SUITE, {})
            for condition, tested in suite.items():
                where = f", {condition}" if len(suite) > 1 else ""
                title = f"{name}, seed {run.config.seed}{where}"
                found.append(Studied(title, tested["thoughts"]))
    return found


def thought_sections(series: Sequence[Series]) -> list[Section]:
    """The figure, if thoughts of a run were studied."""
    found = studied(series)
    if not found:
        return []
    heading = "What answers owe to thoughts (no figure of the paper)"
    return [Section("thoughts", heading, CAPTION, partial(draw_thoughts, found))]


def draw_thoughts(found: Sequence[Studied]) -> Drawn:
    """A panel for each agent: bars by remembered round and by whose thoughts were given."""
    figure, grid = lay_out(len(found), 1, panel=(10, 2.4), margin=(0, 0.8))
    tips, legend = Tips(), dict[str, Any]()
    for axes, (name, study) in zip(grid[:, 0], found, strict=True):
        after = list(study["policies"].values())[-1]["after"]
        histories = list(next(iter(after.values())))
        width = 0.8 / len(after)
        for index, (whose, rows) in enumerate(after.items()):
            places = np.arange(len(histories)) + (index - (len(after) - 1) / 2) * width
            colour = DISTINCT[index % len(DISTINCT)]
            heights = [row["C"] for row in rows.values()]
            errors = [row["error"] for row in rows.values()]
            bars = axes.bar(
                places, heights, width, yerr=errors, color=colour, error_kw={"linewidth": 0.7}
            )
            legend.setdefault(whose, bars)
            for bar, history, height, error in zip(bars, histories, heights, errors, strict=True):
                tips.add(bar, f"{whose} thoughts after {history}: {height:.1%} ± {error:.1%}")
        axes.set_xticks(range(len(histories)), histories)
        axes.set_ylim(0, 1)
        axes.set_ylabel("P(C)")
        axes.set_xlabel("after (own move, the other's)")
        legend["chance: 1/2"] = level(axes, 0.5)
        axes.set_title(wrapped(name), loc="left")
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower center", ncols=len(legend)
    )
    return figure, tips


def thought_rows(series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """The same in numbers, a header and rows: P(C) in percent, information in nats."""
    found = studied(series)
    if not found:
        return [], []
    told: list[tuple[list[str], dict[str, str]]] = []  # what of whom, by history
    for name, study in found:
        for policy, own in study["policies"].items():
            for whose, after in own["after"].items():
                cells = {
                    history: f"{100 * row['C']:.1f} ± {100 * row['error']:.1f}"
                    for history, row in after.items()
                }
                told.append(([name, policy, f"P(C), %, thoughts: {whose}"], cells))
            cells = {
                history: f"{row['nats']:.3f} ± {row['error']:.3f}"
                for history, row in own["information"].items()
            }
            told.append(([name, policy, "information, nats"], cells))
    histories = list(dict.fromkeys(history for _, cells in told for history in cells))
    rows = [[*heads, *(cells.get(history, "") for history in histories)] for heads, cells in told]
    return ["agent", "policy", "measure", *histories], rows


def thought_blocks(series: Sequence[Series]) -> str:
    """Samples of what agents think, as HTML that opens."""
    return "\n".join(
        f"<details><summary>{escape(name)}</summary>{''.join(_samples(study))}</details>"
        for name, study in studied(series)
    )


def _samples(study: dict[str, Any]) -> Iterator[str]:
    for policy, own in study["policies"].items():
        for history, each in own["said"].items():
            for one in each:
                head = f"{policy}, after {history}: then C {one['C']:.0%}, D {one['D']:.0%}"
                yield f"<p>{escape(head)}</p><blockquote>{escape(one['thought'])}</blockquote>"
