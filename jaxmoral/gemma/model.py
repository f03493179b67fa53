"""Gemma 1, 2 and 3 as one Flax NNX module, its blocks scanned and LoRA passed in explicitly.

The module is built abstractly and split once (`Gemma.abstract`) and its weights come from a file;
from then on everything is a function of parameter pytrees. Normalisation, softmax and rotary angles
are computed in float32 whatever the weights' dtype is.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.lora import LayerAdapter, lora_linear
from jaxmoral.gemma.quantise import Quantised, matrix


def rotary_angles(config: GemmaConfig, positions: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine, `[2 (sliding, global), num_tokens, head_dim / 2]` float32 each."""
    half = config.head_dim // 2
    bases = jnp.array([config.rope_base_local, config.rope_base_global])
    scales = jnp.array([1.0, config.rope_scale])
    frequencies = bases[:, None] ** (-jnp.arange(half) / half) / scales[:, None]
    angles = positions[None, :, None] * frequencies[:, None, :]
    return jnp.sin(angles), jnp.cos(angles)


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotary embedding of `[num_tokens, num_heads, head_dim]` in the split-halves layout."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sin, cos = sin[:, None], cos[:, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


_KEPT = "kept"
_VOCABULARY_PIECES = 64  # in which a quantised embedding is multiplied
_QUERY_BLOCK = 256  # queries whose scores against all keys are computed at once


def _keep(x: jax.Array) -> jax.Array:
    """Marks a value that the backward pass should find rather than recompute."""
    return checkpoint_name(x, _KEPT)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Bounds x smoothly to (-cap, cap); does nothing without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, cap: float | None
) -> jax.Array:
    """Attention of one head: `q`, `k`, `v` are `[num_tokens, head_dim]`.

    Head by head and in blocks of queries: plain matrix products whose scores fit a cache, and no
    work on keys that come after a block, which nobody attends to (parents precede children).
    """
    outputs = []
    for rows in np.array_split(np.arange(len(q)), -(-len(q) // _QUERY_BLOCK)):
        start, stop = int(rows[0]), int(rows[-1]) + 1
        scores = jnp.matmul(q[start:stop], k[:stop].T, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[start:stop, :stop], soft_cap(scores, cap), -jnp.inf)
        outputs.append(jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v[:stop])
    return jnp.concatenate(outputs)


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

    def __init__(self, config: GemmaConfig):
        self.config = config
        for name, shape in config.linear_shapes.items():
            setattr(self, name, matrix(config.quantisation, shape))
        for name, size in config.norm_sizes.items():
            setattr(self, name, RMSNorm(size, config.rms_eps))

    def norm(self, name: str, x: jax.Array) -> jax.Array:
        """Applies a norm if this family has it."""
        return getattr(self, name)(x) if name in self.config.norm_sizes else x

    def linear(self, name: str, inputs: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """A linear layer with its adapter."""
        return _keep(lora_linear(inputs, getattr(self, name)[...], name, adapter))

    def project(
        self, x: jax.Array, sin: jax.Array, cos: jax.Array, adapter: LayerAdapter
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scaled queries, keys and values, `[num_tokens, num_heads or num_kv_heads, head_dim]`."""
        config = self.config
        h = self.norm("attention_in", x)
        shape = (len(x), -1, config.head_dim)
        q, k, v = (self.linear(name, h, adapter).reshape(shape) for name in ("q", "k", "v"))
        q = rotate(self.norm("q_norm", q), sin, cos) * config.query_scale
        return q, rotate(self.norm("k_norm", k), sin, cos), v

    def attention(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        """All heads of one sequence side by side, `[num_tokens, num_heads * head_dim]`."""
        config = self.config
        group = config.num_heads // config.num_kv_heads
        cap = config.attention_softcap
        heads = [
            attend(q[:, head], k[:, head // group], v[:, head // group], mask, cap)
            for head in range(config.num_heads)
        ]
        return jnp.concatenate(heads, axis=-1)

    def finish(self, x: jax.Array, heads: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """The rest of the block, given the heads' outputs."""
        x = x + self.norm("attention_out", self.linear("o", heads, adapter))
        h = self.norm("mlp_in", x)
        gate = jax.nn.gelu(self.linear("gate", h, adapter), approximate=True)
        h = gate * self.linear("up", h, adapter)
        return x + self.norm("mlp_out", self.linear("down", h, adapter))

    def __call__(
        self, x: jax.Array, mask: jax.Array, sin: jax.Array, cos: jax.Array, adapter: LayerAdapter
    ) -> jax.Array:
        """Maps one sequence's `[num_tokens, embed_dim]` to the same shape."""
        q, k, v = self.project(x, sin, cos, adapter)
        return self.finish(x, _keep(self.attention(q, k, v, mask)), adapter)


class Gemma(nnx.Module):
    """A Gemma text model with tied embeddings and its blocks stacked on a leading axis."""

    def __init__(self, config: GemmaConfig):
        self.config = config
        self.embedding = matrix(config.quantisation, (config.vocab_size, config.embed_dim))
        self.blocks = nnx.vmap(lambda: Block(config), axis_size=config.num_layers)()
        self.final_norm = RMSNorm(config.embed_dim, config.rms_eps)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Scaled embeddings, `[...]` to `[..., embed_dim]`."""
        x = self.embedding[tokens]
        return x * jnp.asarray(self.config.embed_dim**0.5, x.dtype)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: tuple[jax.Array, jax.Array],
        adapter: LayerAdapter,
        remat: bool,
    ) -> jax.Array:
        """Runs the blocks over one packed sequence.

        Args:
          tokens, positions: `[num_nodes]` int32.
          mask: who attends to whom in sliding-window and in global layers, `[num_nodes,
            num_nodes]` bool each.
          adapter: LoRA weights stacked over layers.
          remat: whether the backward pass recomputes each block instead of keeping its
            activations.

        Returns:
          `[num_nodes, embed_dim]` hidden states after the last norm.
        """
        config = self.config
        chex.assert_equal_shape([tokens, positions])
        sin, cos = rotary_angles(config, positions)
        masks = jnp.stack(mask)
        x = self.embed(tokens)
        block_definition, block_weights = nnx.split(self.blocks)

        def body(x, layer):
            weights, adapter, is_global = layer
            block = nnx.merge(block_definition, weights)
            return block(x, masks[is_global], sin[is_global], cos[is_global], adapter), None

        is_global = jnp.array(config.global_layers)
        # For the backward pass only what matrix products made is worth its memory traffic.
        keep = (
            jax.checkpoint_policies.nothing_saveable
            if remat
            else (jax.checkpoint_policies.save_only_these_names(_KEPT))
        )
        body = jax.checkpoint(body, policy=keep, prevent_cse=False)
        x, _ = jax.lax.scan(body, x, (block_weights, adapter, is_global.astype(jnp.int32)))
        return self.final_norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, `[..., embed_dim]` to `[..., vocab_size]` float32."""

        def against(rows):
            table = self.embedding[rows]
            return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

        if isinstance(self.embedding, Quantised):  # never dequantised as a whole
            pieces = jnp.arange(self.config.vocab_size)
            pieces = pieces.reshape(math.gcd(self.config.vocab_size, _VOCABULARY_PIECES), -1)
            logits = jax.lax.map(jax.checkpoint(against), pieces)
            logits = jnp.moveaxis(logits, 0, -2).reshape(*hidden.shape[:-1], -1)
        else:
            logits = against(...)
        return soft_cap(logits, self.config.final_softcap)

    @staticmethod
    def abstract(config: GemmaConfig) -> tuple[nnx.GraphDef, nnx.State]:
        """The module's definition and the shapes of its weights, without allocating any."""
        return nnx.split(nnx.eval_shape(lambda: Gemma(config)))
