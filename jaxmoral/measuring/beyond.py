"""What an evaluation holds beyond games: suites of scenarios, and how much language was kept.

Here they are measured, and told as rows of the tidy table and as text.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from jaxmoral.language.prompts import PERSONAS, inline
from jaxmoral.language.scenarios import ANGLE, LABEL_SETS, LEGAL, WHOLE, ScenarioSuite
from jaxmoral.language.texts import read_texts
from jaxmoral.measuring.choices import speaking
from jaxmoral.measuring.retention import measure_retention
from jaxmoral.measuring.scenarios import check_choices, measure_suite
from jaxmoral.measuring.source import Loaded

SCENARIOS, RETENTION = "scenarios", "retention"
KEYS = (SCENARIOS, RETENTION)
_LONGEST = 40  # characters of a persona in a name
_COLUMNS = ("game", "wording", "persona", "labels", "table_order", "novelty", "opponent")


class Asked(NamedTuple):
    """What is to be measured; see `measuring.scenarios.measure_suite` and `measure_retention`."""

    suites: Sequence[ScenarioSuite] = ()
    persona: str | None = None
    label_sets: Sequence[str] = tuple(LABEL_SETS)
    tags: Sequence[str] | None = None
    skip: bool = False
    retention: str | None = None


def check(asked: Asked) -> None:
    """Raises UserError for what cannot be right, before a model is loaded."""
    if asked.persona is not None:
        inline("persona", asked.persona, PERSONAS)
    for suite in asked.suites:
        check_choices(suite, asked.label_sets, asked.tags)
    if asked.retention is not None:
        read_texts(asked.retention)


def check_loaded(loaded: Loaded, asked: Asked) -> None:
    """Raises UserError if who was loaded cannot be asked, before anything is measured."""
    for key, wanted in ((SCENARIOS, asked.suites), (RETENTION, asked.retention)):
        if wanted:
            speaking(loaded, key)


def _shown(persona: str) -> str:
    """A persona as part of a name; of long ones the beginning, and what tells it from others."""
    short = shorten(persona, _LONGEST, placeholder=" ...")
    whole = " ".join(persona.split()) == short
    return short if whole else f"{short} ({zlib.crc32(persona.encode()):08x})"


def measure_beyond(loaded: Loaded, asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """An evaluation's parts "scenarios" and "retention", and a line for each item left out.

    A suite that was read behind another persona than the configuration's has that in its name.
    """
    made: dict[str, Any] = {}
    lost: list[str] = []
    for suite in asked.suites:
        found, without = measure_suite(
            loaded,
            suite,
            persona=asked.persona,
            label_sets=asked.label_sets,
            tags=asked.tags,
            skip=asked.skip,
        )
        name = suite.name
        if asked.persona is not None:
            name += f", {_shown(asked.persona)}"
        made.setdefault(SCENARIOS, {})[name] = found
        lost += without
    if asked.retention is not None:
        found = measure_retention(loaded, asked.retention)
        made[RETENTION] = {Path(asked.retention).name: found}
    return made, lost


def merge_beyond(
    earlier: dict[str, Any], later: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Both evaluations' parts as one, and what of the earlier one was replaced."""
    merged: dict[str, dict[str, Any]] = {}
    replaced: list[str] = []
    for key in KEYS:
        old, new = earlier.get(key, {}), later.get(key, {})
        if old or new:
            merged[key] = old | new
        replaced += [f"{key}: {name}" for name in new if name in old]
    return merged, replaced


def beyond_rows(evaluation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the tidy table: of groups of items the measures, of an item each option.

    A measure's row has the policy "base", "tuned" or "change", and beside it rows with "/low" and
    "/high" at the metric's end. The condition is a group, an item or a kind of text.
    """
    for name, suite in evaluation.get(SCENARIOS, {}).items():
        start = _start(f"{SCENARIOS}: {name}") | {
            "persona": suite["persona"],
            "labels": "/".join(suite["label_sets"]),
        }
        for group, measures in suite["measures"].items():
            for measure, found in measures.items():
                for policy in (*suite["policies"], "change"):
                    for end, value in found.get(policy, {}).items():
                        metric = measure if end == "mean" else f"{measure}/{end}"
                        about = {"condition": group, "policy": policy, "metric": metric}
                        yield start | about | {"value": value}
        for item, found in suite["items"].items():
            for policy, own in found["policies"].items():
                about = {"condition": f"item {item}", "policy": policy}
                for number, value in enumerate(own["options"]):
                    yield start | about | {"metric": f"option/{number}", "value": value}
                yield start | about | {"metric": "illegal", "value": own["illegal"]}
    for name, kinds in evaluation.get(RETENTION, {}).items():
        for kind, found in kinds.items():
            start = _start(f"{RETENTION}: {name}") | {"condition": kind}
            for policy, value in found["perplexity"].items():
                yield start | {"policy": policy, "metric": "perplexity", "value": value}
            for metric in ("kl", "agreement"):
                if metric in found:
                    yield start | {"policy": "tuned", "metric": metric, "value": found[metric]}


def _start(suite: str) -> dict[str, Any]:
    return {"suite": suite, "condition": ""} | dict.fromkeys(_COLUMNS, "") | {"protocol": "exact"}


def beyond_lines(evaluation: dict[str, Any]) -> list[str]:
    """The same as text, for people."""
    lines: list[str] = []
    for name, suite in evaluation.get(SCENARIOS, {}).items():
        number = len(suite["items"])
        lines += [f"scenarios {name}: {number} items, exact, 95 % intervals over items"]
        lines += [*_table(_scenario_cells(suite)), ""]
    if evaluation.get(SCENARIOS):
        lines += [
            f"{LEGAL}: share of the answers that name an option, whatever the others' share.",
            "",
        ]
    for name, kinds in evaluation.get(RETENTION, {}).items():
        lines += [f"retention {name}: language kept, exact"]
        lines += [*_table(_retention_cells(kinds)), ""]
    return lines


def _scenario_cells(suite: dict[str, Any]) -> list[list[str]]:
    """Everything of all items, and of groups what of legal answers has a tag."""
    policies = [*suite["policies"], "change"][: 3 if len(suite["policies"]) > 1 else 1]
    rows = [["group", "measure", "items", *policies]]
    for group, measures in suite["measures"].items():
        for measure, found in measures.items():
            if group == WHOLE or measure.endswith(LEGAL) or measure == ANGLE:
                shown = [interval_text(measure, found, p) for p in policies]
                rows.append([group, measure, str(found["items"]), *shown])
    return rows


def is_share(measure: str) -> bool:
    """Whether a measure is a probability, which people read in percent."""
    return not measure.startswith("payoff") and measure != ANGLE


def interval_text(measure: str, found: dict[str, Any], policy: str) -> str:
    """A mean with its interval, in percent if it is a share; of one item there is none."""
    scale, unit = (100, "%") if is_share(measure) else (1, "")
    sign = "+" if policy == "change" else ""
    mean, low, high = (found[policy][end] * scale for end in ("mean", "low", "high"))
    interval = f" [{low:{sign}.1f}, {high:{sign}.1f}]" if found["items"] > 1 else ""
    return f"{mean:{sign}.1f}{unit}{interval}"


def _retention_cells(kinds: dict[str, Any]) -> list[list[str]]:
    policies = list(next(iter(kinds.values()))["perplexity"])
    tuned = "tuned" in policies
    heads = [f"perplexity, {name}" for name in policies]
    rows = [["text", "tokens", *heads, *(["KL, nats a token", "same top token"] if tuned else [])]]
    for kind, found in kinds.items():
        rows.append([kind, f"{found['tokens']:,}"])
        rows[-1] += [f"{found['perplexity'][name]:.2f}" for name in policies]
        if tuned:
            rows[-1] += [f"{found['kl']:.4f}", f"{found['agreement']:.1%}"]
    return rows


def _table(rows: list[list[str]]) -> list[str]:
    """Texts in columns, the first two to the left and the others to the right, under a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
