"""Policies: what maps parameters to the response distribution of every prompt, a `PolicyTable`.

A policy holds only static facts. Its arrays travel as arguments: `frozen` (never trained), `inputs`
(the prompts of one game; those of several games are stacked on a leading axis) and `trainable`.
The trainer and the evaluation do not know which policy they have.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral import prompts
from jaxmoral.games import Game
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.lora import Lora, init_adapter, prepare
from jaxmoral.prompt_tree import PromptTree, ancestor_mask
from jaxmoral.responses import Responses, outcome_log_probs

PyTree = Any


class PolicyTable(NamedTuple):
    """All there is to know about an agent in one game.

    Attributes:
      log_probs: `[num_prompts, 3]` float32, log-probabilities of C, D and illegal.
      values: `[num_prompts]` float32, the value head's estimates.
    """

    log_probs: jax.Array
    values: jax.Array


class Policy(Protocol):
    """The interface every policy has."""

    @property
    def dropout(self) -> bool:
        """Whether `apply` uses its dropout key."""

    def init(self, key: jax.Array) -> PyTree:
        """Fresh trainable parameters that leave the reference policy as it is."""

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        """The policy on the prompts of one game; no dropout without a key."""

    def reference(self, frozen: PyTree, inputs: PyTree) -> jax.Array:
        """The untrained policy's log-probabilities, `[num_prompts, 3]`."""


@dataclasses.dataclass(frozen=True)
class TabularPolicy:
    """Free logits and a free value per prompt; its reference is uniform over the outcomes."""

    num_prompts: int = prompts.NUM_PROMPTS
    dropout: bool = False

    def init(self, key: jax.Array) -> PyTree:
        return {"logits": jnp.zeros((self.num_prompts, 3)), "values": jnp.zeros(self.num_prompts)}

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        return PolicyTable(jax.nn.log_softmax(trainable["logits"]), trainable["values"])

    def reference(self, frozen: PyTree, inputs: PyTree) -> jax.Array:
        return jnp.full((self.num_prompts, 3), -jnp.log(3.0))

    def inputs(self, games: Sequence[Game]) -> np.ndarray:
        """A policy over remembered rounds plays every game alike: `[num_games, 0]`."""
        return np.zeros((len(games), 0), np.float32)


class PromptInputs(NamedTuple):
    """The packed prompts of a game, with the legal responses' inner nodes.

    Attributes:
      tree: the packed tokens.
      nodes: `[num_prompts, num_prefixes]` int32, where each partial response ends; column 0 is
        the prompt's last token.
    """

    tree: PromptTree
    nodes: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class GemmaPolicy:
    """Gemma with LoRA and a linear value head on the last hidden state of each prompt."""

    config: GemmaConfig
    definition: nnx.GraphDef
    lora: Lora
    responses: Responses
    remat: bool = False

    @property
    def dropout(self) -> bool:
        return self.lora.dropout > 0

    def init(self, key: jax.Array) -> PyTree:
        head = {"kernel": jnp.zeros(self.config.embed_dim), "bias": jnp.zeros(())}
        return {"adapter": init_adapter(key, self.config, self.lora), "value_head": head}

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        chex.assert_rank(inputs.nodes, 2)
        tree = inputs.tree
        model = nnx.merge(self.definition, frozen)
        mask = (ancestor_mask(tree, self.config.sliding_window), ancestor_mask(tree))
        adapter = prepare(trainable["adapter"], self.config, self.lora, dropout_key)
        hidden = model.hidden(tree.tokens, tree.positions, mask, adapter, self.remat)
        rows = hidden[inputs.nodes]
        log_probs = outcome_log_probs(model.logits(rows), self.responses)
        head = trainable["value_head"]
        values = rows[:, 0].astype(jnp.float32) @ head["kernel"] + head["bias"]
        return PolicyTable(log_probs, values)

    def reference(self, frozen: PyTree, inputs: PyTree) -> jax.Array:
        head = {"kernel": jnp.zeros(self.config.embed_dim), "bias": jnp.zeros(())}
        no_adapter: PyTree = {"adapter": {}, "value_head": head}
        return self.apply(frozen, inputs, no_adapter, None).log_probs
