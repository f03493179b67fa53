"""A decoder's block, driven by its configuration: attention, MLP, experts, and their norms.

Normalisation, softmax and rotary angles are computed in float32 whatever the weights' dtype is.
"""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxmoral.devices.mesh import Layout, constrain
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.experts import choose, mix
from jaxmoral.models.layers import Stack
from jaxmoral.models.lora import LayerAdapter, lora_linear
from jaxmoral.models.quantise import matrix, read_matrix
from jaxmoral.models.vocabulary import soft_cap


def rotary_angles(
    config: DecoderConfig, positions: chex.Array, head_dim: int
) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine, `[2 (sliding, global), num_tokens, head_dim / 2]` float32 each."""
    half = head_dim // 2
    bases = jnp.array([config.rope_base_local, config.rope_base_global])
    scales = jnp.array([config.rope_scale_local, config.rope_scale])
    frequencies = bases[:, None] ** (-jnp.arange(half) / half)
    scales = scales[:, None]
    if config.rope_ramp is not None:
        scales = config.rope_ramp.divisors(frequencies, scales)
    frequencies = frequencies / scales
    if config.rope_share < 1:
        turning = np.array([[half], [int(config.rope_share * head_dim // 2)]])
        frequencies = jnp.where(np.arange(half) < turning, frequencies, 0)
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
_NARROWS = ("o", "down", "layer_out")  # linear layers whose inputs a mesh splits


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


def normalise(x: jax.Array, eps: float) -> jax.Array:
    """x over the root of its mean square, `[..., size]` in float32."""
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned scale (stored with its 1 added)."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = normalise(x, self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Block(nnx.Module):
    """One transformer block: attention and a gated MLP, normalised before and perhaps after."""

    def __init__(self, config: DecoderConfig, stack: str, layout: Layout | None):
        self.config = config
        self.stack_name = stack
        self.layout = layout
        for name, shape in (self.stack.linear_shapes | self.stack.expert_shapes).items():
            setattr(self, name, matrix(config.quantisation, shape))
        for name, size in self.stack.vector_sizes.items():
            setattr(self, name, nnx.Param(jnp.zeros(size)))
        for name, size in self.stack.norm_sizes.items():
            setattr(self, name, RMSNorm(size, config.rms_eps))

    @property
    def stack(self) -> Stack:
        return self.config.stacks[self.stack_name]

    def norm(self, name: str, x: jax.Array) -> jax.Array:
        """Applies a norm if this family has it."""
        return getattr(self, name)(x) if name in self.stack.norm_sizes else x

    def linear(self, name: str, inputs: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """A linear layer with its adapter; what `fsdp` has split is gathered for it."""
        reads, writes = ("tensor", None) if name in _NARROWS else (None, "tensor")
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
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Scaled queries; and keys and values, if this layer makes its own.

        All are `[num_tokens, num_heads or num_kv_heads, head_dim]`.
        """
        config, stack = self.config, self.stack
        h = self.norm("attention_in", x)
        nodes = None if self.layout is None else self.layout.node_axes

        def heads(name, rows):
            y = self.linear(name, h, adapter).reshape(len(x), -1, stack.head_dim)
            return constrain(y, self.layout, rows, "tensor", None)

        q = heads("q", nodes)
        if not stack.own_keys:
            return rotate(self.norm("q_norm", q), sin, cos) * config.query_scale, None
        k = heads("k", None)
        v = heads("v", None) if "v" in stack.linear_shapes else k
        if config.value_norm:
            v = normalise(v, config.rms_eps).astype(v.dtype)
        q = rotate(self.norm("q_norm", q), sin, cos) * config.query_scale
        return q, (rotate(self.norm("k_norm", k), sin, cos), v)

    def attention(
        self, q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """What the heads mix, `[num_tokens, num_heads * head_dim]`.

        Args:
          q, k, v: from `project`; k and v may be another layer's.
          keys: `[num_blocks, num_keys]`, the tokens whose keys each block of queries needs.
          mask: `[num_blocks, block_size, num_keys]` bool.
        """
        config, stack = self.config, self.stack
        nodes = None if self.layout is None else self.layout.node_axes
        split = lambda x: constrain(x, self.layout, nodes, None, "tensor", None)
        if self.layout is not None and self.layout.mesh.shape["tensor"] > 1:
            # Heads are split, and there may be fewer keys than places.
            k, v = (jnp.repeat(x, config.num_heads // stack.num_kv_heads, axis=1) for x in (k, v))
        k, v = split(k[keys]), split(v[keys])
        q = q.reshape(*mask.shape[:2], k.shape[2], -1, stack.head_dim)
        heads = jax.vmap(partial(attend, cap=config.attention_softcap), (1, 1, 1, None), 1)
        return jax.vmap(heads)(q, k, v, mask).reshape(-1, config.num_heads * stack.head_dim)

    def finish(
        self, x: jax.Array, heads: jax.Array, adapter: LayerAdapter, beside: jax.Array | None
    ) -> jax.Array:
        """The rest of the block, given the heads' outputs and what it reads beside the stream."""
        config = self.config
        x = x + self.norm("attention_out", by_nodes(self.linear("o", heads, adapter), self.layout))
        h = self.gated(self.norm("mlp_in", x), adapter)
        if config.num_experts:
            h = self.norm("dense_out", h) + self.norm("experts_out", self.mixture(x, adapter))
        x = x + self.norm("mlp_out", h)
        if beside is not None:
            h = self.activate(self.linear("layer_gate", x, adapter)) * beside
            h = by_nodes(self.linear("layer_out", h, adapter), self.layout)
            x = x + self.norm("layer_norm", h)
        return x * self.vector("layer_scalar", x.dtype) if config.layer_scalars else x

    def vector(self, name: str, dtype: jnp.dtype) -> jax.Array:
        """A bias or scale."""
        return getattr(self, name)[...].astype(dtype)

    def activate(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.config.activation](x)

    def gated(self, h: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """The MLP."""
        gate = self.activate(self.linear("gate", h, adapter))
        h = gate * self.linear("up", h, adapter)
        return by_nodes(self.linear("down", h, adapter), self.layout)

    def mixture(self, x: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """What the experts that a router chooses for each token say together."""
        h = self.norm("router_in", x) * jnp.asarray(x.shape[-1] ** -0.5, x.dtype)
        scores = self.linear("router", h, adapter)
        chosen, shares = choose(scores, self.config.experts_per_token)
        shares = shares * self.vector("expert_scale", shares.dtype)[chosen]
        whole = lambda matrix: constrain(matrix, self.layout, None, None, None)
        expand, shrink = (read_matrix(getattr(self, name), whole) for name in ("expand", "shrink"))
        h = self.norm("experts_in", x)
        return by_nodes(mix(h, chosen, shares, (expand, shrink), self.activate), self.layout)
