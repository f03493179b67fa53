"""What of training holds outside: the suite `generalisation`, by what is new in a condition."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxmoral.measuring.measures import REGRETS

SUITE = "generalisation"
SEEN, OPPONENT, TOGETHER = "seen", "new opponent", "all together"
# In the order they are told; what is new in two parts follows, then what is in more.
_ALONE = (
    SEEN,
    "exchanged labels",
    "new labels",
    "new wording",
    "new table order",
    "new persona",
    "new game",
    OPPONENT,
)


def by_novelty(evaluation: dict[str, Any], policy: str) -> dict[str, dict[str, float]]:
    """A policy's measures by what is new.

    Args:
      evaluation: that has the suite.
      policy: "base" or "tuned".

    Returns:
      By novelty (more than two parts are "all together"), "seen" first: "conditions", how many;
      "P(C|...)", the mean after remembered rounds; "illegal" and "apart", means of each condition's
      largest share and largest distance of a P(C|...) from what the policy does with the labels of
      training in the same game (with a new game alone: from what was seen); "worst illegal" and
      "worst apart", the largest of any; "deontological" and "utilitarian", mean exact regret in
      points and from 0 to 1. Regret is against the opponents of training as far as they were
      tested, in "new opponent" and "all together" against the others. An agent does not see whom it
      meets, so "new opponent" is what was seen and has regret only.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for condition in evaluation["suites"][SUITE].values():
        parts = condition["novelty"].count(", ")
        groups.setdefault(TOGETHER if parts > 1 else condition["novelty"], []).append(condition)
    met, others = _opponents(evaluation)
    every = [condition for group in groups.values() for condition in group]
    found = {}
    for novelty, group in groups.items():
        tables = [condition["policies"][policy]["remembered"] for condition in group]
        known = [_mean_of(_reference(every, condition), policy) for condition in group]
        illegal = [max(row["illegal"] for row in table.values()) for table in tables]
        pairs = zip(tables, known, strict=True)
        apart = [max(abs(own[cell]["C"] - means[cell]) for cell in own) for own, means in pairs]
        against = (others or met) if novelty == TOGETHER else (met or others)
        found[novelty] = (
            {"conditions": float(len(group))}
            | {f"P(C|{cell})": share for cell, share in _mean_of(group, policy).items()}
            | {"illegal": _mean(illegal), "worst illegal": max(illegal)}
            | {"apart": _mean(apart), "worst apart": max(apart)}
            | _regrets(group, policy, against)
        )
    if met and others and SEEN in groups:
        seen = groups[SEEN]
        found[OPPONENT] = {"conditions": float(len(seen))} | _regrets(seen, policy, others)
    return {novelty: found[novelty] for novelty in in_order(found)}


def in_order(novelties: Iterable[str]) -> list[str]:
    """Each once: what was seen, what is new alone, in two parts, and all together."""
    place = lambda name: _ALONE.index(name) if name in _ALONE else len(_ALONE) + (name == TOGETHER)
    return sorted(dict.fromkeys(novelties), key=place)


def _opponents(evaluation: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The opponents of the suite that are met in training, and the others."""
    config = evaluation["config"]
    spaceless = lambda name: "".join(name.split())
    met = {*map(spaceless, config["mixture"]["opponents"] or [config["env"]["opponent"]])}
    some = next(iter(evaluation["suites"][SUITE].values()))["policies"]
    measured = next(iter(some.values()))["opponents"]
    tested = [name for name, protocols in measured.items() if "exact" in protocols]
    known = [name for name in tested if spaceless(name) in met]
    return known, [name for name in tested if name not in known]


def _reference(every: Sequence[dict[str, Any]], condition: dict[str, Any]) -> list[dict[str, Any]]:
    """The conditions from which one may be apart; itself if there is nothing else."""
    seen = [other for other in every if other["novelty"] == SEEN]
    of_game = [
        other
        for other in every
        if other["game"] == condition["game"] and other["novelty"] in (SEEN, "new game")
    ]
    return (seen if condition["novelty"] == "new game" else of_game) or seen or [condition]


def _mean_of(conditions: Sequence[dict[str, Any]], policy: str) -> dict[str, float]:
    """The mean P(C) after each remembered round."""
    tables = [condition["policies"][policy]["remembered"] for condition in conditions]
    return {cell: _mean(table[cell]["C"] for table in tables) for cell in tables[0]}


def _regrets(
    conditions: Sequence[dict[str, Any]], policy: str, opponents: Sequence[str]
) -> dict[str, float]:
    met = [
        result[who]["exact"]["regret"]
        for result in (condition["policies"][policy]["opponents"] for condition in conditions)
        for who in opponents
        if "exact" in result.get(who, {})
    ]
    return {kind: _mean(regret[kind][unit] for regret in met) for kind, unit in REGRETS.items()}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else float("nan")
