"""What players earn and whom they meet, update by update."""

from collections.abc import Sequence

import numpy as np

from jaxmoral.config import Config
from jaxmoral.learning.lookup import LEARNER, find_opponent
from jaxmoral.learning.mixture import player_games
from jaxmoral.learning.whom import met_by
from jaxmoral.world.games import Game
from jaxmoral.world.machines import Opponent, stack
from jaxmoral.world.rewards import add_illegal_opponent, get_reward, reward_table
from jaxmoral.world.rollout import Environment, Exploited


def transition(config: Config, update: int) -> float:
    """How far the reward has gone from the first to the second, 0 to 1, in this update."""
    reward = config.reward
    if reward.then is None:
        return 0.0
    if reward.transition == "linear":
        return update / max(config.updates - 1, 1)
    return float(reward.switch_at is not None and update >= reward.switch_at)


def reward_tables(config: Config, update: int, games: Sequence[Sequence[Game]]) -> np.ndarray:
    """Of each learning player's games in an update, `[num_players, num_games, ...]`.

    The rest of the shape is that of `rewards.reward_table`.
    """
    share = transition(config, update)
    tables = [[_rewards_between(config, game, share) for game in player] for player in games]
    return np.array(tables, np.float32)


def make_environment(
    config: Config,
    update: int,
    *,
    games: Sequence[Sequence[Game]],
    machines: Sequence[Sequence[Opponent]] | None,
    counted: bool,
) -> Environment:
    """The opponents and rewards in an update.

    Args:
      config: resolved.
      update: its number.
      games: of each learning player.
      machines: in each game all who are met, in the order of `whom.met_by`; None if two learn.
      counted: whether what a best response takes is measured, if only for another member's reward.
    """
    noise = np.array(config.env.noise, np.float32) if config.env.noise else None
    rewards, exploited = reward_tables(config, update, games), None
    if counted:
        points = [[game.payoffs[1] for game in own] for own in games]
        weight = np.full(len(games), config.reward.exploitability, np.float32)
        exploited = Exploited(weight, np.array(points, np.float32))
    if machines is None:
        return Environment(opponent=None, rewards=rewards, noise=noise, exploited=exploited)
    chances = [*met_by(config).values()]
    if len(chances) > 1:
        return Environment(
            opponent=stack([stack(row) for row in machines]),
            rewards=rewards[0],
            noise=noise,
            chances=np.array(chances, np.float32),
            exploited=exploited,
        )
    alone = [machine for (machine,) in machines]
    opponent = stack(alone) if len(alone) > 1 else alone[0]
    return Environment(opponent=opponent, rewards=rewards[0], noise=noise, exploited=exploited)


def environment(config: Config, update: int = 0) -> Environment:
    """The environment of an update in which nobody but machines is met, or two learn."""
    games, machines = player_games(config, update), None
    if config.env.opponent != LEARNER:
        names = [whom.name for whom in met_by(config)]
        machines = [[find_opponent(config, name, game) for name in names] for game in games[0]]
    counted = config.reward.exploitability > 0
    return make_environment(config, update, games=games, machines=machines, counted=counted)


def _rewards_between(config: Config, game: Game, share: float) -> np.ndarray:
    """The reward table of a game when so much of the way to the second reward is gone."""
    settings = config.reward
    if share == 0 or settings.then is None:
        return _rewards(config, game, settings.name)
    later = _rewards(config, game, settings.then)
    if share == 1:
        return later
    return (1 - share) * _rewards(config, game, settings.name) + share * later


def _rewards(config: Config, game: Game, name: str) -> np.ndarray:
    settings, env = config.reward, config.env
    table = reward_table(
        game,
        get_reward(name),
        xi=settings.xi,
        r_illegal=settings.illegal,
        normalise=settings.normalise,
        blank=env.blank_start,
    )
    if env.opponent != LEARNER:
        return table
    return add_illegal_opponent(
        table, rule=env.opponent_illegal, reward_name=name, r_illegal=settings.illegal
    )
