"""jaxmoral: fine-tune LLM agents with intrinsic moral rewards in matrix games, and measure them."""

from jaxmoral.config import Config, load, load_members, parse
from jaxmoral.errors import UserError
from jaxmoral.evaluation import evaluate_agent
from jaxmoral.games import GAMES, Game, get_game, make_game, make_group_game, register
from jaxmoral.opponents import OPPONENTS, Opponent, machine, memory_one, memoryless
from jaxmoral.results import table
from jaxmoral.rewards import REWARDS, Cell
from jaxmoral.training import TrainedAgent, train_agent, train_population

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
    "evaluate_agent",
    "get_game",
    "load",
    "load_members",
    "machine",
    "make_game",
    "make_group_game",
    "memory_one",
    "memoryless",
    "parse",
    "register",
    "table",
    "train_agent",
    "train_population",
]
