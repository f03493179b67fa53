"""Low-rank adapters as an explicit pytree, one pair of matrices per adapted linear layer.

`W x + (alpha / rank) B A x` with A random and B zero at the start (Hu et al., arXiv 2106.09685), so
a fresh adapter changes nothing.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.layers import Stack

Pairs = dict[str, dict[str, jax.Array]]  # of one stack of layers
Adapter = Any  # the pairs of the only stack, or of each stack by its name


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which linear layers are adapted, and how.

    Attributes:
      rank: inner size.
      alpha: the update is scaled by alpha / rank.
      dropout: probability of zeroing an input of A while training.
      targets: names in `DecoderConfig.linear_names`.
      rank_stabilised: the update is scaled by alpha / sqrt(rank) instead (arXiv 2312.03732).
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


NO_LORA = Lora(1, 1.0, 0.0, ())  # of a model that is used as it is


class LayerAdapter(NamedTuple):
    """What `lora_linear` needs besides the frozen weights; stacked over layers outside the scan.

    Attributes:
      weights: `{target: {"a": [rank, inputs], "b": [rank, outputs]}}`, the scaling folded in.
      dropout_key: a PRNG key, or None to keep every input.
      keep: `[]` probability of keeping an input; unused without a key.
    """

    weights: Pairs
    dropout_key: jax.Array | None
    keep: jax.Array


def by_stack(tree: Any, config: DecoderConfig) -> dict[str, Any]:
    """What a tree of adapters or blocks holds of each stack."""
    return (
        {"": tree} if "" in config.stacks else {name: tree.get(name, {}) for name in config.stacks}
    )


def of_stacks(parts: dict[str, Any]) -> Any:
    """The inverse of `by_stack`; stacks of which there is nothing are left out."""
    return parts[""] if "" in parts else {name: part for name, part in parts.items() if part}


def init_adapter(key: jax.Array, config: DecoderConfig, lora: Lora) -> Adapter:
    """A fresh adapter: `{target: {"a": [layers, rank, inputs], "b": [layers, rank, outputs]}}`.

    Where layers differ in shape, that of each stack by its name.
    """
    parts = {}
    for name, stack in config.stacks.items():
        key_of_stack = key if name == "" else jax.random.fold_in(key, stack.layers[0])
        parts[name] = {
            target: _fresh(jax.random.fold_in(key_of_stack, index), stack, lora.rank, target)
            for index, target in enumerate(lora.targets)
            if target in stack.linear_shapes
        }
    return of_stacks(parts)


def _fresh(key: jax.Array, stack: Stack, rank: int, target: str) -> dict[str, jax.Array]:
    inputs, outputs = stack.linear_shapes[target]
    a = jax.random.normal(key, (len(stack.layers), rank, inputs))
    return {"a": a * inputs**-0.5, "b": jnp.zeros((len(stack.layers), rank, outputs))}


def prepare(
    adapter: Adapter, config: DecoderConfig, lora: Lora, dropout_key: jax.Array | None
) -> dict[str, LayerAdapter]:
    """Folds the scaling in and gives each layer its dropout key; an adapter for each stack."""
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)
    prepared = {}
    for name, pairs in by_stack(adapter, config).items():
        layers = config.stacks[name].layers
        prepared[name] = LayerAdapter(
            {
                target: {"a": pair["a"], "b": pair["b"] * lora.scale}
                for target, pair in pairs.items()
            },
            keys if keys is None or name == "" else keys[np.array(layers)],
            jnp.full(len(layers), 1.0 - lora.dropout),
        )
    return prepared


def lora_linear(x: jax.Array, kernel: jax.Array, name: str, adapter: LayerAdapter) -> jax.Array:
    """`x @ kernel` plus the adapter's low-rank part, `[num_tokens, inputs]` to `[.., outputs]`."""
    y = x @ kernel
    if name not in adapter.weights:
        return y
    pair = adapter.weights[name]
    inputs = x
    if adapter.dropout_key is not None:
        key = jax.random.fold_in(adapter.dropout_key, sorted(adapter.weights).index(name))
        kept = jax.random.bernoulli(key, adapter.keep, x.shape)
        inputs = jnp.where(kept, x / adapter.keep.astype(x.dtype), 0)
    return y + (inputs @ pair["a"].astype(x.dtype).T) @ pair["b"].astype(x.dtype)
