"""Policies: what maps parameters to the response distribution of every prompt, a `PolicyTable`.

A policy holds only static facts. Its arrays travel as arguments: `frozen` (never trained), `inputs`
(the prompts of one game or of a few that follow each other, in chunks of equal size on a leading
axis) and `trainable`. The trainer and the evaluation do not know which policy they have.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral.devices.mesh import Layout, constrain
from jaxmoral.language.prompt_tree import PromptTree, chains, sight
from jaxmoral.language.responses import (
    Trie,
    edge_sources,
    follow,
    legal_tokens,
    outcome_log_probs,
    outcomes,
    sample_answer,
)
from jaxmoral.models.config import GemmaConfig
from jaxmoral.models.lora import Lora, init_adapter, prepare

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
    """The interface every policy has. Prompts of one condition; no dropout without a key."""

    @property
    def dropout(self) -> bool:
        """Whether dropout keys are used."""

    def init(self, key: jax.Array) -> PyTree:
        """Fresh trainable parameters that leave the reference policy as it is."""

    def reference_parameters(self) -> PyTree:
        """The reference policy's, in the place of trainable ones."""

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        """The policy's table."""

    def apply_with_logits(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> tuple[PolicyTable, jax.Array]:
        """The table and what `write` needs, `[num_prompts, num_prefixes, vocab_size]`."""

    def write(
        self,
        frozen: PyTree,
        inputs: PyTree,
        trainable: PyTree,
        dropout_key: jax.Array | None,
        logits: jax.Array,
        key: jax.Array,
        prompt: jax.Array,
        outcome: jax.Array,
    ) -> jax.Array:
        """Samples the tokens of whole answers given what they amount to.

        Args:
          frozen, inputs, trainable, dropout_key: as for `apply`.
          logits: from `apply_with_logits`.
          key: PRNG key.
          prompt, outcome: `[num_samples]` int32.

        Returns:
          `[num_samples, budget]` int32.
        """

    def score(
        self,
        frozen: PyTree,
        inputs: PyTree,
        trainable: PyTree,
        prompt: jax.Array,
        tokens: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability of and value before each token, `[num_samples, budget]` each."""


def reference_table(policy: Policy, frozen: PyTree, inputs: PyTree) -> jax.Array:
    """The untrained policy's log-probabilities, `[num_prompts, 3]`."""
    return policy.apply(frozen, inputs, policy.reference_parameters(), None).log_probs


@dataclasses.dataclass(frozen=True)
class TabularPolicy:
    """Free logits and a free value per prompt; its reference is uniform over the outcomes.

    It plays every game alike: a chunk of its inputs is a game. Its answers have one token, the
    outcome.
    """

    num_prompts: int
    dropout: bool = False

    def init(self, key: jax.Array) -> PyTree:
        return self.reference_parameters()

    def reference_parameters(self) -> PyTree:
        return {"logits": jnp.zeros((self.num_prompts, 3)), "values": jnp.zeros(self.num_prompts)}

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        num_games = len(inputs)
        log_probs = jnp.tile(jax.nn.log_softmax(trainable["logits"]), (num_games, 1))
        return PolicyTable(log_probs, jnp.tile(trainable["values"], num_games))

    def apply_with_logits(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> tuple[PolicyTable, jax.Array]:
        table = self.apply(frozen, inputs, trainable, dropout_key)
        return table, table.log_probs[:, None]

    def write(
        self,
        frozen: PyTree,
        inputs: PyTree,
        trainable: PyTree,
        dropout_key: jax.Array | None,
        logits: jax.Array,
        key: jax.Array,
        prompt: jax.Array,
        outcome: jax.Array,
    ) -> jax.Array:
        return outcome[:, None]

    def score(
        self,
        frozen: PyTree,
        inputs: PyTree,
        trainable: PyTree,
        prompt: jax.Array,
        tokens: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        table = self.apply(frozen, inputs, trainable, None)
        return table.log_probs[prompt[:, None], tokens], table.values[prompt][:, None]


class PromptInputs(NamedTuple):
    """Packed prompts with the legal responses' inner nodes; each leaf has a leading chunk axis.

    Attributes:
      tree: the packed tokens.
      nodes: `[num_prompts, num_prefixes]` int32, where each partial response ends; column 0 is
        the prompt's last token.
      trie: the legal responses.
      tokens: `[num_prompts, longest]` int32, the prompts one by one.
      lengths: `[num_prompts]` int32.
    """

    tree: PromptTree
    nodes: np.ndarray | jax.Array
    trie: Trie
    tokens: np.ndarray | jax.Array
    lengths: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class GemmaPolicy:
    """Gemma with LoRA and a linear value head on the last hidden state of each prompt.

    Attributes:
      config, definition: of the base.
      lora: which layers are adapted, and how.
      remat: what the backward pass recomputes; a name in `gemma.model.RECOMPUTED`.
      max_logits: how many are made at once; see `apply`, `score`.
      layout: where the arrays are, if on more than one device.
    """

    config: GemmaConfig
    definition: nnx.GraphDef
    lora: Lora
    remat: str = "elementwise"
    max_logits: int = 2**27
    layout: Layout | None = None

    @property
    def dropout(self) -> bool:
        return self.lora.dropout > 0

    def init(self, key: jax.Array) -> PyTree:
        return self.reference_parameters() | {"adapter": init_adapter(key, self.config, self.lora)}

    def reference_parameters(self) -> PyTree:
        head = {"kernel": jnp.zeros(self.config.embed_dim), "bias": jnp.zeros(())}
        return {"adapter": {}, "value_head": head}

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        def one(chunk):
            rows = self._rows(frozen, chunk, trainable, dropout_key)
            log_probs = self.decide(frozen, rows, chunk.trie)
            return PolicyTable(log_probs, _value(trainable, rows[:, 0]))

        return _over_chunks(one, inputs)

    def decide(self, frozen: PyTree, rows: jax.Array, trie: Trie) -> jax.Array:
        """Log-probabilities of the outcomes, `[num_prompts, 3]`, without all logits.

        Args:
          frozen: as for `apply`.
          rows: `[num_prompts, num_prefixes, embed_dim]`, hidden states where answers are decided.
          trie: the legal responses.
        """
        model = nnx.merge(self.definition, frozen)
        edges = model.chosen_logits(rows[:, edge_sources(trie)], trie.edge_token)
        legal = legal_tokens(trie, self.config.vocab_size)
        outside = model.log_sum_exp(rows, legal, self.max_logits)
        return outcomes(follow(edges, outside, trie), trie)

    def apply_with_logits(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> tuple[PolicyTable, jax.Array]:
        model = nnx.merge(self.definition, frozen)

        def one(chunk):
            rows = self._rows(frozen, chunk, trainable, dropout_key)
            logits = model.logits(rows)
            log_probs = outcome_log_probs(logits, chunk.trie)
            return PolicyTable(log_probs, _value(trainable, rows[:, 0])), logits

        return _over_chunks(one, inputs)

    def _rows(
        self, frozen: PyTree, chunk: PromptInputs, trainable: PyTree, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Hidden states where answers are decided, `[num_prompts, num_prefixes, embed_dim]`."""
        chex.assert_rank(chunk.nodes, 2)
        hidden = self._hidden(frozen, chunk.tree, trainable, dropout_key)
        prompts = None if self.layout is None else self.layout.node_axes
        return constrain(hidden[chunk.nodes], self.layout, prompts, None, None)

    def _in_parts(self, function: Callable, *rows: jax.Array) -> Any:
        """Applies what makes logits of every place in `[n, places, ...]`, in parts that fit."""
        num_rows, places = rows[0].shape[:2]
        at_once = max(self.max_logits // (places * self.config.vocab_size), 1)
        divisors = (n for n in range(1, num_rows + 1) if num_rows % n == 0)
        parts = next(n for n in divisors if num_rows // n <= at_once)
        if parts == 1:
            return function(*rows)
        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
        made = jax.lax.map(jax.checkpoint(lambda part: function(*part)), split)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)

    def write(
        self,
        frozen: PyTree,
        inputs: PyTree,
        trainable: PyTree,
        dropout_key: jax.Array | None,
        logits: jax.Array,
        key: jax.Array,
        prompt: jax.Array,
        outcome: jax.Array,
    ) -> jax.Array:
        model = nnx.merge(self.definition, frozen)
        key, tail_key = jax.random.split(key)
        trie = jax.tree.map(lambda leaf: leaf[0], inputs.trie)  # all chunks have the same labels
        tokens, known = sample_answer(key, logits, trie, prompt, outcome)
        for place in range(1, tokens.shape[1]):  # what follows the part that decided
            hidden = self._read(frozen, inputs, trainable, prompt, tokens, dropout_key)
            drawn = jax.random.categorical(
                jax.random.fold_in(tail_key, place), model.logits(hidden[:, place])
            )
            tokens = tokens.at[:, place].set(jnp.where(place < known, tokens[:, place], drawn))
        return tokens

    def score(
        self,
        frozen: PyTree,
        inputs: PyTree,
        trainable: PyTree,
        prompt: jax.Array,
        tokens: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        hidden = self._read(frozen, inputs, trainable, prompt, tokens, None)
        model = nnx.merge(self.definition, frozen)

        def chosen(hidden, tokens):
            log_probs = jax.nn.log_softmax(model.logits(hidden))
            return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]

        return self._in_parts(chosen, hidden, tokens), _value(trainable, hidden)

    def _read(
        self,
        frozen: PyTree,
        inputs: PyTree,
        trainable: PyTree,
        prompt: jax.Array,
        tokens: jax.Array,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Hidden states before each answer token, `[num_samples, budget, embed_dim]`."""
        size, budget = tokens.shape
        lengths = inputs.lengths.reshape(-1)[prompt][:, None]
        known = inputs.tokens.reshape(-1, inputs.tokens.shape[-1])[prompt]
        room = jnp.pad(known, ((0, 0), (0, budget - 1)))
        place = jnp.arange(room.shape[1])
        answers = jnp.take_along_axis(tokens, jnp.clip(place - lengths, 0, budget - 1), axis=1)
        sequences = jnp.where(place < lengths, room, answers)
        forest = chains(sequences, lengths[:, 0] + budget - 1)
        hidden = self._hidden(frozen, forest, trainable, dropout_key)
        hidden = hidden.reshape(size, -1, hidden.shape[-1])
        before = lengths - 1 + jnp.arange(budget)
        return jnp.take_along_axis(hidden, before[..., None], axis=1)

    def _hidden(
        self, frozen: PyTree, tree: PromptTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> jax.Array:
        """The last hidden state of every node, `[num_nodes, embed_dim]`."""
        model = nnx.merge(self.definition, frozen)
        adapter = prepare(trainable["adapter"], self.config, self.lora, dropout_key)
        seen = sight(tree, self.config.sliding_window)
        return model.hidden(tree.tokens, tree.positions, seen, adapter, self.remat)


def _over_chunks(function: Callable, inputs: PyTree) -> PyTree:
    """Applies a function to one chunk after the other and joins the results' leading axes.

    Of several chunks the backward pass recomputes each, so that only one is in memory at a time.
    """
    if len(jax.tree.leaves(inputs)[0]) == 1:
        return function(jax.tree.map(lambda leaf: leaf[0], inputs))
    result = jax.lax.map(jax.checkpoint(function), inputs)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), result)


def _value(trainable: PyTree, hidden: jax.Array) -> jax.Array:
    head = trainable["value_head"]
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]
