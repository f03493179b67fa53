"""Two groups of runs beside each other: differences of exact measures, with intervals over seeds.

An evaluation has no sampling noise, so what differs between runs of one group is the seed alone,
and intervals are over seeds. Where every seed stands once in both groups they are paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxmoral.errors import UserError
from jaxmoral.measuring.runs import Run, tidy

# What is compared, and what it is called.
MEASURES = {
    "remembered/CC/C": "P(C|CC)",
    "remembered/CD/C": "P(C|CD)",
    "remembered/DC/C": "P(C|DC)",
    "remembered/DD/C": "P(C|DD)",
    "outcomes/C": "cooperation",
    "outcomes/illegal": "illegal answers",
    "regret/deontological/points": "deontological regret, points",
    "regret/utilitarian/normalised": "utilitarian regret, 0 to 1",
    "payoffs/own": "own points",
    "payoffs/other": "the other's points",
}
FEW = 3  # fewer seeds say nothing about others
_DRAWS = 10_000
_SEED = 0
_WHERE = ["suite", "condition", "opponent", "metric"]


class Comparison(NamedTuple):
    """What `compare` found.

    Attributes:
      table: a row per suite, condition, opponent and measure; columns "a", "b" (means), "runs a",
        "runs b", "difference" (a - b), "low", "high" (its 95 % interval, NaN where there are too
        few seeds) and "effect" (the difference in pooled standard deviations, NaN without one).
      seeds: those that are paired, empty if the groups have others.
      few: whether there are too few seeds for an interval.
    """

    table: pd.DataFrame
    seeds: list[int]
    few: bool


def compare(ours: Sequence[Run], others: Sequence[Run]) -> Comparison:
    """Compares the tuned agents of two groups of runs in what both were tested in.

    Runs that were not evaluated are left out, and so should be (`runs.without_stale`) those whose
    evaluation is of an earlier checkpoint.

    Raises:
      UserError: a group has no evaluated run, or nothing was measured of both.
    """
    ours, others = _evaluated(ours, "the runs"), _evaluated(others, "--with")
    a, b = _measured(ours), _measured(others)
    common = a.index.intersection(b.index)
    if common.empty:
        raise UserError(
            "the two groups were not tested in the same conditions; evaluate both with the same"
            " --suites, --games and --opponents"
        )
    a, b = a.loc[common], b.loc[common]
    seeds = _paired_seeds(ours, others)
    few = min(len({run.config.seed for run in runs}) for runs in (ours, others)) < FEW
    low, high = _interval(a.to_numpy(), b.to_numpy(), paired=bool(seeds))
    means = a.mean(axis=1), b.mean(axis=1)
    table = pd.DataFrame(
        {
            "a": means[0],
            "b": means[1],
            "runs a": a.shape[1],
            "runs b": b.shape[1],
            "difference": means[0] - means[1],
            "low": np.nan if few else low,
            "high": np.nan if few else high,
            "effect": (means[0] - means[1]) / _pooled(a, b),
        }
    )
    return Comparison(table.reset_index(), seeds, few)


def _evaluated(runs: Sequence[Run], name: str) -> list[Run]:
    """The runs that were, in the order of their seeds."""
    tested = [run for run in runs if run.evaluation is not None]
    if not tested:
        raise UserError(f"{name}: no run was evaluated; run python -m jaxmoral.evaluate --run ...")
    return sorted(tested, key=lambda run: run.config.seed)


def _measured(runs: Sequence[Run]) -> pd.DataFrame:
    """`[what was measured, runs]`."""
    rows = tidy(runs)
    chosen = (
        (rows["policy"] == "tuned") & (rows["protocol"] == "exact") & rows["metric"].isin(MEASURES)
    )
    wide = rows[chosen].pivot_table(
        index=_WHERE, columns="folder", values="value", sort=False, observed=True
    )
    return wide.reindex(columns=[str(run.folder) for run in runs]).dropna()


def _paired_seeds(ours: Sequence[Run], others: Sequence[Run]) -> list[int]:
    """The seeds, if each stands once in both groups."""
    a, b = ([run.config.seed for run in runs] for runs in (ours, others))
    return a if a == b and len(set(a)) == len(a) else []


def _interval(a: np.ndarray, b: np.ndarray, *, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % bootstrap interval of mean(a) - mean(b) over seeds, `[rows]` each."""
    random = np.random.default_rng(_SEED)
    drawn = random.integers(a.shape[1], size=(_DRAWS, a.shape[1]))
    again = drawn if paired else random.integers(b.shape[1], size=(_DRAWS, b.shape[1]))
    share = lambda index, size: np.apply_along_axis(np.bincount, 1, index, minlength=size) / size
    gaps = a @ share(drawn, a.shape[1]).T - b @ share(again, b.shape[1]).T
    low, high = np.quantile(gaps, [0.025, 0.975], axis=1)
    return low, high


def _pooled(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """The pooled standard deviation, NaN where there is none but for rounding."""
    freedom = a.shape[1] + b.shape[1] - 2
    if freedom < 1:
        return pd.Series(np.nan, index=a.index)
    squares = sum(x.sub(x.mean(axis=1), axis=0).pow(2).sum(axis=1) for x in (a, b))
    pooled = (squares / freedom).pow(0.5)
    size = pd.concat([a, b], axis=1).abs().max(axis=1)
    return pooled.where(pooled > 1e-9 * size.clip(lower=1.0))


def in_words(found: Comparison, suite: str) -> str:
    """One suite's differences as text."""
    rows = found.table[found.table["suite"] == suite]
    lines = [f"suite {suite}: a, b, and a - b with its 95 % interval over seeds"]
    for (condition, opponent), group in rows.groupby(["condition", "opponent"], sort=False):
        against = f", against {opponent}" if opponent else ", after each remembered round"
        lines.append(f"{condition}{against}")
        for row in group.itertuples():
            interval = "" if found.few else f"  [{row.low:+.3f}, {row.high:+.3f}]"
            effect = "" if np.isnan(row.effect) else f"  {row.effect:+.1f} sd"
            lines.append(
                f"  {MEASURES[row.metric]:30} {row.a:8.3f} {row.b:8.3f} {row.difference:+8.3f}"
                f"{interval}{effect}"
            )
    return "\n".join(lines)
