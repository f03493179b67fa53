"""Runs that are equal but for the seed, put together and named; what a report averages."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.config.trees import OF_THE_MACHINE
from jaxmoral.learning.environments import reward_tables, transition
from jaxmoral.learning.mixture import labels_in_words, num_choices, player_games
from jaxmoral.learning.whom import trained_against
from jaxmoral.measuring.runs import Run

# Rewards of the paper, in its order; all others follow.
TITLES = (
    "game",
    "deontological",
    "utilitarian",
    "game+deontological",
    "game, then deontological",
    "game, then utilitarian",
)
# Settings that say where and how often something is computed or kept, or what is tested; what was
# tested is beside every number.
_NOT_TOLD = (
    "seed",
    "checkpoint_every",
    *OF_THE_MACHINE,
    "model.remat",
    "model.max_nodes",
    "model.max_logits",
    *(f"evaluation.{name}" for name in ("suites", "games", "opponents", "protocols", "episodes")),
)
_MADE_OF = ("games.", "opponents.")
_LONGEST = 40  # characters of a setting's value in a name


class Series(NamedTuple):
    """Runs that are equal but for the seed: the only ones that are averaged.

    Attributes:
      title: the reward, or the two rewards, in words.
      name: that, and what tells the series from others of this title, opponent and preset.
      settings: what the runs share, by dotted key; "updates" also says how many were made.
      runs: one for each seed.
    """

    title: str
    name: str
    settings: dict[str, Any]
    runs: list[Run]

    @property
    def config(self) -> Config:
        return self.runs[0].config

    @property
    def opponent(self) -> str:
        return trained_against(self.config)


def group_runs(runs: Sequence[Run]) -> tuple[list[Series], list[str]]:
    """Puts runs that are equal but for the seed together.

    Returns:
      The series, those of the paper's rewards first and in its order, and a line for each run that
      repeats another one, seed included.
    """
    groups: dict[str, list[Run]] = {}
    skipped = []
    for run in runs:
        members = groups.setdefault(json.dumps(_settings(run), sort_keys=True), [])
        twins = [one for one in members if one.config.seed == run.config.seed]
        if twins:
            skipped.append(f"{run.folder} is the same experiment and seed as {twins[0].folder}")
        else:
            members.append(run)
    series = [Series(m[0].title, m[0].title, _settings(m[0]), m) for m in groups.values()]
    place = {title: index for index, title in enumerate(TITLES)}
    series.sort(key=lambda one: (place.get(one.title, len(place)), one.title))
    families: dict[tuple, list[Series]] = {}
    for one in series:
        key = (one.title, one.opponent, one.config.preset)
        families.setdefault(key, []).append(one)
    names: dict[int, str] = {}
    for family in families.values():
        told = tell_apart(family[0].title, [one.settings for one in family])
        names |= {id(one): name for one, name in zip(family, told, strict=True)}
    return [one._replace(name=names[id(one)]) for one in series], skipped


def _settings(run: Run) -> dict[str, Any]:
    found = configs.flatten(configs.to_dict(run.config))
    made, asked = len(run.history), run.config.updates
    found["updates"] = asked if made == asked else f"{made} of {asked}"
    if run.config.mixture.labels is not None:  # as words, which seeds have in common
        told = {"labels": None, "both_ways": False}
        found |= {f"mixture.{key}": value for key, value in told.items()}
        found["prompt.labels"] = [labels_in_words(run.config)]
    found |= _tested(run)
    return {key: value for key, value in found.items() if not key.startswith(_NOT_TOLD)}


def _tested(run: Run) -> dict[str, Any]:
    """The settings that the run was tested with, which may be others than its configuration's."""
    test = dataclasses.asdict(run.config.evaluation)
    if run.evaluation is not None:
        written = run.evaluation.get("config", {}).get("evaluation", {})
        # An earlier version wrote these two only.
        top = {key: run.evaluation[key] for key in ("xi", "rounds") if key in run.evaluation}
        test |= top | written
    if test["xi"] == run.config.reward.xi:
        test["xi"] = None
    test["labels"] = list(test["labels"])
    return {f"evaluation.{key}": value for key, value in test.items()}


def tell_apart(title: str, settings: Sequence[dict[str, Any]]) -> list[str]:
    """The title for each of some settings, and if there are several what they differ in."""
    keys = dict.fromkeys(key for one in settings for key in one)
    varying = [key for key in keys if _varies(one.get(key) for one in settings)]
    # A game or an opponent has a name; what it is made of is only told if nothing else differs.
    varying = [key for key in varying if not key.startswith(_MADE_OF)] or varying
    names: list[str] = []
    for one in settings:
        name = ", ".join([title, *(setting_text(key, one.get(key), varying) for key in varying)])
        names.append(f"{name} ({len(names) + 1})" if name in names else name)  # if cut short alike
    return names


def _varies(values: Iterable[Any]) -> bool:
    first, *rest = values
    return any(value != first for value in rest)


def setting_text(key: str, value: Any, keys: Sequence[str]) -> str:
    """A setting in a few words; the key's last part stands for it if that is clear among `keys`."""
    last = key.rpartition(".")[2]
    alike = [other for other in keys if other.rpartition(".")[2] == last]
    values = value if isinstance(value, list) else [value]
    shown = shorten("/".join(map(_text, values)), _LONGEST, placeholder=" ...")
    return f"{last if len(alike) < 2 else key} {shown}"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    if isinstance(value, str) and value != " ".join(value.split()):
        return repr(value)  # spaces and line breaks that would not be seen
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown_names(series: Sequence[Series]) -> list[str]:
    """Names for one figure, with the opponent of training and the preset where those differ."""
    opponents = {one.opponent for one in series}
    presets = {one.config.preset for one in series}
    return [
        one.name
        + (f" vs {one.opponent}" if len(opponents) > 1 else "")
        + (f", preset {one.config.preset}" if len(presets) > 1 else "")
        for one in series
    ]


def reward_bounds(config: Config, update: int) -> tuple[float, float]:
    """The smallest and the largest mean reward that an update's rounds can have.

    Args:
      config: resolved.
      update: how many were made before.

    Raises:
      UserError: the run's reward, game or opponent is not known here.
    """
    tables = reward_tables(config, update, player_games(config, update))[0]
    played = tables if config.env.blank_start else tables[:, :-1]
    cells = played.reshape(len(played), -1)
    return float(cells.min(1).mean()), float(cells.max(1).mean())


def normalised_rewards(run: Run) -> np.ndarray:
    """The run's mean reward by update, from 0 (the lowest it could be) to 1, `[num_updates]`.

    Raises:
      UserError: the run's reward, game or opponent is not known here.
    """
    known: dict[tuple, tuple[float, float]] = {}
    drawn = run.config.env.payoff_draws > 0 or num_choices(run.config) > 1
    values = []
    for index, record in enumerate(run.history):
        key = (transition(run.config, index), index if drawn else None)
        if key not in known:
            known[key] = reward_bounds(run.config, index)
        low, high = known[key]
        values.append((record["reward_mean"] - low) / (high - low) if high > low else 1.0)
    return np.array(values)
