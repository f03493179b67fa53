"""Batched text generation with a cache of keys and values, scanned over tokens and layers.

Prompts of different lengths are padded on the left, so that all of them end at the same place; a
token's position counts from its prompt's own beginning.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.lora import Adapter, LayerAdapter, Lora, prepare
from jaxmoral.models.model import Decoder, rotary_angles
from jaxmoral.models.vocabulary import soft_cap


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the most likely token, 1 samples the model's own distribution.
      top_k: keep only that many most likely tokens; 0 keeps all.
      top_p: keep the fewest most likely tokens whose probabilities reach it; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Cache(NamedTuple):
    """Keys and values, `[num_layers, batch, length, num_kv_heads, head_dim]` each."""

    keys: jax.Array
    values: jax.Array


def choose(key: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token of each row, `[batch, vocab_size]` to `[batch]` int32."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ranked = jnp.sort(logits, axis=-1)[:, ::-1]
        probs = jax.nn.softmax(ranked, axis=-1)
        kept = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p
        least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _prefill(
    model: Decoder, tokens: jax.Array, padding: jax.Array, adapter: LayerAdapter, length: int
) -> tuple[jax.Array, Cache]:
    """Logits after each prompt `[batch, vocab_size]`, and a cache with room for `length` tokens."""
    config = model.config
    batch, size = tokens.shape
    place = jnp.arange(size)
    positions = jnp.maximum(place - padding[:, None], 0).reshape(-1)
    sin, cos = rotary_angles(config, positions)
    seen = (place[None, :] <= place[:, None]) & (place >= padding[:, None])[:, None]
    seen |= jnp.eye(size, dtype=bool)  # padding attends to itself, so that nothing is undefined
    near = seen & (place[:, None] - place[None, :] < config.sliding_window)
    masks = jnp.stack([near, seen])
    keys = jnp.arange(batch * size).reshape(batch, size)  # a sequence is a block
    definition, weights = nnx.split(model.blocks)

    def body(x, layer):
        weights, adapter, is_global = layer
        block = nnx.merge(definition, weights)
        q, k, v = block.project(x, sin[is_global], cos[is_global], adapter)
        split = lambda y: y.reshape(batch, size, *y.shape[1:])
        heads = block.attention(q, k, v, keys, masks[is_global])
        return block.finish(x, heads, adapter), (split(k), split(v))

    layers = (weights, adapter, jnp.array(config.global_layers, jnp.int32))
    x, (keys, values) = jax.lax.scan(body, model.embed(tokens.reshape(-1)), layers)
    last = model.final_norm(x).reshape(batch, size, -1)[:, -1]
    room = ((0, 0), (0, 0), (0, length - size), (0, 0), (0, 0))
    return model.logits(last), Cache(jnp.pad(keys, room), jnp.pad(values, room))


def _decode(
    model: Decoder,
    token: jax.Array,
    place: jax.Array,
    padding: jax.Array,
    adapter: LayerAdapter,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Logits after one more token per row, `[batch]` to `[batch, vocab_size]`."""
    config = model.config
    batch, length = len(token), cache.keys.shape[2]
    sin, cos = rotary_angles(config, place - padding)
    key_place = jnp.arange(length)
    seen = (key_place <= place) & (key_place >= padding[:, None])
    masks = jnp.stack([seen & (place - key_place < config.sliding_window), seen])
    definition, weights = nnx.split(model.blocks)

    def body(carry, layer):
        x, cache = carry
        weights, adapter, is_global, index = layer
        block = nnx.merge(definition, weights)
        q, k, v = block.project(x, sin[is_global], cos[is_global], adapter)
        at = (index, 0, place, 0, 0)
        cache = Cache(
            jax.lax.dynamic_update_slice(cache.keys, k[None, :, None], at),
            jax.lax.dynamic_update_slice(cache.values, v[None, :, None], at),
        )
        q = q.reshape(batch, config.num_kv_heads, -1, config.head_dim)
        scores = jnp.einsum(
            "bkgd,bskd->bkgs", q, cache.keys[index], preferred_element_type=jnp.float32
        )
        scores = soft_cap(scores, config.attention_softcap)
        scores = jnp.where(masks[is_global][:, None, None], scores, -jnp.inf)
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        heads = jnp.einsum("bkgs,bskd->bkgd", shares, cache.values[index])
        return (block.finish(x, heads.reshape(batch, -1), adapter), cache), None

    is_global = jnp.array(config.global_layers, jnp.int32)
    layers = (weights, adapter, is_global, jnp.arange(config.num_layers))
    (x, cache), _ = jax.lax.scan(body, (model.embed(token), cache), layers)
    return model.logits(model.final_norm(x)), cache


@partial(jax.jit, static_argnames=("definition", "config", "lora", "sampling", "num_tokens"))
def _generate(
    weights: nnx.State,
    adapter: Adapter,
    tokens: jax.Array,
    padding: jax.Array,
    stops: jax.Array,
    key: jax.Array,
    definition: nnx.GraphDef,
    config: DecoderConfig,
    lora: Lora,
    sampling: Sampling,
    num_tokens: int,
) -> jax.Array:
    model = nnx.merge(definition, weights)
    layers = prepare(adapter, config, lora, None)
    size = tokens.shape[1]
    logits, cache = _prefill(model, tokens, padding, layers, size + num_tokens)

    def step(carry, xs):
        logits, cache, done = carry
        key, place = xs
        token = jnp.where(done, stops[0], choose(key, logits, sampling))
        done |= jnp.isin(token, stops)
        logits, cache = _decode(model, token, place, padding, layers, cache)
        return (logits, cache, done), token

    keys = jax.random.split(key, num_tokens)
    done = jnp.zeros(len(tokens), bool)
    xs = (keys, size + jnp.arange(num_tokens))
    return jax.lax.scan(step, (logits, cache, done), xs)[1].T


def generate(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    key: jax.Array,
    sampling: Sampling,
    adapter: Adapter | None = None,
    lora: Lora | None = None,
) -> list[list[int]]:
    """Continues token sequences.

    Args:
      model: a loaded model.
      prompts: token ids, none empty; lengths may differ.
      num_tokens: the most tokens a continuation has.
      key: PRNG key.
      sampling: how tokens are chosen.
      adapter, lora: an adapter and its settings, or neither.

    Returns:
      Each prompt's continuation up to (not including) its first stop token.
    """
    size = max(map(len, prompts))
    padding = np.array([size - len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), size), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[size - len(prompt) :] = prompt
    stops = model.stop_tokens()
    made = _generate(
        model.weights,
        adapter or {},
        tokens,
        padding,
        np.array(stops, np.int32),
        key,
        definition=model.definition,
        config=model.config,
        lora=lora or Lora(1, 1.0, 0.0, ()),
        sampling=sampling,
        num_tokens=num_tokens,
    )
    found = []
    for row in np.asarray(made).tolist():
        ends = [index for index, token in enumerate(row) if token in stops]
        found.append(row[: ends[0]] if ends else row)
    return found
