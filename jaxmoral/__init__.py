"""jaxmoral: fine-tune LLM agents with intrinsic moral rewards in matrix games, and measure them."""

from jaxmoral.config import Config, load, parse
from jaxmoral.errors import UserError
from jaxmoral.evaluation import evaluate
from jaxmoral.games import GAMES, Game, make_game, register
from jaxmoral.opponents import OPPONENTS, Opponent, memoryless
from jaxmoral.results import table
from jaxmoral.rewards import REWARDS, Cell
from jaxmoral.training import TrainedAgent, train

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
    "evaluate",
    "load",
    "make_game",
    "memoryless",
    "parse",
    "register",
    "table",
    "train",
]
