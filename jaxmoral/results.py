"""An evaluation's dictionary for people: as a tidy table and as text."""

from collections.abc import Iterator
from typing import Any


def rows(evaluation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The evaluation as a tidy table: one row per condition, policy, opponent, protocol, metric."""
    keys = ("game", "wording", "persona", "labels", "table_order")
    for suite, named in evaluation["suites"].items():
        for name, condition in named.items():
            shown = {"suite": suite, "condition": name} | {key: condition[key] for key in keys}
            shown["labels"] = "/".join(condition["labels"])
            for policy, result in condition["policies"].items():
                start = shown | {"policy": policy}
                for metric, value in _leaves(result["remembered"], "remembered"):
                    yield start | {
                        "opponent": "",
                        "protocol": "exact",
                        "metric": metric,
                        "value": value,
                    }
                for opponent, protocols in result["opponents"].items():
                    for protocol, measures in protocols.items():
                        who = {"opponent": opponent, "protocol": protocol}
                        for metric, value in _leaves(measures):
                            yield start | who | {"metric": metric, "value": value}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, dict):
            yield from _leaves(value, path)
        elif value is not None:
            yield path, value


def table(evaluation: dict[str, Any]) -> str:
    """The evaluation as text: exact, against the first opponent, a line per policy."""
    opponent = evaluation["opponents"][0]
    names = [name for suite in evaluation["suites"].values() for name in suite]
    width = max(map(len, ("condition", *names))) + 2
    some = next(iter(next(iter(evaluation["suites"].values())).values()))
    cells = list(some["policies"]["base"]["remembered"])
    shown = cells if len(cells) <= 5 else []  # more would not fit a line
    header = (
        f"{'condition':{width}}{'policy':8}"
        + "".join(f"P(C|{cell})".rjust(9) for cell in shown)
        + f"{'C':>9}{'illegal':>9}{'De regret':>11}{'Ut regret':>11}"
    )
    lines = []
    for suite, named in evaluation["suites"].items():
        lines += [f"suite {suite}", header, "-" * len(header)]
        for name, condition in named.items():
            for policy, result in condition["policies"].items():
                exact = result["opponents"][opponent]["exact"]
                parts = "".join(f"{result['remembered'][cell]['C']:9.1%}" for cell in shown)
                lines.append(
                    f"{name:{width}}{policy:8}{parts}{exact['outcomes']['C']:9.1%}"
                    f"{exact['outcomes']['illegal']:9.1%}"
                    f"{exact['regret']['deontological']['points']:11.2f}"
                    f"{exact['regret']['utilitarian']['normalised']:11.3f}"
                )
        lines.append("")
    lines.append(
        f"Remembered rounds name the agent's move first. Protocol: exact, against {opponent};"
        " regret is deontological in points, utilitarian from 0 to 1 (normalised)."
    )
    if evaluation["largest_gap"] is not None:
        lines.append(f"Exact and sampled shares differ by at most {evaluation['largest_gap']:.2%}.")
    return "\n".join(lines)
