"""The tabular policy: free logits per prompt, the baseline that needs no language model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.language.prompts import Condition, all_prompts
from jaxmoral.learning.policy import PolicyTable

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TabularPolicy:
    """Free logits and a free value per prompt; its reference is uniform over the outcomes.

    It plays every game alike: a chunk of its prompts is a game. Its answers have one token, the
    outcome.
    """

    num_prompts: int
    dropout: bool = False

    def init(self, key: jax.Array) -> PyTree:
        return self.reference_parameters()

    def reference_parameters(self) -> PyTree:
        return {"logits": jnp.zeros((self.num_prompts, 3)), "values": jnp.zeros(self.num_prompts)}

    def bind(self, frozen: PyTree, prompts: PyTree) -> "BoundTable":
        return BoundTable(num_games=len(prompts))


class TablePrompter:
    """Packs prompts for a policy that reads none; in place of a `Prompter`."""

    def room(self, conditions: Sequence[Condition], points: Sequence[float] = ()) -> None:
        """Nothing has a size."""

    def texts(self, condition: Condition) -> list[str]:
        """The prompts that another policy would read."""
        return all_prompts(*condition)

    def pack(self, groups: Sequence[Sequence[Condition]], room: None = None) -> np.ndarray:
        """`[num_groups, num_games, 0]`; only how many games there are matters."""
        return np.zeros((len(groups), len(groups[0]), 0), np.float32)


@dataclasses.dataclass(frozen=True)
class BoundTable:
    """A tabular policy in a few games; see `policy.BoundPolicy`."""

    num_games: int

    def table(self, trainable: PyTree, dropout_key: jax.Array | None = None) -> PolicyTable:
        log_probs = jnp.tile(jax.nn.log_softmax(trainable["logits"]), (self.num_games, 1))
        return PolicyTable(log_probs, jnp.tile(trainable["values"], self.num_games))

    def table_and_logits(
        self, trainable: PyTree, dropout_key: jax.Array | None = None
    ) -> tuple[PolicyTable, jax.Array]:
        table = self.table(trainable)
        return table, table.log_probs[:, None]

    def write(
        self,
        trainable: PyTree,
        dropout_key: jax.Array | None = None,
        *,
        logits: jax.Array,
        key: jax.Array,
        prompt: jax.Array,
        outcome: jax.Array,
    ) -> jax.Array:
        return outcome[:, None]

    def score(
        self, trainable: PyTree, *, prompt: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        table = self.table(trainable)
        return table.log_probs[prompt[:, None], tokens], table.values[prompt][:, None]
