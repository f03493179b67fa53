"""How much memory a model takes, computed from shapes without allocating anything."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.lora import Lora, init_adapter
from jaxmoral.gemma.model import Gemma


def num_parameters(config: GemmaConfig) -> int:
    """Parameters of the frozen base."""
    config = dataclasses.replace(config, quantisation=None)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(Gemma.abstract(config)[1]))


def weight_bytes(config: GemmaConfig, itemsize: int) -> int:
    """What the frozen base takes; floating-point weights have `itemsize` bytes."""
    leaves = jax.tree.leaves(Gemma.abstract(config)[1])
    integer = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.integer)
    return sum(math.prod(leaf.shape) * (1 if integer(leaf) else itemsize) for leaf in leaves)


def num_adapter_parameters(config: GemmaConfig, lora: Lora) -> int:
    """Parameters of an adapter."""
    adapter = jax.eval_shape(lambda key: init_adapter(key, config, lora), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(adapter))


def activation_bytes(
    config: GemmaConfig, num_nodes: int, num_logits: int, itemsize: int, remat: str
) -> int:
    """What one update keeps for its backward pass.

    Of each token and layer: what the linear layers and the heads made and the block's input, or
    if blocks are recomputed the input alone; and three float32 copies of the logits that are made
    at once (they, what is left of them, their exponentials).

    Args:
      config: of the base.
      num_nodes: of the packed prompt tree.
      num_logits: how many are made at once.
      itemsize: bytes of an activation.
      remat: see `ModelConfig.remat`.
    """
    kept = config.embed_dim
    if remat != "block":
        queries = config.num_heads * config.head_dim
        kept += sum(outputs for _, outputs in config.linear_shapes.values()) + queries
    return num_nodes * config.num_layers * kept * itemsize + 3 * 4 * num_logits
