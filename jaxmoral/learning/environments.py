"""Whom the players meet and what they earn, update by update."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxmoral.config import Config
from jaxmoral.learning.lookup import LEARNER, find_opponent, num_learners, opponents_met
from jaxmoral.learning.mixture import player_games
from jaxmoral.world.games import Game
from jaxmoral.world.machines import Opponent, stack
from jaxmoral.world.rewards import add_illegal_opponent, get_reward, reward_table
from jaxmoral.world.rollout import Draws, Environment
from jaxmoral.world.streams import Streams


def transition(config: Config, update: int) -> float:
    """How far the reward has gone from the first to the second, 0 to 1, in this update."""
    reward = config.reward
    if reward.then is None:
        return 0.0
    if reward.transition == "linear":
        return update / max(config.updates - 1, 1)
    return float(reward.switch_at is not None and update >= reward.switch_at)


def environment(
    config: Config,
    update: int = 0,
    *,
    games: Sequence[Sequence[Game]] | None = None,
    meet: Callable[[str, int], Opponent] | None = None,
) -> Environment:
    """The training games' opponents and rewards in an update.

    Args:
      config: resolved.
      update: its number.
      games: of each learning player; by default drawn here.
      meet: from a name and the number of a game to a machine; by default only machines are met.
    """
    games = player_games(config, update) if games is None else games
    env, share = config.env, transition(config, update)
    noise = np.array(env.noise, np.float32) if env.noise else None
    rewards = np.array(
        [[_rewards_between(config, game, share) for game in player] for player in games], np.float32
    )
    if env.opponent == LEARNER:
        return Environment(None, rewards, noise)
    met = opponents_met(config)
    own = games[0]
    # Some know the payoffs.
    meet = meet or (lambda name, number: find_opponent(config, name, own[number]))
    each = [[meet(name, number) for name in met] for number in range(len(own))]
    if len(met) > 1:
        weights = np.array([*met.values()], np.float32)
        return Environment(stack([stack(row) for row in each]), rewards[0], noise, weights)
    alone = [machine for (machine,) in each]
    return Environment(stack(alone) if len(alone) > 1 else alone[0], rewards[0], noise)


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
    table = reward_table(game, get_reward(name), settings.xi, settings.illegal, settings.normalise)
    if env.opponent != LEARNER:
        return table
    return add_illegal_opponent(table, env.opponent_illegal, name, settings.illegal)


def paper_draws(config: Config) -> Callable[[int], Draws | None]:
    """The paper's random numbers of each update, or None for JAX's own.

    Updates are asked for in ascending order; those skipped (made by an earlier session) are drawn
    and thrown away, so that a resumed run goes on in the same stream.
    """
    env = config.env
    if env.streams == "jax":
        return lambda update: None
    streams, made = Streams(config.seed), -1
    newest: Draws | None = None
    num_players = num_learners(config)
    remembered = {"always-cooperate": 0, "always-defect": 1}.get(env.opponent)

    def draw(update: int) -> Draws | None:
        nonlocal made, newest
        while made < update:
            newest = streams.draw(
                env.episodes,
                env.rounds,
                num_players=num_players,
                remembered=remembered,
                coin=env.opponent == "random",
            )
            made += 1
        return newest

    return draw
