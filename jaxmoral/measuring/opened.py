"""A finished run in a notebook: its policy, its prompts, its metrics, and further evaluations."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import policy_table
from jaxmoral.learning.lookup import find_games, training_game
from jaxmoral.learning.run_folder import Which, read_config
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.trained import TrainedAgent
from jaxmoral.measuring.choices import choose
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.runs import read_run
from jaxmoral.world.chain import memory_policy


def open_run(folder: Path | str, update: Which = None) -> "OpenRun":
    """Opens a run folder; the model is loaded when something needs it.

    Args:
      folder: of a run, or of a member of a population.
      update: a checkpoint's number, "best", or None for the newest.

    Raises:
      UserError: the folder holds no run.

    >>> config = jaxmoral.parse({"model": {"source": "tabular"}, "updates": 3, "seed": 1})
    >>> trained = jaxmoral.train_agent(config, folder, say=lambda line: None)
    >>> run = jaxmoral.open_run(folder)
    >>> run.policy("ipd").round(1).loc["CC"].to_dict()
    {'C': 0.3, 'D': 0.3, 'illegal': 0.3}
    >>> len(run.prompts()), list(run.metrics()["update"])
    (16, [1, 2, 3])
    """
    return OpenRun(Path(folder), update)


class OpenRun:
    """A run folder and, once it is needed, the agent in it."""

    def __init__(self, folder: Path, update: Which = None):
        self.folder = folder
        self._update = update
        self.config: Config = read_config(folder)

    @cached_property
    def trained(self) -> TrainedAgent:
        """The agent with its checkpoint's parameters."""
        return load_trained(self.folder, self._update)

    def prompts(self, game: str | None = None) -> list[str]:
        """Every prompt of a game, by default that of training: the four orders of each history."""
        return self.trained.agent.prompter.texts(self._condition(game))

    def policy(self, game: str | None = None) -> pd.DataFrame:
        """Probabilities of C, D and an illegal answer after each history, means over the orders.

        Histories name the agent's move first, the oldest round first.
        """
        condition = self._condition(game)
        memory = condition.presentation.remembers(condition.game)
        log_probs = policy_table(self.trained.agent, condition, self.trained.trainable).log_probs
        table = np.asarray(memory_policy(log_probs), np.float64)
        index = pd.Index(memory.names, name="remembered")
        return pd.DataFrame(table, index=index, columns=["C", "D", "illegal"])

    def metrics(self) -> pd.DataFrame:
        """What every update measured, a row an update; nested figures have names with dots."""
        return pd.json_normalize(read_run(self.folder).history)

    def evaluate(self, games: Sequence[str] | None = None, **asked: Any) -> dict[str, Any]:
        """As `jaxmoral.evaluate_agent`, with the model that is loaded; nothing is written."""
        return evaluate_agent(self.trained, games, **asked)

    def choose(self, text: str, options: Sequence[str]) -> dict[str, dict[str, float]]:
        """As `jaxmoral.choose`: how likely base and tuned agent answer a text by each option."""
        return choose(self.trained, text, options)

    def _condition(self, game: str | None) -> Condition:
        own = training_game(self.config)
        found, *others = [own] if game is None else find_games(self.config, [game])
        if others:
            raise UserError(f"game: {game} stands for several; name one")
        if found.num_players != own.num_players:
            raise UserError(
                f"game: {found.name} has {found.num_players} players, that of training"
                f" {own.num_players}"
            )
        return Condition(found, self.trained.agent.presentation)
