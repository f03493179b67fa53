"""Decoders of all families as one Flax NNX module, its blocks scanned, LoRA passed in explicitly.

The module is built abstractly and split once (`Decoder.abstract`) and its weights come from a file;
from then on everything is a function of parameter pytrees.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral.devices.mesh import Layout, constrain
from jaxmoral.language.prompt_tree import Sight
from jaxmoral.models.block import RECOMPUTED, Block, RMSNorm, by_nodes, rotary_angles
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.layers import keys_from
from jaxmoral.models.lora import LayerAdapter
from jaxmoral.models.quantise import Quantised, dequantise, matrix, read_matrix
from jaxmoral.models.vocabulary import (
    EmbeddingPieces,
    Known,
    block_sums,
    cut,
    divergence,
    know,
    log_sum_exp,
    soft_cap,
)
from jaxmoral.models.walk import walk

_VOCABULARY_PIECES = 64  # in which a quantised embedding is multiplied
_CACHED = 2048  # tokens whose embeddings and logits stay in the caches of a CPU


def tokens_at_once(
    config: DecoderConfig, layout: Layout | None, num_rows: int, max_logits: int
) -> int:
    """The most tokens whose logits `Decoder.log_sum_exp` makes for so many rows at once."""
    size = min(config.vocab_size, max_logits // num_rows)
    if config.quantisation is not None:  # never dequantised as a whole
        size = min(size, config.vocab_size // _VOCABULARY_PIECES)
    if jax.default_backend() == "cpu" and (layout is None or layout.mesh.size == 1):
        size = min(size, _CACHED)
    return max(size, 1)


class Layer(NamedTuple):
    """What is read of a layer; stacked over the layers of one shape outside the scans.

    Attributes:
      weights: of its block, or its number in its stack, to be read there; see `Decoder.block`.
      adapter: of its linear layers.
      is_global: `[]` int32, whether it attends to everything.
      beside: `[num_tokens, per_layer_dim]`, what it reads beside the stream, or None.
    """

    weights: nnx.State | jax.Array
    adapter: LayerAdapter
    is_global: jax.Array
    beside: jax.Array | None


class Decoder(nnx.Module):
    """A decoder of text with its blocks of each shape stacked on a leading axis."""

    def __init__(self, config: DecoderConfig, layout: Layout | None = None):
        self.config = config
        self.layout = layout
        self.embedding = matrix(config.quantisation, (config.vocab_size, config.embed_dim))
        if not config.tied:
            self.unembedding = matrix(config.quantisation, (config.vocab_size, config.embed_dim))
        blocks = {
            name: nnx.vmap(partial(Block, config, name, layout), axis_size=len(stack.layers))()
            for name, stack in config.stacks.items()
        }
        self.blocks: Any = blocks[""] if "" in blocks else nnx.Dict(blocks)
        if config.per_layer_dim:
            beside = config.num_layers * config.per_layer_dim
            self.beside_projection = matrix(config.quantisation, (config.embed_dim, beside))
            self.beside_norm = RMSNorm(config.per_layer_dim, config.rms_eps)
        self.final_norm = RMSNorm(config.embed_dim, config.rms_eps)

    @property
    def head(self) -> nnx.Param | Quantised:
        """The matrix that makes logits, `[vocab_size, embed_dim]`."""
        return self.embedding if self.config.tied else self.unembedding

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings as the first block reads them, `[...]` to `[..., embed_dim]`."""
        x = constrain(self.embedding[tokens], self.layout, *[None] * (tokens.ndim + 1))
        return x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype) if self.config.scaled_embedding else x

    def beside(self, x: jax.Array, rows: np.ndarray | jax.Array) -> jax.Array:
        """What layers read of each token beside the stream, `[layers, ..., per_layer_dim]`.

        Args:
          x: `[..., embed_dim]` embeddings as the first block reads them.
          rows: `[..., num_layers * per_layer_dim]`, the same tokens in `LoadedModel.beside`.
        """
        config = self.config
        size = config.per_layer_dim
        chex.assert_axis_dimension(rows, -1, config.num_layers * size)
        kernel = read_matrix(
            self.beside_projection, lambda y: constrain(y, self.layout, None, None)
        )
        split = lambda y: y.reshape(*y.shape[:-1], config.num_layers, size)
        projected = self.beside_norm(split(x @ kernel * jnp.asarray(x.shape[-1] ** -0.5, x.dtype)))
        looked_up = split(rows.astype(x.dtype)) * jnp.asarray(size**0.5, x.dtype)
        both = (projected + looked_up) * jnp.asarray(2**-0.5, x.dtype)
        return jnp.moveaxis(both, -2, 0)

    def layers(
        self, x: jax.Array, adapter: dict[str, LayerAdapter], rows: np.ndarray | jax.Array | None
    ) -> dict[str, Layer]:
        """All layers, stacked by their shapes; see `beside` for x and rows."""
        if (rows is None) != (self.config.per_layer_dim == 0):
            raise ValueError("rows are what a model reads that has a per_layer_dim, and no other")
        beside = None if rows is None else self.beside(x, rows)
        nested = any(section.periods > 1 for section in self.config.sections)
        return {
            name: Layer(
                weights=jnp.arange(len(stack.layers)) if nested else nnx.state(self.stack(name)),
                adapter=adapter[name],
                is_global=jnp.array(
                    [self.config.global_layers[i] for i in stack.layers], jnp.int32
                ),
                beside=None if beside is None else beside[np.array(stack.layers)],
            )
            for name, stack in self.config.stacks.items()
        }

    def stack(self, name: str) -> Block:
        """The blocks of one shape, stacked."""
        return self.blocks if isinstance(self.blocks, Block) else self.blocks[name]

    def block(self, name: str, layer: Layer) -> Block:
        """A layer of a stack.

        Where periods of runs are scanned its weights are read out of the stack: cut into periods
        and runs they would be copied twice.
        """
        definition, weights = nnx.split(self.stack(name))
        if isinstance(layer.weights, nnx.State):
            return nnx.merge(definition, layer.weights)
        read = partial(jax.lax.dynamic_index_in_dim, index=layer.weights, keepdims=False)
        return nnx.merge(definition, jax.tree.map(read, weights))

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        sight: Sight,
        adapter: dict[str, LayerAdapter],
        remat: str,
        rows: np.ndarray | jax.Array | None = None,
    ) -> jax.Array:
        """Runs the blocks over one packed sequence.

        Args:
          tokens, positions: `[num_nodes]` int32.
          sight: who attends to whom.
          adapter: LoRA weights stacked over layers, from `lora.prepare`.
          remat: what the backward pass recomputes, a name in `RECOMPUTED`.
          rows: of the tokens in `LoadedModel.beside`, if the model has that.

        Returns:
          `[num_nodes, embed_dim]` hidden states after the last norm.
        """
        return self.read(tokens, positions, sight, adapter, remat, rows)[0]

    def read(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        sight: Sight,
        adapter: dict[str, LayerAdapter],
        remat: str,
        rows: np.ndarray | jax.Array | None = None,
        *,
        keep: bool = False,
    ) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array] | None]]:
        """`hidden`, and if they are kept each stack's keys and values.

        These are `[layers, num_nodes, num_kv_heads, head_dim]`; None of a stack without its own.
        """
        chex.assert_equal_shape([tokens, positions])
        x = by_nodes(self.embed(tokens), self.layout)

        def step_of(name: str) -> Callable:
            head_dim = self.config.stacks[name].head_dim
            sin, cos = rotary_angles(self.config, positions, head_dim)

            def step(carry, layer):
                x, lent = carry
                block, kind = self.block(name, layer), layer.is_global
                q, made = block.project(x, sin[kind], cos[kind], layer.adapter)
                k, v = made or lent[keys_from(name)]
                heads = block.attention(q, k, v, sight.keys, sight.masks[kind])
                x = block.finish(x, heads, layer.adapter, layer.beside)
                return (x, lent | ({name: made} if name in lent else {})), made if keep else None

            return jax.checkpoint(step, policy=RECOMPUTED[remat], prevent_cse=False)

        steps = {name: step_of(name) for name in self.config.stacks}
        layers = self.layers(x, adapter, rows)
        (x, _), made = walk(self.config.sections, steps, (x, self.nothing_lent(x)), layers)
        return self.final_norm(x), made

    def nothing_lent(self, x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Room for the keys and values that layers without their own read."""
        stacks = self.config.stacks
        lending = [keys_from(name) for name, stack in stacks.items() if not stack.own_keys]
        shapes = {
            name: (len(x), stacks[name].num_kv_heads, stacks[name].head_dim) for name in lending
        }
        return {name: (jnp.zeros(shape, x.dtype),) * 2 for name, shape in shapes.items()}

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, `[..., embed_dim]` to `[..., vocab_size]` float32."""

        def against(rows):
            table = constrain(self.head[rows], self.layout, "tensor", None)
            return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

        if isinstance(self.head, Quantised):  # never dequantised as a whole
            pieces = jnp.arange(self.config.vocab_size)
            pieces = pieces.reshape(math.gcd(self.config.vocab_size, _VOCABULARY_PIECES), -1)
            logits = jax.lax.map(jax.checkpoint(against), pieces)
            logits = jnp.moveaxis(logits, 0, -2).reshape(*hidden.shape[:-1], -1)
        else:
            logits = against(...)
        return soft_cap(logits, self.config.final_softcap)

    def chosen_logits(self, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        """Logits of one token each, `[..., n, embed_dim]` and `[n]` to `[..., n]` float32."""
        rows = constrain(self.head[tokens], self.layout, None, None)
        logits = jnp.einsum("...nd,nd->...n", hidden, rows, preferred_element_type=jnp.float32)
        return soft_cap(logits, self.config.final_softcap)

    def logits_of(self, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        """Logits of some tokens in each row, `[num_rows, embed_dim]` and `[num_rows, n]`."""
        rows = constrain(self.head[tokens], self.layout, None, None, None)
        logits = jnp.einsum("rd,rnd->rn", hidden, rows, preferred_element_type=jnp.float32)
        return soft_cap(logits, self.config.final_softcap)

    def log_sum_exp(
        self, hidden: jax.Array, max_logits: int, *, excluded: jax.Array | None = None
    ) -> jax.Array:
        """The log of the summed exponentials of all next-token logits, or of all but some.

        Args:
          hidden: `[num_rows, num_places, embed_dim]`; one place, if nothing is excluded.
          max_logits: how many are made at once.
          excluded: `[num_places, vocab_size]` bool, what is left out in each place.

        Returns:
          `[num_rows, num_places]` float32.
        """
        rows = hidden.shape[0] * hidden.shape[1]
        left_out = self._nothing() if excluded is None else excluded
        read, vocabulary = self._vocabulary(left_out, rows, max_logits)
        return log_sum_exp(read, self.config.final_softcap, vocabulary, hidden)

    def block_sums(self, hidden: jax.Array, longest: int, max_logits: int) -> jax.Array:
        """The logs of the summed exponentials of logits, by blocks of neighbouring tokens.

        Blocks are the same whether the vocabulary lies on one device or on two, four or eight.

        Args:
          hidden: `[num_rows, embed_dim]`.
          longest: the most tokens of a block; all have as many.
          max_logits: how many are made at once.

        Returns:
          `[num_rows, num_blocks]` float32.
        """
        size = self.config.vocab_size
        part = size // 8 if size % 8 == 0 else size
        width = next(n for n in range(min(longest, part), 0, -1) if part % n == 0)
        read, vocabulary = self._vocabulary(self._nothing(), len(hidden), max_logits, width)
        width = math.gcd(width, vocabulary.excluded.shape[-1])
        return block_sums(read, self.config.final_softcap, vocabulary, hidden, width)

    def know(self, hidden: jax.Array, max_logits: int, *, compared: bool = False) -> Known:
        """See `vocabulary.know`; hidden states are `[num_rows, embed_dim]`."""
        read, vocabulary = self._vocabulary(self._nothing(), len(hidden), max_logits)
        return know(read, self.config.final_softcap, vocabulary, hidden, compared=compared)

    def divergence(
        self, one: Known, other: tuple[jax.Array, jax.Array], max_logits: int
    ) -> jax.Array:
        """See `vocabulary.divergence`."""
        read, vocabulary = self._vocabulary(self._nothing(), 2 * len(other[0]), max_logits)
        return divergence(read, self.config.final_softcap, vocabulary, one, other)

    def _nothing(self) -> jax.Array:
        """That no token is left out anywhere."""
        return jnp.zeros((1, self.config.vocab_size), bool)

    def _vocabulary(
        self, excluded: jax.Array, num_rows: int, max_logits: int, width: int = 1
    ) -> tuple[Callable[[Any], jax.Array], EmbeddingPieces]:
        """The head in pieces of which so many rows' logits fit, and how a piece is read.

        So many neighbouring tokens as `width` says stay together, if parts of devices allow it.
        """
        layout = self.layout
        at_once = tokens_at_once(self.config, layout, num_rows, max_logits)
        quantised = isinstance(self.head, Quantised)
        splits = 1 if layout is None else math.gcd(layout.mesh.shape["tensor"], excluded.shape[1])
        stored = self.head
        leaves = (stored.codes[...], stored.scales[...]) if quantised else (stored[...],)
        whole = tuple(constrain(leaf, layout, "tensor", None) for leaf in leaves)
        read = (lambda leaves: dequantise(*leaves)) if quantised else (lambda leaves: leaves[0])
        width = math.gcd(width, excluded.shape[1] // splits)
        return read, cut(whole, excluded, at_once, splits, width)

    @staticmethod
    def abstract(
        config: DecoderConfig, layout: Layout | None = None
    ) -> tuple[nnx.GraphDef, nnx.State]:
        """The module's definition and the shapes of its weights, without allocating any."""
        return nnx.split(nnx.eval_shape(lambda: Decoder(config, layout)))
