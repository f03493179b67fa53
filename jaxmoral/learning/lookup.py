"""What a configuration's names of games and opponents mean: its own first, then the registries'."""

from collections.abc import Sequence

from jaxmoral.config import Config
from jaxmoral.world.games import Game, choose_games, get_game, make_games
from jaxmoral.world.machines import Opponent
from jaxmoral.world.opponents import get_opponent, make_opponents

LEARNER = "learner"  # the opponent that is an agent itself


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


def find_opponent(config: Config, name: str, game: Game) -> Opponent:
    """An opponent by name in a game; see `opponents.get_opponent`."""
    return get_opponent(name, game, make_opponents(config.opponents))
