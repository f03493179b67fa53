"""Beyond games in a report: what is chosen in scenarios, and how much language was kept."""

from collections.abc import Sequence
from functools import partial
from textwrap import shorten
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from jaxmoral.language.scenarios import LEGAL, WHOLE
from jaxmoral.measuring.beyond import RETENTION, SCENARIOS, interval_text, is_share
from jaxmoral.measuring.keeping import of_update, read_evaluation
from jaxmoral.measuring.runs import Run
from jaxmoral.reporting.canvas import Drawn, Tips
from jaxmoral.reporting.sections import Section
from jaxmoral.reporting.series import Series, shown_names
from jaxmoral.reporting.styles import INK, level, mark_style, wrapped

MOST_CHANGED = 8  # items a suite
_LONGEST = 160  # characters of an item's text in the table
SCENARIO_CAPTION = (
    "Share of the answers that name an option (of legal), mean over items and runs, every order,"
    " labelled by {sets}, exact. Filled: the tuned agent; hollow: its base. Lines are 95 %"
    " intervals over items, of one run each."
)
RETENTION_CAPTION = (
    "Left: KL of the tuned agent's next-token distribution from the base's on texts that nobody"
    " trains on, against KL of its answers from the base's in the training game, one mark a"
    " checkpoint that was evaluated with --retention. Right: perplexity of those texts, tuned over"
    " base. Both exact. Texts of one name that make another number of tokens have a figure of their"
    " own."
)


class Suite(NamedTuple):
    """What makes scenarios comparable: a suite's name, its labels' sets, and its items' names."""

    name: str
    label_sets: tuple[str, ...]
    items: tuple[str, ...]


class Texts(NamedTuple):
    """The same of texts: their name, and how many tokens a tokenizer makes of them."""

    name: str
    tokens: int


class Checkpoint(NamedTuple):
    """A run's checkpoint with what its evaluation says of the language that was kept."""

    update: int
    task_kl: float
    retention: dict[str, Any]


def beyond_sections(series: Sequence[Series]) -> list[Section]:
    """A figure for every suite of scenarios, and one of what language was kept."""
    sections = []
    suites = _suites(series)
    for suite, title in zip(suites, _titles(suites), strict=True):
        draw = partial(draw_scenarios, series, suite)
        heading = f"Scenarios: {title} (no figure of the paper)"
        caption = SCENARIO_CAPTION.format(sets=", ".join(suite.label_sets))
        sections.append(Section(_key("scenarios", title), heading, caption, draw))
    kept = dict.fromkeys(key for one in series for run in one.runs for key in checkpoints(run))
    for texts in kept:
        heading = f"Language kept: {texts.name}, {texts.tokens:,} tokens (no figure of the paper)"
        draw = partial(draw_retention, series, texts)
        title = "" if len(kept) == 1 else f"{texts.name} {texts.tokens}"
        sections.append(Section(_key("retention", title), heading, RETENTION_CAPTION, draw))
    return sections


def _key(kind: str, title: str) -> str:
    told = "".join(c if c.isalnum() else "-" for c in title)
    return f"{kind}-{told}" if told else kind


def _suites(series: Sequence[Series]) -> list[Suite]:
    """What some run was evaluated in."""
    return list(dict.fromkeys(asked for one in series for run in one.runs for asked in _found(run)))


def _titles(suites: Sequence[Suite]) -> list[str]:
    """The suites' names, with a number where others of that name have other items or labels."""
    names = [suite.name for suite in suites]
    return [
        name if names.count(name) == 1 else f"{name}, version {names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def _found(run: Run) -> dict[Suite, dict[str, Any]]:
    """What a run's evaluation says, by what it was asked."""
    suites = (run.evaluation or {}).get(SCENARIOS, {})
    return {
        Suite(name, tuple(found["label_sets"]), tuple(found["items"])): found
        for name, found in suites.items()
    }


def _evaluated(one: Series, suite: Suite) -> list[tuple[Run, dict[str, Any]]]:
    """The runs that were evaluated in a suite, and what was found."""
    found = [(run, _found(run).get(suite)) for run in one.runs]
    return [(run, each) for run, each in found if each is not None]


def draw_scenarios(series: Sequence[Series], suite: Suite) -> Drawn:
    """A row for every tag, and illegal answers; marks of every agent and its base.

    Args:
      series: of runs, some evaluated in the suite.
      suite: of `_suites`.
    """
    tested = [one for one in series if _evaluated(one, suite)]
    some = _evaluated(tested[0], suite)[0][1]["measures"][WHOLE]
    rows = [name for name in some if name.endswith(LEGAL)] + ["illegal"]
    height = 1.4 + 0.22 * len(rows) * len(tested) + 0.25 * len(rows)
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    tips = Tips()
    for index, (one, name) in enumerate(zip(tested, shown_names(tested), strict=True)):
        look = mark_style(index)
        colour = look["color"]
        axes.plot([], [], linestyle="", label=wrapped(name), **look)
        measured = [each["measures"][WHOLE] for _, each in _evaluated(one, suite)]
        for place, measure in enumerate(rows):
            at = place + (index + 1) / (len(tested) + 1) - 0.5
            for policy, fill in (("base", "none"), ("tuned", colour)):
                found = [
                    each[measure][policy] for each in measured if policy in each.get(measure, {})
                ]
                for each in found:
                    axes.plot([each["low"], each["high"]], [at, at], color=colour, alpha=0.5)
                if found:
                    mean = float(np.mean([each["mean"] for each in found]))
                    (mark,) = axes.plot(mean, at, markerfacecolor=fill, **look)
                    tips.add(mark, f"{name}, {policy}, {measure}: {mean:.1%}")
    axes.set_yticks(range(len(rows)), [row.removesuffix(f" {LEGAL}") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.tick_params(axis="y", length=0)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=INK, linewidth=0.4, alpha=0.3)
    axes.set_xlabel("share of legal answers; illegal: of all answers")
    figure.legend(loc="outside lower center", ncols=2)
    return figure, tips


def checkpoints(run: Run) -> dict[Texts, list[Checkpoint]]:
    """A run's evaluated checkpoints that were asked for the language kept, tuned beside base."""
    found: dict[Texts, dict[int, Checkpoint]] = {}
    numbered = [run.folder / of_update(record["update"]) for record in run.history]
    kept = [read_evaluation(path) for path in numbered if path.is_file()]
    for evaluation in [*kept, run.evaluation or {}]:
        for name, kinds in evaluation.get(RETENTION, {}).items():
            update, whole = evaluation.get("update"), kinds[WHOLE]
            task_kl = _task_kl(evaluation, run.config.env.game)
            if "kl" in whole and update is not None and task_kl is not None:
                by_update = found.setdefault(Texts(name, whole["tokens"]), {})
                by_update[update] = Checkpoint(update, task_kl, whole)
    return {texts: [own[update] for update in sorted(own)] for texts, own in found.items()}


def _task_kl(evaluation: dict[str, Any], game: str) -> float | None:
    """KL(tuned || base) of the answers in the training game, the mean over histories, if tested."""
    tested = evaluation["suites"].get("trained", {}).get(game, {}).get("policies", {})
    if not {"base", "tuned"} <= tested.keys():
        return None
    tables = (tested[policy]["remembered"].values() for policy in ("tuned", "base"))
    tuned, base = (np.array([[*row.values()] for row in table]) for table in tables)
    floor = np.finfo(np.float32).tiny
    logs = np.log(np.maximum(tuned, floor)) - np.log(np.maximum(base, floor))
    return float((tuned * logs).sum(-1).mean())


def draw_retention(series: Sequence[Series], texts: Texts) -> Drawn:
    """Retention against KL on the task, a line a run through its checkpoints."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    tips = Tips()
    for index, (one, name) in enumerate(zip(series, shown_names(series), strict=True)):
        look = mark_style(index)
        labelled = False
        for run in one.runs:
            reached = checkpoints(run).get(texts, [])
            ratios = [
                each.retention["perplexity"]["tuned"] / each.retention["perplexity"]["base"]
                for each in reached
            ]
            for axes, values in (
                (left, [each.retention["kl"] for each in reached]),
                (right, ratios),
            ):
                axes.plot([each.task_kl for each in reached], values, linewidth=0.8, **look)
                for each, value in zip(reached, values, strict=True):
                    (mark,) = axes.plot(each.task_kl, value, **look)
                    tips.add(mark, f"{name}, update {each.update}: {value:.4f}")
            if reached and not labelled:
                left.plot([], [], label=wrapped(name), **look)
                labelled = True
    left.set_ylabel("KL(base || tuned) on texts,\nnats a token")
    right.set_ylabel("perplexity of texts,\ntuned over base")
    level(right, 1, "as before training")
    for axes in (left, right):
        axes.set_xlabel(
            "KL(tuned || base) in the training game,\nnats an answer, mean over histories"
        )
    figure.legend(loc="outside lower center", ncols=2)
    return figure, tips


Table = tuple[str, list[str], list[list[str]]]


def beyond_tables(series: Sequence[Series]) -> list[Table]:
    """Captions, headers and rows: every measure of every suite, and the items that changed most."""
    tables = []
    suites = _suites(series)
    for suite, title in zip(suites, _titles(suites), strict=True):
        tested = [one for one in series if _evaluated(one, suite)]
        rows, changed = [], []
        for one, name in zip(tested, shown_names(tested), strict=True):
            for run, found in _evaluated(one, suite):
                label = f"{name}, seed {run.config.seed}"
                rows += [[label, *row] for row in _measure_rows(found)]
                changed += [[label, *row] for row in most_changed(found)]
        heads = ["agent", "items of", "measure", "items", "base", "tuned", "change"]
        tables.append((f"{title}: means with 95 % intervals over items", heads, rows))
        if changed:
            caption = f"{title}: the items whose answers changed most, of legal answers"
            heads = ["agent", "item", "text", "option", "tags", "base", "tuned"]
            tables.append((caption, heads, changed))
    return tables


def _measure_rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [group, measure, str(shown["items"])]
        + [
            interval_text(measure, shown, policy) if policy in shown else ""
            for policy in ("base", "tuned", "change")
        ]
        for group, measures in found["measures"].items()
        for measure, shown in measures.items()
        if group == WHOLE or measure.endswith(LEGAL) or not is_share(measure)
    ]


def most_changed(found: dict[str, Any]) -> list[list[str]]:
    """The items of a suite in which an option's share of legal answers moved most, each once.

    Returns:
      Name, text, the option that moved most, its tags, and its share before and after.
    """
    moved = []
    for name, item in found["items"].items():
        if "tuned" not in item["policies"]:
            return []
        base, tuned = (np.array(item["policies"][p]["of_legal"]) for p in ("base", "tuned"))
        index = int(np.abs(tuned - base).argmax())
        moved.append((abs(tuned[index] - base[index]), name, item, index, base, tuned))
    moved.sort(key=lambda row: -row[0])
    return [
        [
            name,
            shorten(item["text"], _LONGEST, placeholder=" ..."),
            item["options"][index]["text"],
            " ".join(item["options"][index]["tags"]),
            f"{base[index]:.1%}",
            f"{tuned[index]:.1%}",
        ]
        for _, name, item, index, base, tuned in moved[:MOST_CHANGED]
    ]
