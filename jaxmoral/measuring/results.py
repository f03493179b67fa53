"""An evaluation's dictionary for people: as a tidy table, as text, and several as one."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax

from jaxmoral.config.trees import OF_THE_MACHINE, tree_differences
from jaxmoral.measuring import generalisation, thoughts
from jaxmoral.measuring.beyond import beyond_lines, beyond_rows, merge_beyond
from jaxmoral.measuring.measures import ERROR

MOST_BESIDE = 5  # histories that are shown beside the measures
WIDTH = 100  # of a line in the terminal


def rows(evaluation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The evaluation as a tidy table: one row per condition, policy, opponent, protocol, metric."""
    keys = ("game", "wording", "persona", "labels", "table_order")
    for suite, named in evaluation["suites"].items():
        for name, condition in named.items():
            shown = {"suite": suite, "condition": name} | {key: condition[key] for key in keys}
            shown["labels"] = "/".join(condition["labels"])
            shown["novelty"] = condition.get("novelty", "")  # not told by earlier versions
            for policy, result in condition["policies"].items():
                start = shown | {"policy": policy}
                alone = {"exact": {"remembered": result["remembered"]}}
                alone[ERROR] = {"remembered": result.get("remembered_error", {})}
                for opponent, protocols in [("", alone), *result["opponents"].items()]:
                    for protocol, measures in protocols.items():
                        who = {"opponent": opponent, "protocol": protocol}
                        for metric, value in _leaves(measures):
                            yield start | who | {"metric": metric, "value": value}
    yield from beyond_rows(evaluation)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, dict):
            yield from _leaves(value, path)
        elif value is not None:
            yield path, value


def table(evaluation: dict[str, Any]) -> str:
    """The evaluation as text: for every suite, opponent and protocol a line per policy.

    >>> untrained = jaxmoral.parse({"model": {"source": "tabular"}})
    >>> print(jaxmoral.table(jaxmoral.evaluate_agent(untrained, ["ipd"])))
    suite trained: against random, exact
    condition  policy    P(C|CC)  P(C|CD)  P(C|DC)  P(C|DD)        C  illegal  De regret  Ut regret
    -----------------------------------------------------------------------------------------------
    ipd        base        33.3%    33.3%    33.3%    33.3%    33.3%    33.3%       2.50      0.444
    ...
    """
    lines: list[str] = []
    for suite, named in evaluation["suites"].items():
        lines += (
            _novelty_lines(evaluation)
            if suite == generalisation.SUITE
            else _suite_lines(suite, named)
        )
        for condition in named.values():
            lines += thoughts.lines(condition["thoughts"]) if "thoughts" in condition else []
    lines.append(
        "De regret is deontological, in points; Ut regret is utilitarian, from 0 to 1 (normalised)."
    )
    gap = evaluation["largest_gap"]
    if gap is not None:
        points = f"{100 * gap:.2f} percentage points"
        lines.append(f"Exact and sampled shares differ by at most {points}.")
    lines += ["", *beyond_lines(evaluation)]
    return "\n".join(lines).rstrip()


def _suite_lines(suite: str, named: dict[str, Any]) -> list[str]:
    """A suite's tables. What follows a remembered round stands beside the first one's measures, or
    in tables of its own where it would not fit a line.
    """
    results = {
        (name, policy): result
        for name, condition in named.items()
        for policy, result in condition["policies"].items()
    }
    start = max(map(len, ("condition", *named))) + 2
    remembered = {key: _cells(result["remembered"]) for key, result in results.items()}
    heads = list(next(iter(remembered.values())))
    note = "P(C|CD): how likely C is after remembered rounds, the agent's move first"
    if any(letter.isdigit() for head in heads for letter in head):
        note += ", then how many of the others played D"
    lines: list[str] = []
    alone = len(heads) > MOST_BESIDE
    across = max(1, (WIDTH - start - 8) // (len(heads[-1]) + 2))
    for first in range(0, len(heads), across) if alone else []:
        chosen = heads[first : first + across]
        shown = {key: {h: texts[h] for h in chosen} for key, texts in remembered.items()}
        lines += [*_block(f"suite {suite}: after remembered rounds", start, shown), ""]
    if alone:
        lines += [f"{note}, the oldest round first.", ""]
    pairs = dict.fromkeys(pair for result in results.values() for pair in _pairs(result))
    for index, (opponent, protocol) in enumerate(pairs):
        beside = index == 0 and not alone
        errors = protocol == ERROR and not alone
        shown = {
            key: (remembered[key] if beside else {})
            | (_cells(result["remembered_error"]) if errors else {})
            | measures(result["opponents"][opponent][protocol])
            for key, result in results.items()
            if (opponent, protocol) in _pairs(result)
        }
        title = "standard errors" if protocol == ERROR else protocol
        lines += _block(f"suite {suite}: against {opponent}, {title}", start, shown)
        lines += [f"{note}.", ""] if beside else [""]
    return lines


def _cells(table: dict[str, dict[str, float]]) -> dict[str, str]:
    """How likely C is after each history, as texts by their heads."""
    return {f"P(C|{cell})": f"{p['C']:.1%}" for cell, p in table.items()}


def _novelty_lines(evaluation: dict[str, Any]) -> list[str]:
    """Tables by what is new, instead of by condition: what is done, and how much of it holds."""
    policies = evaluation["policies"]
    found = {policy: generalisation.by_novelty(evaluation, policy) for policy in policies}
    rows = {
        (f"{novelty} ({first['conditions']:.0f})", policy): found[policy][novelty]
        for novelty, first in found[policies[0]].items()
        for policy in policies
    }
    start = max(len(name) for name, _ in rows) + 2
    every = next(iter(rows.values()))
    cells = [head for head in every if head.startswith("P(")]
    lines = []
    if len(cells) <= MOST_BESIDE:
        done = {
            key: {h: f"{row[h]:.1%}" for h in cells}
            for key, row in rows.items()
            if "illegal" in row
        }
        lines += [
            *_block(
                f"suite {generalisation.SUITE}: by what is new, in how many conditions", start, done
            ),
            "",
        ]
    shown = {}
    for key, row in rows.items():
        texts = {
            head: f"{row[name]:.1%}" if name in row else ""
            for head, name in (
                ("illegal", "illegal"),
                ("at worst", "worst illegal"),
                ("apart", "apart"),
                ("at most", "worst apart"),
            )
        }
        texts["De regret"] = f"{row['deontological']:.2f}"
        shown[key] = texts | {"Ut regret": f"{row['utilitarian']:.3f}"}
    return [
        *lines,
        *_block(f"suite {generalisation.SUITE}: how much of training holds", start, shown),
        "illegal: largest share after a remembered round; apart: largest distance of P(C|...)",
        "from that with labels of training in the same game. Means, and of the worst condition.",
        "",
    ]


def _pairs(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(who, protocol) for who, found in result["opponents"].items() for protocol in found]


def measures(found: dict[str, Any]) -> dict[str, str]:
    """The measures that people are shown first, as text by their heads."""
    return {
        "C": f"{found['outcomes']['C']:.1%}",
        "illegal": f"{found['outcomes']['illegal']:.1%}",
        "De regret": f"{found['regret']['deontological']['points']:.2f}",
        "Ut regret": f"{found['regret']['utilitarian']['normalised']:.3f}",
    }


def _block(title: str, start: int, shown: dict[tuple[str, str], dict[str, str]]) -> list[str]:
    """A table of texts by condition and policy, its first column `start` wide."""
    line = lambda name, policy, heads, texts: (
        f"{name:{start}}{policy:8}"
        + "".join(
            text.rjust(max(9, len(head) + 2)) for head, text in zip(heads, texts, strict=True)
        )
    )
    heads = list(next(iter(shown.values())))
    header = line("condition", "policy", heads, heads)
    rows = [line(*key, heads, texts.values()) for key, texts in shown.items()]
    return [title, header, "-" * len(header), *rows]


def summary(evaluation: dict[str, Any]) -> str:
    """One line: the last policy's means over the first suite, exact, against the first opponent."""
    suite, named = next(iter(evaluation["suites"].items()))
    opponent, policy = evaluation["opponents"][0], evaluation["policies"][-1]
    each = [
        condition["policies"][policy]["opponents"][opponent]["exact"]
        for condition in named.values()
    ]
    means = jax.tree.map(
        lambda *values: sum(values) / len(values),
        *({"outcomes": one["outcomes"], "regret": one["regret"]} for one in each),
    )
    texts = ", ".join(f"{head} {text}" for head, text in measures(means).items())
    return f"{texts} (suite {suite}, mean of {len(each)}, exact, against {opponent})"


def unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What keeps two evaluations from being one: the keys in which what was tested differs.

    That is the checkpoint ("update"), whose policies were tested, or a key of the configuration. An
    evaluation of an earlier version does not say of which checkpoint it is.
    """
    if "config" not in one or "config" not in other:
        return ["update"]
    told = ("update", "policies")
    about = [each["config"] | {key: each.get(key) for key in told} for each in (one, other)]
    return [key for key in tree_differences(*about) if not key.startswith(OF_THE_MACHINE)]


def merge(earlier: dict[str, Any], later: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Both evaluations as one, by suite, condition, opponent and protocol; see `unlike`.

    Returns:
      The evaluation, and what of the earlier one the later one replaced, in a few words each.
    """
    suites: dict[str, Any] = {}
    replaced = []
    for suite in _both(earlier["suites"], later["suites"]):
        old, new = (evaluation["suites"].get(suite, {}) for evaluation in (earlier, later))
        suites[suite] = old | new
        for name in filter(old.__contains__, new):
            policies = {}
            for policy, result in new[name]["policies"].items():
                held, made = old[name]["policies"][policy]["opponents"], result["opponents"]
                met = {who: held.get(who, {}) | made.get(who, {}) for who in _both(held, made)}
                policies[policy] = result | {"opponents": met}
                replaced += [
                    f"{suite}: {name} against {who}, {protocol}"
                    for who, measured in made.items()
                    for protocol in measured
                    if policy == "base" and protocol in held.get(who, {})
                ]
            suites[suite][name] = new[name] | {"policies": policies}
            if (studied := _thoughts_of_both(old[name], new[name])) is not None:
                suites[suite][name]["thoughts"] = studied
                replaced.append(f"{suite}: {name}, thoughts")
    beyond, again = merge_beyond(earlier, later)
    gaps = [one["largest_gap"] for one in (earlier, later) if one["largest_gap"] is not None]
    merged = later | {
        "opponents": _both(earlier["opponents"], later["opponents"]),
        "protocols": _both(earlier["protocols"], later["protocols"]),
        "largest_gap": max(gaps, default=None),
        "suites": suites,
    }
    return merged | beyond, replaced + again


def _thoughts_of_both(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """The later study of a condition's thoughts, with whose thoughts only the earlier one gave."""
    if "thoughts" not in old or "thoughts" not in new:
        return None
    held, made = (one["thoughts"]["policies"] for one in (old, new))
    policies = {
        policy: own | {"after": held.get(policy, {}).get("after", {}) | own["after"]}
        for policy, own in made.items()
    }
    return new["thoughts"] | {"policies": policies}


def _both(one: Iterable[str], other: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*one, *other]))
