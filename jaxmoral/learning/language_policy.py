"""The language policy: a frozen decoder with LoRA and a value head, over packed prompts."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral.devices.mesh import Layout, constrain
from jaxmoral.language.prompt_tree import PromptTree, pack_unshared, sight
from jaxmoral.language.responses import (
    Trie,
    edge_sources,
    follow,
    legal_tokens,
    outcome_log_probs,
    outcomes,
    sample_answer,
)
from jaxmoral.language.thought_tree import Branches
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.lora import Lora, init_adapter, prepare
from jaxmoral.models.rows import RowTable
from jaxmoral.models.sample import Prefixes
from jaxmoral.world.products import matmul

PyTree = Any


class PackedPrompts(NamedTuple):
    """Packed prompts with the legal responses' inner nodes; each leaf has a leading chunk axis.

    Attributes:
      tree: the packed tokens.
      nodes: `[num_prompts, num_prefixes]` int32, where each partial response ends; column 0 is
        the prompt's last token.
      trie: the legal responses.
      tokens: `[num_prompts, longest]` int32, the prompts one by one.
      lengths: `[num_prompts]` int32.
      beside: `[num_nodes, size]`, what layers look up of the tree's tokens, or None.
      branches, alone: of an agent that thinks, where its thoughts are in the tree, and the
        prompts alone; the rows of `nodes` are then the prompts' thoughts.
    """

    tree: PromptTree
    nodes: np.ndarray | jax.Array
    trie: Trie
    tokens: np.ndarray | jax.Array
    lengths: np.ndarray | jax.Array
    beside: np.ndarray | jax.Array | None = None
    branches: Branches | None = None
    alone: Prefixes | None = None


@dataclasses.dataclass(frozen=True)
class LanguagePolicy:
    """A decoder with LoRA and a linear value head on the last hidden state of each prompt.

    Attributes:
      config, definition: of the base.
      lora: which layers are adapted, and how.
      remat: what the backward pass recomputes; a name in `models.block.RECOMPUTED`.
      max_logits: how many are made at once.
      max_nodes: whose activations are in memory at once; those of more trees are made again.
      layout: where the arrays are, if on more than one device.
      beside: see `LoadedModel`.
    """

    config: DecoderConfig
    definition: nnx.GraphDef
    lora: Lora
    remat: str = "elementwise"
    max_logits: int = 2**27
    max_nodes: int = 4096
    layout: Layout | None = None
    beside: RowTable | None = None

    @property
    def dropout(self) -> bool:
        return self.lora.dropout > 0

    def init(self, key: jax.Array) -> PyTree:
        return self.reference_parameters() | {"adapter": init_adapter(key, self.config, self.lora)}

    def reference_parameters(self) -> PyTree:
        head = {"kernel": jnp.zeros(self.config.embed_dim), "bias": jnp.zeros(())}
        return {"adapter": {}, "value_head": head}

    def bind(self, frozen: PyTree, prompts: PackedPrompts) -> "PromptedModel":
        return PromptedModel(self, frozen, prompts)

    def reading(self, frozen: PyTree) -> "PromptedModel":
        """For texts that are no prompts, and ask for no answer."""
        return PromptedModel(self, frozen, None)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class PromptedModel:
    """A language policy with its weights and prompts; see `policy.BoundPolicy`."""

    policy: LanguagePolicy
    frozen: PyTree
    prompts: PackedPrompts

    def table(self, trainable: PyTree, dropout_key: jax.Array | None = None) -> PolicyTable:
        def read(chunk):
            rows = self._rows(chunk, trainable, dropout_key)
            return PolicyTable(self.decide(rows, chunk.trie), value(trainable, rows[:, 0]))

        return self.over_chunks(read)

    def table_and_logits(
        self, trainable: PyTree, dropout_key: jax.Array | None = None
    ) -> tuple[PolicyTable, jax.Array]:
        def read(chunk):
            rows = self._rows(chunk, trainable, dropout_key)
            logits = self.model().logits(rows)
            log_probs = outcome_log_probs(logits, chunk.trie)
            return PolicyTable(log_probs, value(trainable, rows[:, 0])), logits

        return self.over_chunks(read)

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
        key, tail_key = jax.random.split(key)
        trie = jax.tree.map(lambda leaf: leaf[0], self.prompts.trie)  # every chunk has these labels
        tokens, known = sample_answer(key, logits, trie, prompt, outcome)
        for place in range(1, tokens.shape[1]):  # what follows the part that decided
            hidden = self._read(trainable, dropout_key, prompt=prompt, tokens=tokens)
            drawn = jax.random.categorical(
                jax.random.fold_in(tail_key, place), self.model().logits(hidden[:, place])
            )
            tokens = tokens.at[:, place].set(jnp.where(place < known, tokens[:, place], drawn))
        return tokens

    def score(
        self, trainable: PyTree, *, prompt: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        hidden = self._read(trainable, None, prompt=prompt, tokens=tokens)

        def chosen(hidden, tokens):
            log_probs = jax.nn.log_softmax(self.model().logits(hidden))
            return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]

        return self._in_parts(chosen, hidden, tokens), value(trainable, hidden)

    def decide(self, rows: jax.Array, trie: Trie, num_options: int = 2) -> jax.Array:
        """Log-probabilities of the outcomes, `[num_prompts, num_options + 1]`, without all logits.

        Args:
          rows: `[num_prompts, num_prefixes, embed_dim]`, hidden states where answers are decided.
          trie: the legal responses.
          num_options: among which they choose; see `responses.outcomes`.
        """
        model = self.model()
        edges = model.chosen_logits(rows[:, edge_sources(trie)], trie.edge_token)
        legal = legal_tokens(trie, self.policy.config.vocab_size)
        outside = model.log_sum_exp(rows, self.policy.max_logits, excluded=legal)
        return outcomes(follow(edges, outside, trie), trie, num_options)

    def model(self) -> Any:
        return nnx.merge(self.policy.definition, self.frozen)

    def _rows(
        self, chunk: PackedPrompts, trainable: PyTree, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Hidden states where answers are decided, `[num_prompts, num_prefixes, embed_dim]`."""
        hidden = self.hidden(chunk.tree, trainable, dropout_key, chunk.beside)
        return self.rows(hidden, chunk.nodes)

    def before(
        self,
        trainable: PyTree,
        tree: PromptTree,
        nodes: np.ndarray | jax.Array,
        beside: np.ndarray | jax.Array | None,
    ) -> jax.Array:
        """Hidden states of some nodes of a tree of texts, `[num_rows, embed_dim]`; see `hidden`."""
        return self.rows(self.hidden(tree, trainable, None, beside), nodes[:, None])[:, 0]

    def rows(self, hidden: jax.Array, nodes: np.ndarray | jax.Array) -> jax.Array:
        """The hidden states of nodes in rows, split over the devices like the tree."""
        chex.assert_rank(nodes, 2)
        layout = self.policy.layout
        split = None if layout is None else layout.node_axes
        return constrain(hidden[nodes], layout, split, None, None)

    def _read(
        self,
        trainable: PyTree,
        dropout_key: jax.Array | None,
        *,
        prompt: jax.Array,
        tokens: jax.Array,
    ) -> jax.Array:
        """Hidden states before each answer token, `[num_samples, budget, embed_dim]`."""
        size, budget = tokens.shape
        lengths = self.prompts.lengths.reshape(-1)[prompt][:, None]
        known = self.prompts.tokens.reshape(-1, self.prompts.tokens.shape[-1])[prompt]
        room = jnp.pad(known, ((0, 0), (0, budget - 1)))
        place = jnp.arange(room.shape[1])
        answers = jnp.take_along_axis(tokens, jnp.clip(place - lengths, 0, budget - 1), axis=1)
        sequences = jnp.where(place < lengths, room, answers)
        forest = pack_unshared(sequences, lengths[:, 0] + budget - 1)
        hidden = self.hidden(forest, trainable, dropout_key, self.look_up(forest.tokens))
        hidden = hidden.reshape(size, -1, hidden.shape[-1])
        before = lengths - 1 + jnp.arange(budget)
        return jnp.take_along_axis(hidden, before[..., None], axis=1)

    def hidden(
        self,
        tree: PromptTree,
        trainable: PyTree,
        dropout_key: jax.Array | None,
        beside: np.ndarray | jax.Array | None = None,
    ) -> jax.Array:
        """The last hidden state of every node, `[num_nodes, embed_dim]`.

        `beside` is what the layers look up of each node's token; see `PackedPrompts`.
        """
        config = self.policy.config
        adapter = prepare(trainable["adapter"], config, self.policy.lora, dropout_key)
        seen = sight(tree, config.sliding_window)
        remat = self.policy.remat
        return self.model().hidden(tree.tokens, tree.positions, seen, adapter, remat, beside)

    def look_up(self, tokens: np.ndarray | jax.Array) -> jax.Array | None:
        """What layers look up of tokens that nobody knew before, as `PackedPrompts.beside`."""
        table = self.policy.beside
        return None if table is None else table(tokens)

    def over_chunks(self, function: Callable, *beside: PyTree) -> Any:
        """Applies a function to one chunk after the other and joins the results' leading axes.

        If all of them have more than `max_nodes` nodes, the backward pass recomputes each, so that
        only one is in memory at a time.

        Args:
          function: of a chunk of the prompts, and of one of each pytree beside them.
          beside: leaves have a leading axis of chunks.
        """
        inputs = (self.prompts, *beside)
        num_chunks, num_nodes = self.prompts.tree.tokens.shape
        if num_chunks == 1:
            return function(*jax.tree.map(lambda leaf: leaf[0], inputs))
        apply = lambda chunk: function(*chunk)
        if num_chunks * num_nodes > self.policy.max_nodes:
            apply = jax.checkpoint(apply)
        result = jax.lax.map(apply, inputs)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), result)

    def _in_parts(self, function: Callable, *rows: jax.Array) -> Any:
        """Applies what makes logits of every place in `[n, places, ...]`, in parts that fit."""
        num_rows, places = rows[0].shape[:2]
        logits_a_row = places * self.policy.config.vocab_size
        at_once = max(self.policy.max_logits // logits_a_row, 1)
        divisors = (n for n in range(1, num_rows + 1) if num_rows % n == 0)
        parts = next(n for n in divisors if num_rows // n <= at_once)
        if parts == 1:
            return function(*rows)
        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
        made = jax.lax.map(jax.checkpoint(lambda part: function(*part)), split)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)


def value(trainable: PyTree, hidden: jax.Array) -> jax.Array:
    """The value head's estimate in points, `[..., embed_dim]` to `[...]` in float32."""
    head = trainable["value_head"]
    return matmul(hidden.astype(jnp.float32), head["kernel"]) + head["bias"]
