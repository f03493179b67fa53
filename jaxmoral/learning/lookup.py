"""What a configuration's names of games and opponents mean: its own first, then the registries'."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxmoral.config import Config
from jaxmoral.world.games import Game, choose_games, get_game, make_games
from jaxmoral.world.machines import Opponent
from jaxmoral.world.opponents import get_opponent, make_opponents

LEARNER = "learner"  # the opponent that is an agent itself
_PAST = re.compile(r"past\(([1-9]\d{0,6})\)")


def num_learners(config: Config) -> int:
    """How many agents learn in a run, or in a member of a population: 1 or 2."""
    return 2 if config.env.opponent == LEARNER else 1


def find_game(config: Config, name: str) -> Game:
    """A game by name; see `games.get_game`."""
    return get_game(name, make_games(config.games))


def training_game(config: Config) -> Game:
    """The game a configuration trains on."""
    return find_game(config, config.env.game)


def find_games(config: Config, names: Sequence[str]) -> list[Game]:
    """Games by name, sets spelled out, "all" with the configuration's own."""
    return choose_games(names, make_games(config.games))


def opponents_met(config: Config) -> dict[str, float]:
    """Whom episodes of training are against, and each one's chance."""
    if config.mixture.opponents is None:
        return {config.env.opponent: 1.0}
    total = sum(config.mixture.opponents.values())
    # In an order of their own: a file that lists them otherwise goes on with the same draws.
    return {name: weight / total for name, weight in sorted(config.mixture.opponents.items())}


def trained_against(config: Config) -> str:
    """The same in words."""
    met = opponents_met(config)
    if len(met) == 1:
        return next(iter(met))
    return " or ".join(f"{name} ({chance:.0%})" for name, chance in met.items())


def find_opponent(config: Config, name: str, game: Game) -> Opponent:
    """An opponent by name in a game; see `opponents.get_opponent`."""
    return get_opponent(name, game, make_opponents(config.opponents))


Kind = Literal["machine", "learner", "past", "stored"]


def kind_of(config: Config, name: str) -> Kind:
    """What is met under a name: a machine (known or not), a second learner, the learner's own past,
    or an agent that is stored somewhere (a path).
    """
    if name in config.opponents:
        return "machine"
    if name == LEARNER:
        return "learner"
    if past_every(name):
        return "past"
    return "stored" if "/" in name else "machine"


def meets_agents(config: Config) -> bool:
    """Whether anybody who is met sees prompts too."""
    return any(kind_of(config, name) != "machine" for name in opponents_met(config))


def past_every(name: str) -> int | None:
    """The k of "past(k)", the learner as it was every k updates; None for another name."""
    match = _PAST.fullmatch(name)
    return int(match[1]) if match else None


def split_update(name: str) -> tuple[str, int | None]:
    """A run's folder, and the number of its checkpoint if the name has one: "runs/selfish@40"."""
    folder, _, update = name.rpartition("@")
    return (folder, int(update)) if folder and update.isdecimal() else (name, None)


def past_updates(config: Config) -> set[int]:
    """The updates before which the learner is remembered, for those who meet it later."""
    steps = [past_every(name) for name in opponents_met(config)]
    return {update for step in steps if step for update in range(0, config.updates, step)}


def key_of_met(config: Config) -> str:
    """The key that says whom a learner meets."""
    return "env.opponent" if config.mixture.opponents is None else "mixture.opponents"


def as_pinned(config: Config, saved: Config) -> Config:
    """The configuration with runs named as in that of a run that began with them."""
    known = {split_update(name)[0]: name for name in opponents_met(saved)}
    return with_names(config, {name: known.get(name, name) for name in opponents_met(config)})


def with_names(config: Config, names: Mapping[str, str]) -> Config:
    """The configuration with those who are met called otherwise."""
    env = dataclasses.replace(
        config.env, opponent=names.get(config.env.opponent, config.env.opponent)
    )
    mixture = config.mixture
    if mixture.opponents is not None:
        renamed = {names[name]: weight for name, weight in mixture.opponents.items()}
        mixture = dataclasses.replace(mixture, opponents=renamed)
    return dataclasses.replace(config, env=env, mixture=mixture)
