"""Decoders of all families as one Flax NNX module, its blocks scanned, LoRA passed in explicitly.

The module is built abstractly and split once (`Decoder.abstract`) and its weights come from a file;
from then on everything is a function of parameter pytrees. Normalisation, softmax and rotary angles
are computed in float32 whatever the weights' dtype is.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxmoral.devices.mesh import Layout, constrain
from jaxmoral.language.prompt_tree import Sight
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.lora import LayerAdapter, lora_linear
from jaxmoral.models.quantise import Quantised, dequantise, matrix, read_matrix
from jaxmoral.models.vocabulary import (
    Divergence,
    Vocabulary,
    cut,
    divergence,
    log_sum_exp,
    soft_cap,
)


def rotary_angles(config: DecoderConfig, positions: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine, `[2 (sliding, global), num_tokens, head_dim / 2]` float32 each."""
    half = config.head_dim // 2
    bases = jnp.array([config.rope_base_local, config.rope_base_global])
    scales = jnp.array([config.rope_scale_local, config.rope_scale])
    frequencies = bases[:, None] ** (-jnp.arange(half) / half)
    scales = scales[:, None]
    if config.rope_ramp is not None:
        scales = config.rope_ramp.divisors(frequencies, scales)
    frequencies = frequencies / scales
    angles = positions[None, :, None] * frequencies[:, None, :]
    return jnp.sin(angles), jnp.cos(angles)


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotary embedding of `[num_tokens, num_heads, head_dim]` in the split-halves layout."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sin, cos = sin[:, None], cos[:, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


_KEPT = "kept"
# What a backward pass may recompute. By default it finds what matrix products made: the rest costs
# less to make again than to write and read.
RECOMPUTED = {
    "none": jax.checkpoint_policies.everything_saveable,
    "elementwise": jax.checkpoint_policies.save_only_these_names(_KEPT),
    "block": jax.checkpoint_policies.nothing_saveable,
}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}
_VOCABULARY_PIECES = 64  # in which a quantised embedding is multiplied
_CACHED = 2048  # tokens whose embeddings and logits stay in the caches of a CPU


def _keep(x: jax.Array) -> jax.Array:
    """Marks a value that the backward pass should find rather than recompute."""
    return checkpoint_name(x, _KEPT)


def by_nodes(x: jax.Array, layout: Layout | None) -> jax.Array:
    """Splits `[num_nodes, embed_dim]` by nodes where the mesh does so."""
    return constrain(x, layout, None if layout is None else layout.node_axes, None)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, cap: float | None
) -> jax.Array:
    """Attention of one block of queries, of the heads that share keys and values.

    Args:
      q: `[block_size, group, head_dim]`, as is the result.
      k, v: `[num_keys, head_dim]`.
      mask: `[block_size, num_keys]` bool.
      cap: of the scores.
    """
    queries = q.reshape(-1, q.shape[-1])
    scores = jnp.einsum("qd,kd->qk", queries, k, preferred_element_type=jnp.float32)
    mask = jnp.repeat(mask, q.shape[1], axis=0)
    scores = jnp.where(mask, soft_cap(scores, cap), -jnp.inf)
    # A softmax whose sums are taken apart: its backward pass needs no more sums over keys.
    peak = _keep(jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    shares = jnp.exp(scores - peak)
    total = _keep(shares.sum(-1, keepdims=True))
    mixed = _keep(shares.astype(v.dtype) @ v)
    return (mixed * (1 / total).astype(v.dtype)).reshape(q.shape)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned scale (stored with its 1 added)."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Block(nnx.Module):
    """One transformer block: attention and a gated MLP, normalised before and perhaps after."""

    def __init__(self, config: DecoderConfig, layout: Layout | None):
        self.config = config
        self.layout = layout
        for name, shape in config.linear_shapes.items():
            setattr(self, name, matrix(config.quantisation, shape))
            if name in config.biases:
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(shape[1])))
        for name, size in config.norm_sizes.items():
            setattr(self, name, RMSNorm(size, config.rms_eps))

    def norm(self, name: str, x: jax.Array) -> jax.Array:
        """Applies a norm if this family has it."""
        return getattr(self, name)(x) if name in self.config.norm_sizes else x

    def linear(self, name: str, inputs: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """A linear layer with its adapter; what `fsdp` has split is gathered for it."""
        reads, writes = ("tensor", None) if name in ("o", "down") else (None, "tensor")
        whole = lambda x, *spec: constrain(x, self.layout, *spec)
        kernel = read_matrix(getattr(self, name), lambda x: whole(x, reads, writes))
        if name in adapter.weights:
            a, b = adapter.weights[name]["a"], adapter.weights[name]["b"]
            # Where the layer is not split by what an adapter matrix touches, its rank is.
            pair = {"a": whole(a, writes, reads), "b": whole(b, reads, writes)}
            adapter = adapter._replace(weights=adapter.weights | {name: pair})
        y = lora_linear(inputs, kernel, name, adapter)
        return _keep(y + getattr(self, f"{name}_bias") if name in self.config.biases else y)

    def project(
        self, x: jax.Array, sin: jax.Array, cos: jax.Array, adapter: LayerAdapter
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scaled queries, keys and values, `[num_tokens, num_heads or num_kv_heads, head_dim]`."""
        config = self.config
        h = self.norm("attention_in", x)
        nodes = None if self.layout is None else self.layout.node_axes

        def heads(name, rows):
            y = self.linear(name, h, adapter).reshape(len(x), -1, config.head_dim)
            return constrain(y, self.layout, rows, "tensor", None)

        q, k, v = heads("q", nodes), heads("k", None), heads("v", None)
        q = rotate(self.norm("q_norm", q), sin, cos) * config.query_scale
        return q, rotate(self.norm("k_norm", k), sin, cos), v

    def attention(
        self, q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """What the heads mix, `[num_tokens, num_heads * head_dim]`.

        Args:
          q, k, v: from `project`.
          keys: `[num_blocks, num_keys]`, the tokens whose keys each block of queries needs.
          mask: `[num_blocks, block_size, num_keys]` bool.
        """
        config = self.config
        nodes = None if self.layout is None else self.layout.node_axes
        split = lambda x: constrain(x, self.layout, nodes, None, "tensor", None)
        if self.layout is not None and self.layout.mesh.shape["tensor"] > 1:
            # Heads are split, and there may be fewer keys than places.
            k, v = (jnp.repeat(x, config.num_heads // config.num_kv_heads, axis=1) for x in (k, v))
        k, v = split(k[keys]), split(v[keys])
        q = q.reshape(*mask.shape[:2], k.shape[2], -1, config.head_dim)
        heads = jax.vmap(partial(attend, cap=config.attention_softcap), (1, 1, 1, None), 1)
        return jax.vmap(heads)(q, k, v, mask).reshape(-1, config.num_heads * config.head_dim)

    def finish(self, x: jax.Array, heads: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """The rest of the block, given the heads' outputs."""
        x = x + self.norm("attention_out", by_nodes(self.linear("o", heads, adapter), self.layout))
        h = self.norm("mlp_in", x)
        gate = ACTIVATIONS[self.config.activation](self.linear("gate", h, adapter))
        h = gate * self.linear("up", h, adapter)
        h = by_nodes(self.linear("down", h, adapter), self.layout)
        return x + self.norm("mlp_out", h)

    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array,
        mask: jax.Array,
        sin: jax.Array,
        cos: jax.Array,
        adapter: LayerAdapter,
    ) -> jax.Array:
        """Maps one sequence's `[num_tokens, embed_dim]` to the same shape."""
        q, k, v = self.project(x, sin, cos, adapter)
        return self.finish(x, self.attention(q, k, v, keys, mask), adapter)


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


class Decoder(nnx.Module):
    """A decoder of text with its blocks stacked on a leading axis."""

    def __init__(self, config: DecoderConfig, layout: Layout | None = None):
        self.config = config
        self.layout = layout
        self.embedding = matrix(config.quantisation, (config.vocab_size, config.embed_dim))
        if not config.tied:
            self.unembedding = matrix(config.quantisation, (config.vocab_size, config.embed_dim))
        self.blocks = nnx.vmap(lambda: Block(config, layout), axis_size=config.num_layers)()
        self.final_norm = RMSNorm(config.embed_dim, config.rms_eps)

    @property
    def head(self) -> nnx.Param | Quantised:
        """The matrix that makes logits, `[vocab_size, embed_dim]`."""
        return self.embedding if self.config.tied else self.unembedding

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings as the first block reads them, `[...]` to `[..., embed_dim]`."""
        x = constrain(self.embedding[tokens], self.layout, *[None] * (tokens.ndim + 1))
        return x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype) if self.config.scaled_embedding else x

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        sight: Sight,
        adapter: LayerAdapter,
        remat: str,
    ) -> jax.Array:
        """Runs the blocks over one packed sequence.

        Args:
          tokens, positions: `[num_nodes]` int32.
          sight: who attends to whom.
          adapter: LoRA weights stacked over layers.
          remat: what the backward pass recomputes, a name in `RECOMPUTED`.

        Returns:
          `[num_nodes, embed_dim]` hidden states after the last norm.
        """
        config = self.config
        chex.assert_equal_shape([tokens, positions])
        sin, cos = rotary_angles(config, positions)
        x = by_nodes(self.embed(tokens), self.layout)
        block_definition, block_weights = nnx.split(self.blocks)

        def body(x, layer):
            weights, adapter, is_global = layer
            block = nnx.merge(block_definition, weights)
            kind = sight.masks[is_global], sin[is_global], cos[is_global]
            return block(x, sight.keys, *kind, adapter), None

        is_global = jnp.array(config.global_layers)
        body = jax.checkpoint(body, policy=RECOMPUTED[remat], prevent_cse=False)
        x, _ = jax.lax.scan(body, x, (block_weights, adapter, is_global.astype(jnp.int32)))
        return self.final_norm(x)

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

    def log_sum_exp(self, hidden: jax.Array, excluded: jax.Array, max_logits: int) -> jax.Array:
        """The log of the summed exponentials of all next-token logits but some.

        Args:
          hidden: `[num_rows, num_places, embed_dim]`.
          excluded: `[num_places, vocab_size]` bool, what is left out in each place.
          max_logits: how many are made at once.

        Returns:
          `[num_rows, num_places]` float32.
        """
        rows = hidden.shape[0] * hidden.shape[1]
        read, vocabulary = self._vocabulary(excluded, rows, max_logits)
        return log_sum_exp(read, self.config.final_softcap, vocabulary, hidden)

    def divergence(self, pair: jax.Array, max_logits: int) -> Divergence:
        """Compares two next-token distributions, `[num_rows, 2, embed_dim]` hidden states."""
        nothing = jnp.zeros((1, self.config.vocab_size), bool)
        read, vocabulary = self._vocabulary(nothing, 2 * len(pair), max_logits)
        return divergence(read, self.config.final_softcap, vocabulary.table, pair)

    def _vocabulary(
        self, excluded: jax.Array, num_rows: int, max_logits: int
    ) -> tuple[Callable[[Any], jax.Array], Vocabulary]:
        """The head in pieces of which so many rows' logits fit, and how a piece is read."""
        layout = self.layout
        at_once = tokens_at_once(self.config, layout, num_rows, max_logits)
        quantised = isinstance(self.head, Quantised)
        splits = 1 if layout is None else math.gcd(layout.mesh.shape["tensor"], excluded.shape[1])
        stored = self.head
        leaves = (stored.codes[...], stored.scales[...]) if quantised else (stored[...],)
        whole = tuple(constrain(leaf, layout, "tensor", None) for leaf in leaves)
        read = (lambda leaves: dequantise(*leaves)) if quantised else (lambda leaves: leaves[0])
        return read, cut(whole, excluded, at_once, splits)

    @staticmethod
    def abstract(
        config: DecoderConfig, layout: Layout | None = None
    ) -> tuple[nnx.GraphDef, nnx.State]:
        """The module's definition and the shapes of its weights, without allocating any."""
        return nnx.split(nnx.eval_shape(lambda: Decoder(config, layout)))
