"""Low-rank adapters as an explicit pytree, one pair of matrices per adapted linear layer.

`W x + (alpha / rank) B A x` with A random and B zero at the start (Hu et al., arXiv 2106.09685), so
a fresh adapter changes nothing.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmoral.models.config import DecoderConfig

Adapter = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which linear layers are adapted, and how.

    Attributes:
      rank: inner size.
      alpha: the update is scaled by alpha / rank.
      dropout: probability of zeroing an input of A while training.
      targets: names in `DecoderConfig.linear_shapes`.
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


class LayerAdapter(NamedTuple):
    """What `lora_linear` needs besides the frozen weights; stacked over layers outside the scan.

    Attributes:
      weights: `{target: {"a": [rank, inputs], "b": [rank, outputs]}}`, the scaling folded in.
      dropout_key: a PRNG key, or None to keep every input.
      keep: `[]` probability of keeping an input; unused without a key.
    """

    weights: Adapter
    dropout_key: jax.Array | None
    keep: jax.Array


def init_adapter(key: jax.Array, config: DecoderConfig, lora: Lora) -> Adapter:
    """A fresh adapter: `{target: {"a": [layers, rank, inputs], "b": [layers, rank, outputs]}}`."""
    adapter = {}
    for index, name in enumerate(lora.targets):
        inputs, outputs = config.linear_shapes[name]
        a = jax.random.normal(
            jax.random.fold_in(key, index), (config.num_layers, lora.rank, inputs)
        )
        b = jnp.zeros((config.num_layers, lora.rank, outputs))
        adapter[name] = {"a": a * inputs**-0.5, "b": b}
    return adapter


def prepare(
    adapter: Adapter, config: DecoderConfig, lora: Lora, dropout_key: jax.Array | None
) -> LayerAdapter:
    """Folds the scaling in and gives each layer its dropout key."""
    scaled = {name: {"a": pair["a"], "b": pair["b"] * lora.scale} for name, pair in adapter.items()}
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)
    return LayerAdapter(scaled, keys, jnp.full(config.num_layers, 1.0 - lora.dropout))


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
