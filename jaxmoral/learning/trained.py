"""What training ends with, and the parts of its state: one member's, the first player's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoral.config import Config
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainedAgent:
    """What a run, or a member of a population, ends with.

    Attributes:
      config: pinned; see `config.states`.
      agent: the policy and its frozen arrays.
      state: after the last update.
      history: one record an update made by this call, as in `metrics.jsonl`.
      interrupted: the signal that ended the run early, or None.

    >>> config = jaxmoral.parse({"model": {"source": "tabular"}, "updates": 2})
    >>> jaxmoral.train_agent(config, say=lambda line: None).trainable["logits"].shape
    (16, 3)
    """

    config: Config
    agent: Agent
    state: TrainState
    history: list[dict]
    interrupted: int | None = None

    @property
    def trainable(self) -> Any:
        """The agent's trained parameters; of two learners the first one's."""
        return first_player(self.state)

    def is_finite(self) -> bool:
        """Whether these are numbers; they are not if training diverged."""
        return bool(_all_finite(self.trainable))


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def first_player(state: TrainState) -> Any:
    """The first player's parameters."""
    return jax.tree.map(lambda leaf: leaf[0], state.players.trainable)
