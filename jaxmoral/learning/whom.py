"""Whom a learner meets, as names say it: machines, a second learner, agents that do not learn.

tit-for-tat     a machine, by the names of `world.opponents` or of the configuration
learner         a second agent that learns
runs/selfish    an agent that is stored: a run, a population's member or a PEFT adapter, by its
                path; "@40" or "@best" after a run's path names its checkpoint
past(10)        the learner as it was before updates 0, 10, 20, ...
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.learning.lookup import LEARNER
from jaxmoral.learning.run_folder import Which, named_checkpoint

C = TypeVar("C", bound=Config)
PAST = re.compile(r"past\(([1-9]\d{0,6})\)")


class Whom(NamedTuple):
    """One of those who are met.

    Attributes:
      name: as the configuration has it.
      kind: what it stands for.
      folder, update: of a stored agent, and which of its checkpoints.
      every: of the learner's past, after how many updates it is remembered again.
    """

    name: str
    kind: Literal["machine", "learner", "stored", "past"]
    folder: Path = Path()
    update: Which = None
    every: int = 0


def parse(config: Config, name: str) -> Whom:
    """What a name stands for; a machine that does not exist is one too."""
    if name == LEARNER and name not in config.opponents:
        return Whom(name, "learner")
    if match := PAST.fullmatch(name):
        return Whom(name, "past", every=int(match[1]))
    if name.partition("(")[0].strip() == "past" and name not in config.opponents:
        raise UserError(
            f"{key_of_met(config)}: {name!r} says nothing of the past; past(10) is the agent as it"
            " was before updates 0, 10, 20, ..."
        )
    if name in config.opponents or "/" not in name.partition("(")[0]:
        return Whom(name, "machine")
    return Whom(name, "stored", *named_checkpoint(name))


def met_by(config: Config) -> dict[Whom, float]:
    """Whom episodes of training are against, and each one's chance."""
    if config.mixture.opponents is None:
        return {parse(config, config.env.opponent): 1.0}
    total = sum(config.mixture.opponents.values())
    # In an order of their own: a file that lists them otherwise goes on with the same draws.
    weights = sorted(config.mixture.opponents.items())
    return {parse(config, name): weight / total for name, weight in weights}


def meets_agents(config: Config) -> bool:
    """Whether anybody who is met sees prompts too."""
    return any(whom.kind != "machine" for whom in met_by(config))


def trained_against(config: Config) -> str:
    """Whom episodes of training are against, in words."""
    met = met_by(config)
    if len(met) == 1:
        return next(iter(met)).name
    return " or ".join(f"{whom.name} ({chance:.0%})" for whom, chance in met.items())


def key_of_met(config: Config) -> str:
    """The key that says whom a learner meets."""
    return "env.opponent" if config.mixture.opponents is None else "mixture.opponents"


def past_updates(config: Config) -> set[int]:
    """The updates before which the learner is remembered, for those who meet it later."""
    steps = [whom.every for whom in met_by(config) if whom.kind == "past"]
    return {update for step in steps for update in range(0, config.updates, step)}


def as_pinned(config: Config, saved: Config) -> Config:
    """The configuration with stored runs named as in that of a run that began with them."""
    asked = met_by(config)
    given = {whom.name for whom in asked}
    began = {w.folder: w.name for w in met_by(saved) if w.kind == "stored" and w.name not in given}
    stored = [whom for whom in asked if whom.kind == "stored"]
    unpinned = [whom for whom in stored if not isinstance(whom.update, int)]
    return renamed(config, {whom.name: began.get(whom.folder, whom.name) for whom in unpinned})


def renamed(config: C, names: Mapping[str, str]) -> C:
    """The configuration with some of those who are met called otherwise.

    Raises:
      UserError: two of them are the same then.
    """
    env, mixture = config.env, config.mixture
    if mixture.opponents is None:
        env = dataclasses.replace(env, opponent=names.get(env.opponent, env.opponent))
        return dataclasses.replace(config, env=env)
    weights: dict[str, float] = {}
    for name, weight in mixture.opponents.items():
        new = names.get(name, name)
        if new in weights:
            raise UserError(f"mixture.opponents: {name} and {new} are the same agent; name it once")
        weights[new] = weight
    return dataclasses.replace(config, mixture=dataclasses.replace(mixture, opponents=weights))
