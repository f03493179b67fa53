"""How much memory a model takes, computed from shapes without allocating anything."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.lora import Lora, init_adapter
from jaxmoral.models.model import Decoder


def num_parameters(config: DecoderConfig) -> int:
    """Parameters of the frozen base, those that are only looked up included."""
    config = dataclasses.replace(config, quantisation=None)
    table = config.vocab_size * config.num_layers * config.per_layer_dim
    leaves = jax.tree.leaves(Decoder.abstract(config)[1])
    return table + sum(math.prod(leaf.shape) for leaf in leaves)


def weight_bytes(config: DecoderConfig, itemsize: int) -> int:
    """What the frozen base takes; floating-point weights have `itemsize` bytes.

    What is only looked up takes nothing: it stays on the disk.
    """
    leaves = jax.tree.leaves(Decoder.abstract(config)[1])
    integer = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.integer)
    return sum(math.prod(leaf.shape) * (1 if integer(leaf) else itemsize) for leaf in leaves)


def products(config: DecoderConfig, nodes: float, rows: float) -> tuple[float, float]:
    """About how many products so many tree nodes take in the layers, and so many rows of logits."""
    layers = sum(inputs * outputs for inputs, outputs in config.every_linear)
    return nodes * layers, rows * config.vocab_size * config.embed_dim


def num_adapter_parameters(config: DecoderConfig, lora: Lora) -> int:
    """Parameters of an adapter."""
    adapter = jax.eval_shape(lambda key: init_adapter(key, config, lora), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(adapter))


def adapter_bytes(config: DecoderConfig, lora: Lora, repeated: bool) -> tuple[int, int]:
    """What a trained adapter takes: kept between updates, and besides in an update.

    Kept are its float32 parameters and two moments of Adam. An update makes the gradient and the
    scaled half of `lora.prepare`, and keeps one more gradient or parameters where it goes through
    the model more than once.

    Args:
      config, lora: of the adapter.
      repeated: whether an update has several trees or gradient steps.
    """
    adapter = num_adapter_parameters(config, lora)
    scaled = lora.rank * sum(
        len(stack.layers) * outputs
        for stack in config.stacks.values()
        for name, (_, outputs) in stack.linear_shapes.items()
        if name in lora.targets
    )
    return 12 * adapter, 4 * ((2 if repeated else 1) * adapter + scaled)


def activation_bytes(
    config: DecoderConfig,
    lora: Lora,
    tree: tuple[int, int],
    num_logits: int,
    itemsize: int,
    remat: str,
) -> int:
    """What one update keeps for its backward pass, and works with in one layer.

    Kept of each token and layer: the block's input alone if blocks are recomputed; else also what
    the linear layers and the heads made; and if nothing is recomputed about three times that, the
    adapters' and experts' inner numbers and the attention's scores included. A layer's backward
    pass works with these twice, with what the block makes four times if it makes it again. Then
    there are three float32 copies of the logits that are made at once (they, what is left of them,
    their exponentials).

    Args:
      config, lora: of the model.
      tree: how many nodes a packed prompt tree has, and how many keys each looks at.
      num_logits: how many are made at once.
      itemsize: bytes of an activation.
      remat: see `ModelConfig.remat`.
    """
    num_nodes, num_keys = tree
    kept, working = 0, 0
    each: dict[str, int] = {}
    for at, stack in config.stacks.items():
        made = config.embed_dim + config.num_heads * stack.head_dim
        made += sum(outputs for _, outputs in stack.linear_shapes.values())
        adapted = [name for name in lora.targets if name in stack.linear_shapes]
        inner = lora.rank * len(adapted) + config.num_heads * num_keys
        inner += config.experts_per_token * (3 * config.expert_dim + config.embed_dim)
        keeps = {"none": 3 * (made + inner), "elementwise": made, "block": config.embed_dim}
        work = {"none": 0, "elementwise": 2 * (made + inner), "block": 4 * made + 2 * inner}[remat]
        each[at] = keeps[remat]
        kept, working = kept + len(stack.layers) * each[at], max(working, work)
    if remat != "none":  # what a period keeps is first put together, where there are several
        several = (section.runs for section in config.sections if section.periods > 1)
        working += max((sum(each[at] * n for at, n in runs) for runs in several), default=0)
    beside = 2 * config.num_layers * config.per_layer_dim  # looked up, and made of it
    return num_nodes * (kept + working + beside) * itemsize + 3 * 4 * num_logits
