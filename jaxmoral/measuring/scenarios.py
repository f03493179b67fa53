"""Suites of scenarios: how likely each option of each item is, and what that says by tag.

An item is shown in several views (orders, label sets); an option's probability is its mean over
them, exactly. Of an item counts, for every tag, how likely an option with it is: of all answers,
and of the legal ones (the mean over views of its share of what is legal there), which is the number
to read where a base seldom answers legally. Means over items come with intervals, and so do
differences of the tuned agent to its base, item by item.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmoral.errors import UserError, choose
from jaxmoral.language.prompts import PERSONAS, inline
from jaxmoral.language.scenarios import (
    ANGLE,
    LABEL_SETS,
    LEGAL,
    WHOLE,
    Item,
    ScenarioSuite,
    View,
    all_tags,
    make_items,
    read_suite,
    shown,
    views,
)
from jaxmoral.learning.run_folder import Which
from jaxmoral.measuring.choices import answer_all, longest_prompt, speaking
from jaxmoral.measuring.forests import Question, encode
from jaxmoral.measuring.source import Loaded, Source, load_source

RESAMPLES = 2000
MOST_RESAMPLED = 2**21  # items drawn at once
ANGLE_ORIGIN = 50.0  # of social value orientation: points less the scale's middle

Measured = dict[str, dict[str, np.ndarray]]  # of an item: by policy and measure


def evaluate_scenarios(
    source: Source,
    items: str | Path | ScenarioSuite | Sequence[Item | Mapping[str, Any]],
    *,
    persona: str | None = None,
    label_sets: Sequence[str] = tuple(LABEL_SETS),
    tags: Sequence[str] | None = None,
    update: Which = None,
) -> dict[str, Any]:
    """Measures what a model chooses in scenarios, the tuned agent beside its base, exactly.

    Args:
      source: as for `evaluate_agent`.
      items: a suite of ours (`dictator`, `svo`, `dilemmas`, `norms`), the path of a file, or items
        as `jaxmoral.language.scenarios.parse_item` reads them.
      persona: a name, a file or a text that goes first; by default the configuration's.
      label_sets: names in `jaxmoral.language.scenarios.LABEL_SETS`.
      tags: that are counted; all by default.
      update: of a run folder's checkpoint.

    Returns:
      A dictionary for JSON; see `describe_suite`.

    Raises:
      UserError: an item, the persona, a label set or a tag cannot be used, or the agent is a table.

    >>> promise = {"text": "You said you would call.", "options": ["Call", "Sleep"]}
    >>> list(jaxmoral.evaluate_scenarios(jaxmoral.Config(), [promise])["items"])
    ['item-1']
    """
    if isinstance(items, str | Path):
        suite, _ = read_suite(items)
    elif isinstance(items, ScenarioSuite):
        suite = items
    else:
        suite = ScenarioSuite("items", make_items(items))
    loaded = load_source(source, update)
    found, _ = measure_suite(loaded, suite, persona=persona, label_sets=label_sets, tags=tags)
    return found


def measure_suite(
    loaded: Loaded,
    suite: ScenarioSuite,
    *,
    persona: str | None = None,
    label_sets: Sequence[str] = tuple(LABEL_SETS),
    tags: Sequence[str] | None = None,
    skip: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """A suite's description, and a line for each item left out because it is too long.

    Args:
      loaded: who is measured.
      suite: of items.
      persona, label_sets, tags: see `evaluate_scenarios`.
      skip: whether items that are too long are left out.
    """
    _, prompter = speaking(loaded, "scenarios")
    check_choices(suite, label_sets, tags)
    if persona is None:
        persona = loaded.agent.presentation.persona
    persona = inline("persona", persona, PERSONAS)
    before, longest = PERSONAS.get(persona, persona), longest_prompt(prompter)
    kept, encoded, lost = [], [], []
    for item in suite.items:
        ways = views(len(item.options), label_sets)
        questions = [Question(shown(item, view, before), view.labels) for view in ways]
        try:
            encoded.append([(each, encode(prompter, each, longest)) for each in questions])
        except UserError as error:
            if not skip:
                raise UserError(f"{suite.name}, {item.name}, {error}") from None
            lost.append(f"{suite.name}, {item.name}, {error}")
            continue
        kept.append(item)
    if not kept:
        raise UserError(f"scenarios: no item of {suite.name} is short enough ({lost[0]})")
    answers = answer_all(loaded, encoded)
    by_option = {
        policy: [
            _by_option(shares, views(len(item.options), label_sets))
            for item, shares in zip(kept, each, strict=True)
        ]
        for policy, each in answers.items()
    }
    chosen = suite._replace(items=tuple(kept))
    described = describe_suite(chosen, by_option, list(tags or all_tags(suite)))
    return {"persona": persona, "label_sets": list(label_sets)} | described, lost


def check_choices(
    suite: ScenarioSuite, label_sets: Sequence[str], tags: Sequence[str] | None
) -> None:
    """Raises UserError if there is no such set of labels, or no option of the suite has a tag."""
    if not label_sets:
        raise UserError(f"label_sets: name one or more of {', '.join(LABEL_SETS)}")
    for name in label_sets:
        choose("label_sets", name, LABEL_SETS)
    known = all_tags(suite)
    if missing := [tag for tag in tags or [] if tag not in known]:
        raise UserError(f"tags: no option of {suite.name} has {missing[0]!r}; {', '.join(known)}")


def _by_option(shares: np.ndarray, ways: Sequence[View]) -> np.ndarray:
    """From `[num_views, most_labels + 1]` by label to `[num_views, num_options + 1]` by option."""
    found = np.zeros((len(ways), len(ways[0].order) + 1))
    found[:, -1] = shares[:, -1]
    for row, (view, own) in enumerate(zip(ways, shares, strict=True)):
        found[row, list(view.order)] = own[: len(view.order)]
    return found


def describe_suite(
    suite: ScenarioSuite, by_option: Mapping[str, Sequence[np.ndarray]], tags: Sequence[str]
) -> dict[str, Any]:
    """What was measured as nested dictionaries.

    Args:
      suite: of items.
      by_option: of each policy, for each item `[num_views, num_options + 1]` probabilities.
      tags: that are counted.

    Returns:
      `{"policies", "tags", "items": {name: {"group", "text", "options": [{"text", "tags",
      "payoffs"}], "policies": {policy: {"options": [P, ...], "of_legal": [share, ...], "illegal",
      "spread"}}}}, "measures": {group: {measure: {"items", "base": interval, "tuned": interval,
      "change": interval}}}}`; an interval is `{"mean", "low", "high"}` (95 %, by bootstrap over
      items). Measures are the tags, of all answers ("harm") and of legal ones ("harm of legal"),
      "illegal", "spread" (an option's largest distance between two views, of legal), "payoff own"
      and "payoff other" (expected, of legal), and "angle" of a suite that has one. Groups are
      "all" and those of the items.
    """
    items = {}
    rows: list[Measured] = []
    for index, item in enumerate(suite.items):
        summaries = {policy: _summarise(each[index]) for policy, each in by_option.items()}
        items[item.name] = {
            "group": item.group,
            "text": item.text,
            "options": [
                {"text": option.text, "tags": list(option.tags), "payoffs": option.payoffs}
                for option in item.options
            ],
            "policies": {
                policy: {
                    "options": found["options"].tolist(),
                    "of_legal": found["of_legal"].tolist(),
                    "illegal": float(found["illegal"]),
                    "spread": float(found["spread"]),
                }
                for policy, found in summaries.items()
            },
        }
        rows.append({policy: _measures(item, found, tags) for policy, found in summaries.items()})
    groups = {WHOLE: list(range(len(rows)))}
    for index, item in enumerate(suite.items):
        if item.group:
            groups.setdefault(item.group, []).append(index)
    measures = {
        group: _group_measures([rows[index] for index in chosen], has_angle=group == suite.angle_of)
        for group, chosen in groups.items()
    }
    return {
        "policies": list(by_option),
        "tags": list(tags),
        "items": items,
        "measures": measures,
    }


def _summarise(shares: np.ndarray) -> dict[str, np.ndarray]:
    """Means over views of `[num_views, num_options + 1]`."""
    options = shares[:, :-1]
    of_legal = options / np.maximum(options.sum(1, keepdims=True), np.finfo(float).tiny)
    return {
        "options": options.mean(0),
        "of_legal": of_legal.mean(0),
        "illegal": shares[:, -1].mean(),
        "spread": np.ptp(of_legal, axis=0).max(),
    }


def _measures(
    item: Item, found: Mapping[str, np.ndarray], tags: Sequence[str]
) -> dict[str, np.ndarray]:
    """An item's measures by name; payoffs together, `[2 (own, other)]`, as "payoffs"."""
    measures = {}
    for tag in tags:
        has = np.array([tag in option.tags for option in item.options])
        if has.any():
            measures[tag] = found["options"][has].sum()
            measures[f"{tag} {LEGAL}"] = found["of_legal"][has].sum()
    measures |= {"illegal": found["illegal"], "spread": found["spread"]}
    if item.options[0].payoffs is not None:
        payoffs = np.array([option.payoffs for option in item.options])
        measures["payoffs"] = found["of_legal"] @ payoffs
    return measures


def _alone(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def svo_angle(means: np.ndarray) -> np.ndarray:
    """Social value orientation in degrees, of mean points from 0 to 100 `[..., 2 (own, other)]`.

    It is their direction seen from 50 points for both (Murphy, Ackermann and Handgraaf, 2011): 0 is
    only for oneself, 45 for both alike.
    """
    own, other = np.moveaxis(means - ANGLE_ORIGIN, -1, 0)
    return np.degrees(np.arctan2(other, own))


def _group_measures(rows: Sequence[Measured], has_angle: bool) -> dict[str, Any]:
    """Intervals of every measure that some of a group's items have."""
    names = dict.fromkeys(name for row in rows for name in row["base"])
    found: dict[str, Any] = {}
    for name in names:
        having = [row for row in rows if name in row["base"]]
        policies = list(having[0])
        values = np.array([[row[policy][name] for policy in policies] for row in having])
        if name == "payoffs":
            found["payoff own"] = _compare(policies, values[..., :1], _alone)
            found["payoff other"] = _compare(policies, values[..., 1:], _alone)
            if has_angle:
                found[ANGLE] = _compare(policies, values, svo_angle)
        else:
            found[name] = _compare(policies, values[..., None], _alone)
    return found


def _compare(
    policies: Sequence[str], values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Each policy's statistic and its change from base to tuned, over the same resampled items.

    Args:
      policies: names.
      values: `[num_items, num_policies, k]`.
      statistic: of means `[..., k]`.
    """
    number = len(values)
    generator, at_once = np.random.default_rng(0), max(1, MOST_RESAMPLED // number)
    means = [
        values[generator.integers(number, size=(min(at_once, RESAMPLES - start), number))].mean(1)
        for start in range(0, RESAMPLES, at_once)
    ]
    made, drawn = statistic(values.mean(0)), statistic(np.concatenate(means))
    found: dict[str, Any] = {"items": number}
    found |= {policy: _interval(made[i], drawn[:, i]) for i, policy in enumerate(policies)}
    if len(policies) > 1:
        found["change"] = _interval(made[1] - made[0], drawn[:, 1] - drawn[:, 0])
    return found


def _interval(mean: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(mean), "low": float(low), "high": float(high)}
