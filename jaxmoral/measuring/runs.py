"""Run folders read back: configuration, training history and evaluation, as one tidy table."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy.special import stdtrit

from jaxmoral.config import Config
from jaxmoral.config.trees import to_dict, tree_differences
from jaxmoral.errors import UserError
from jaxmoral.learning import metrics
from jaxmoral.learning.run_folder import (
    CONFIG,
    MEMBERS,
    METRICS,
    is_run,
    member_names,
    population_of,
    read_config,
)
from jaxmoral.learning.whom import trained_against
from jaxmoral.measuring.keeping import ANSWERS, EVALUATION, read_evaluation, read_json
from jaxmoral.measuring.results import rows


class Run(NamedTuple):
    """A run folder.

    Attributes:
      folder: where it is.
      config: as the folder keeps it, pinned.
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
        """What training was for, in words."""
        return self.config.title


@cache
def _read_metrics(folder: Path, changed: int) -> list[dict]:
    """The records of a population, read once for all its members."""
    return metrics.read(folder)


def read_run(folder: Path) -> Run:
    """Reads a run folder; raises UserError if it holds no run or a damaged one."""
    config = read_config(folder)
    population = population_of(folder)
    if population is None:
        history = metrics.read(folder)
    else:
        log = population.home / METRICS
        changed = log.stat().st_mtime_ns if log.exists() else 0
        together = _read_metrics(population.home, changed)
        history = [metrics.of_member(record, population.number) for record in together]
    if not history:
        raise UserError(f"{folder} holds a run without a finished update")
    for number, record in enumerate(history, 1):
        if "reward_mean" not in record:
            raise UserError(
                f"{folder / METRICS} is damaged: line {number} is no record of an update"
            )
    tested, said = folder / EVALUATION, folder / ANSWERS
    evaluation = read_evaluation(tested) if tested.is_file() else None
    answers = read_json(said) if said.is_file() else []
    if not isinstance(answers, list) or not all(isinstance(one, dict) for one in answers):
        raise UserError(f"{said} is damaged: it holds no answers")
    return Run(folder, config, history, evaluation, answers)


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads the runs in folders, in their subfolders, and in populations among those; each once.

    Returns:
      The runs that can be read, and a line for each that cannot.

    Raises:
      UserError: a folder does not exist.
    """
    found: dict[Path, Run] = {}
    skipped: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
        paths = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))]
        for listed in sorted(folder.glob(f"*/{MEMBERS}")):
            try:
                paths += [listed.parent / name for name in member_names(listed.parent)]
            except UserError as error:
                skipped[listed.resolve()] = str(error)
        for path in [folder] if is_run(folder) else paths:
            place = path.resolve()
            try:
                if place not in found:
                    found[place] = read_run(path)
            except UserError as error:
                named = str(path) in str(error)
                skipped[place] = str(error) if named else f"{path}: {error}"
    return list(found.values()), list(skipped.values())


def without_stale(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Runs without evaluations of another run or checkpoint, and a line for each of those.

    An evaluation of an earlier version does not say of which checkpoint it is; it counts.
    """
    kept, stale = [], []
    for run in runs:
        made, path = len(run.history), run.folder / EVALUATION
        told = (run.evaluation or {}).get("config", {})
        trees = to_dict(run.config), told
        own, others = ({key: tree.get(key) for key in ("seed", "reward")} for tree in trees)
        changed = tree_differences(own, others) if told else []
        if changed:
            stale.append(f"{path} is of another run, with another {', '.join(changed)}")
            run = run._replace(evaluation=None)
        elif (run.evaluation or {}).get("update", made) != made:
            of = run.evaluation["update"]  # type: ignore[index]
            tested = "an untrained model" if of is None else f"update {of}"
            stale.append(f"{path} is of {tested}, the run has made {made} updates")
            run = run._replace(evaluation=None)
        kept.append(run)
    return kept, stale


def _trained_labels(config: Config) -> str:
    """The labels of training, or how many pairs there were."""
    pairs = config.mixture.labels
    if pairs is None:
        return "/".join(config.prompt.labels)
    count = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
    return count + (", both ways" if config.mixture.both_ways else "")


def tidy(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run, condition, policy, opponent, protocol and metric of the evaluated runs."""
    found: list[dict] = []
    for run in runs:
        config, evaluation = run.config, run.evaluation or {"suites": {}}
        name, _, _ = run.folder.name.rpartition("-seed")
        start = {
            "run": run.folder.name,
            "folder": str(run.folder),
            "experiment": name or run.folder.name,
            "title": run.title,
            "model": config.model.source,
            "seed": config.seed,
            "reward": config.reward.name,
            "then": config.reward.then or "",
            "trained_against": trained_against(config),
            "trained_labels": _trained_labels(config),
            "preset": config.preset,
            "update": evaluation.get("update"),
        }
        found += [start | row for row in rows(evaluation)]
    return pd.DataFrame(found)


def summarise(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over runs with the half-width of their 95 % interval by Student's t.

    Args:
      table: from `tidy`; of a group each run has one row.
      by: the columns that make a group.

    Returns:
      The groups with columns mean, interval (0 for a single run) and runs.
    """
    grouped = table.groupby(list(by), sort=False)["value"]
    found = grouped.agg(mean="mean", sd="std", runs="count").reset_index()
    found["interval"] = half_width(found["sd"], found["runs"]).fillna(0.0)
    return found.drop(columns="sd")


def half_width(sd: Any, runs: Any) -> Any:
    """Of the 95 % interval of a mean of so many normal values with this standard deviation."""
    return sd * stdtrit(runs - 1, 0.975) / runs**0.5
