"""Run folders read back: configuration, training history and evaluation, as one tidy table."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from jaxmoral import config as configs
from jaxmoral import metrics
from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.results import rows
from jaxmoral.training import population_of


class Run(NamedTuple):
    """A run folder.

    Attributes:
      folder: where it is.
      config: as it was resolved.
      history: the records of `metrics.jsonl`.
      evaluation: `evaluation.json`, or None if there is none yet.
      answers: `answers.json`, or an empty list.
    """

    folder: Path
    config: Config
    history: list[dict]
    evaluation: dict[str, Any] | None
    answers: list[dict]

    @property
    def title(self) -> str:
        """The reward, or the two rewards, in words."""
        reward = self.config.reward
        return reward.name if reward.then is None else f"{reward.name}, then {reward.then}"


def read_json(path: Path) -> Any:
    """A JSON file's content; raises UserError if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from None


@cache
def _read_metrics(folder: Path, changed: int) -> list[dict]:
    """The records of a population, read once for all its members."""
    return metrics.read(folder)


def read_run(folder: Path) -> Run:
    """Reads a run folder; raises UserError if it holds no run or a damaged one."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run (there is no config.yaml in it)")
    config = configs.load(folder / "config.yaml")
    population = population_of(folder)
    if population is None:
        history = metrics.read(folder)
    else:
        home, _, index = population
        changed = (home / "metrics.jsonl").stat().st_mtime_ns
        history = [metrics.of_member(record, index) for record in _read_metrics(home, changed)]
    if not history:
        raise UserError(f"{folder} holds a run without a finished update")
    optional = {
        name: read_json(path) if (path := folder / f"{name}.json").is_file() else None
        for name in ("evaluation", "answers")
    }
    return Run(folder, config, history, optional["evaluation"], optional["answers"] or [])


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads the runs in folders, or in their subfolders.

    Returns:
      The runs that can be read, and a line for each that cannot.

    Raises:
      UserError: a folder does not exist, or none holds a run that can be read.
    """
    found, skipped = [], []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
        inside = [path.parent for path in sorted(folder.glob("*/config.yaml"))]
        for path in [folder] if (folder / "config.yaml").exists() else inside:
            try:
                found.append(read_run(path))
            except UserError as error:
                skipped.append(str(error))
    if not found:
        reason = f" ({skipped[0]})" if skipped else ""
        raise UserError(f"no run in {', '.join(map(str, folders))}{reason}")
    return found, skipped


def tidy(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run, condition, policy, opponent, protocol and metric of the evaluated runs."""
    found: list[dict] = []
    for run in runs:
        config = run.config
        name, _, _ = run.folder.name.rpartition("-seed")
        start = {
            "run": run.folder.name,
            "experiment": name or run.folder.name,
            "title": run.title,
            "model": config.model.source,
            "seed": config.seed,
            "reward": config.reward.name,
            "then": config.reward.then or "",
            "trained_against": config.env.opponent,
            "trained_labels": "/".join(config.prompt.labels),
            "preset": config.preset,
        }
        found += [start | row for row in rows(run.evaluation or {"suites": {}})]
    return pd.DataFrame(found)


def summarise(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over runs with the half-width of the normal 95 % interval, `1.96 sd / sqrt(n)`.

    Args:
      table: from `tidy`; of a group each run has one row.
      by: the columns that make a group.

    Returns:
      The groups with columns mean, interval (0 for a single run) and runs.
    """
    grouped = table.groupby(list(by), sort=False)["value"]
    found = grouped.agg(mean="mean", sd="std", runs="count").reset_index()
    found["interval"] = (1.96 * found["sd"] / found["runs"] ** 0.5).fillna(0.0)
    return found.drop(columns="sd")
