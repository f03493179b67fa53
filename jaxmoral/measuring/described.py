"""What was measured of a policy in one condition, as nested dictionaries of measures."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxmoral.config import Config
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.lookup import find_opponent
from jaxmoral.measuring.measures import ERROR, describe_shares, standard_errors
from jaxmoral.measuring.protocols import Measured
from jaxmoral.world.games import Game
from jaxmoral.world.memory import OUTCOMES, Memory
from jaxmoral.world.pairs import agent_player, machine_player, meet
from jaxmoral.world.rewards import PAPER_REWARDS, REWARDS, get_reward, reward_table


def xi_of(config: Config) -> float:
    """The deontological penalty of the evaluation."""
    return config.reward.xi if config.evaluation.xi is None else config.evaluation.xi


def reward_tables(config: Config, game: Game) -> dict[str, np.ndarray]:
    """Tables of the paper's rewards, of all simple ones, and of those the run was trained with."""
    own = [config.reward.name, config.reward.then]
    names = dict.fromkeys([*PAPER_REWARDS, *REWARDS, *(name for name in own if name)])
    points = xi_of(config), config.reward.illegal
    return {name: reward_table(game, get_reward(name), *points) for name in names}


def describe_policy(
    config: Config,
    condition: Condition,
    *,
    measured: Measured,
    tables: Mapping[str, np.ndarray],
    redrawn: bool,
) -> dict[str, Any]:
    """One policy in one condition.

    Args:
      config: of the evaluation.
      condition: what was shown.
      measured: of this policy alone, without the axis of policies.
      tables: of rewards in the condition's game.
      redrawn: whether the paper's protocol draws memories anew every round.
    """
    settings, game = config.evaluation, condition.game
    memory = condition.presentation.remembers(game)
    table = measured.policies
    opponents: dict[str, dict[str, Any]] = {}
    describe_one = partial(describe_shares, tables=tables, game=game)
    for index, opponent in enumerate(settings.opponents):
        shares = {"exact": measured.exact[index]}
        if measured.sampled is not None:
            shares["sampled"] = measured.sampled[index]
        if "long-run" in settings.protocols:
            machine = machine_player(find_opponent(config, opponent, game))
            shares["long-run"] = meet(
                [agent_player(memory, table)], [machine], num_rounds=1
            ).long_run[0, 0]
        opponents[opponent] = {name: describe_one(found) for name, found in shares.items()}
        if measured.left_out is not None:
            without = [describe_one(found) for found in measured.left_out.exact[:, index]]
            opponents[opponent][ERROR] = standard_errors(without)
    if measured.paper is not None:
        shares = measured.paper[int(redrawn)]
        opponents.setdefault("random", {})["paper"] = describe_one(shares)
    found = {"remembered": named_table(table, memory), "opponents": opponents}
    if measured.left_out is not None:
        without = [named_table(one, memory) for one in measured.left_out.policies]
        found["remembered_error"] = standard_errors(without)
    return found


def named_table(table: np.ndarray, memory: Memory) -> dict[str, dict[str, float]]:
    """Outcomes' probabilities after each history, `[num_histories, 3]`, by name."""
    return {
        name: dict(zip(OUTCOMES, map(float, row), strict=True))
        for name, row in zip(memory.names, table, strict=True)
    }
