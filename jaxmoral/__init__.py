"""jaxmoral: fine-tune LLM agents with intrinsic moral rewards in matrix games, and measure them.

Names are imported when they are first used, so that a game costs no language model.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmoral.api import train_agent, train_population
    from jaxmoral.config import Config, load, load_members, parse
    from jaxmoral.errors import UserError
    from jaxmoral.learning.trained import TrainedAgent
    from jaxmoral.measuring.choices import choose
    from jaxmoral.measuring.evaluation import evaluate_agent
    from jaxmoral.measuring.opened import open_run
    from jaxmoral.measuring.results import table
    from jaxmoral.measuring.scenarios import evaluate_scenarios
    from jaxmoral.world.games import GAMES, Game, get_game, make_game, make_group_game, register
    from jaxmoral.world.machines import Opponent, machine, memory_one, memoryless
    from jaxmoral.world.opponents import OPPONENTS
    from jaxmoral.world.rewards import REWARDS, Cell

_HOMES = {
    "api": ("train_agent", "train_population"),
    "config": ("Config", "load", "load_members", "parse"),
    "errors": ("UserError",),
    "learning.trained": ("TrainedAgent",),
    "measuring.choices": ("choose",),
    "measuring.evaluation": ("evaluate_agent",),
    "measuring.opened": ("open_run",),
    "measuring.results": ("table",),
    "measuring.scenarios": ("evaluate_scenarios",),
    "world.games": ("GAMES", "Game", "get_game", "make_game", "make_group_game", "register"),
    "world.machines": ("Opponent", "machine", "memory_one", "memoryless"),
    "world.opponents": ("OPPONENTS",),
    "world.rewards": ("REWARDS", "Cell"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "GAMES",
    "OPPONENTS",
    "REWARDS",
    "Cell",
    "Config",
    "Game",
    "Opponent",
    "TrainedAgent",
    "UserError",
    "choose",
    "evaluate_agent",
    "evaluate_scenarios",
    "get_game",
    "load",
    "load_members",
    "machine",
    "make_game",
    "make_group_game",
    "memory_one",
    "memoryless",
    "open_run",
    "parse",
    "register",
    "table",
    "train_agent",
    "train_population",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
