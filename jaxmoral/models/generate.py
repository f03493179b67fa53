"""Batched text generation with a cache of keys and values, scanned over tokens and layers.

Prompts of different lengths are padded on the left, so that all of them end at the same place; a
token's position counts from its prompt's own beginning.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral.language.prompt_tree import Sight
from jaxmoral.models.block import rotary_angles
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.layers import keys_from
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.lora import NO_LORA, Adapter, LayerAdapter, Lora, prepare
from jaxmoral.models.model import Decoder
from jaxmoral.models.rows import RowTable
from jaxmoral.models.vocabulary import soft_cap
from jaxmoral.models.walk import walk


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the most likely token, 1 samples the model's own distribution.
      top_p: keep the fewest most likely tokens whose probabilities reach it; 1 keeps all.
    """

    temperature: float = 1.0
    top_p: float = 1.0


class Cache(NamedTuple):
    """Keys and values of one stack, `[layers, batch, length, num_kv_heads, head_dim]` each."""

    keys: jax.Array
    values: jax.Array


Caches = dict[str, Cache]  # of each stack of layers that make keys and values


def choose(key: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token of each row, `[batch, vocab_size]` to `[batch]` int32."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        ranked = jnp.sort(logits, axis=-1)[:, ::-1]
        probs = jax.nn.softmax(ranked, axis=-1)
        kept = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p
        least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _prefill(
    model: Decoder,
    tokens: jax.Array,
    padding: jax.Array,
    adapter: dict[str, LayerAdapter],
    length: int,
    beside: RowTable | None = None,
) -> tuple[jax.Array, Caches]:
    """Logits after each prompt `[batch, vocab_size]`, and a cache with room for `length` tokens."""
    config = model.config
    batch, size = tokens.shape
    place = jnp.arange(size)
    positions = jnp.maximum(place - padding[:, None], 0).reshape(-1)
    seen = (place[None, :] <= place[:, None]) & (place >= padding[:, None])[:, None]
    seen |= jnp.eye(size, dtype=bool)  # padding attends to itself, so that nothing is undefined
    near = seen & (place[:, None] - place[None, :] < config.sliding_window)
    keys = jnp.arange(batch * size).reshape(batch, size)  # a sequence is a block
    sight, flat = Sight(keys, jnp.stack([near, seen])), tokens.reshape(-1)
    rows = None if beside is None else beside(flat)
    hidden, made = model.read(flat, positions, sight, adapter, "none", rows, keep=True)
    room = ((0, 0), (0, 0), (0, length - size), (0, 0), (0, 0))
    cached = lambda kept: jnp.pad(kept.reshape(len(kept), batch, size, *kept.shape[2:]), room)
    caches = {name: Cache(*map(cached, pair)) for name, pair in made.items() if pair is not None}
    return model.logits(hidden.reshape(batch, size, -1)[:, -1]), caches


def _decode(
    model: Decoder,
    token: jax.Array,
    place: jax.Array,
    padding: jax.Array,
    adapter: dict[str, LayerAdapter],
    caches: Caches,
    beside: RowTable | None = None,
) -> tuple[jax.Array, Caches]:
    """Logits after one more token per row, `[batch]` to `[batch, vocab_size]`."""
    config = model.config
    batch, length = len(token), next(iter(caches.values())).keys.shape[2]
    key_place = jnp.arange(length)
    seen = (key_place <= place) & (key_place >= padding[:, None])
    masks = jnp.stack([seen & (place - key_place < config.sliding_window), seen])

    def step_of(name):
        stack = config.stacks[name]
        sin, cos = rotary_angles(config, place - padding, stack.head_dim)

        def step(carry, numbered):
            (x, caches), (layer, index) = carry, numbered
            block, kind = model.block(name, layer), layer.is_global
            q, made = block.project(x, sin[kind], cos[kind], layer.adapter)
            if made is None:
                keys, values = (kept[-1] for kept in caches[keys_from(name)])
            else:
                cache = extend(caches[name], made, index, place)
                caches = caches | {name: cache}
                keys, values = cache.keys[index], cache.values[index]
            q = q.reshape(batch, stack.num_kv_heads, -1, stack.head_dim)
            scores = jnp.einsum("bkgd,bskd->bkgs", q, keys, preferred_element_type=jnp.float32)
            scores = soft_cap(scores, config.attention_softcap)
            scores = jnp.where(masks[kind][:, None, None], scores, -jnp.inf)
            shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
            heads = jnp.einsum("bkgs,bskd->bkgd", shares, values)
            x = block.finish(x, heads.reshape(batch, -1), layer.adapter, layer.beside)
            return (x, caches), None

        return step

    hidden, caches = read_tokens(model, token, adapter, caches, step_of, beside)
    return model.logits(hidden), caches


def read_tokens(
    model: Decoder,
    tokens: jax.Array,
    adapter: dict[str, LayerAdapter],
    caches: Caches,
    step_of: Callable[[str], Callable],
    beside: RowTable | None,
) -> tuple[jax.Array, Caches]:
    """Hidden states after one more token of every row, and the caches with it.

    Args:
      model, adapter, beside: as for generation.
      tokens: `[batch]` int32.
      caches: of the tokens before.
      step_of: for a stack the step from (x, caches) and (layer, its number in the stack) to both.
    """
    x = model.embed(tokens)
    layers = model.layers(x, adapter, None if beside is None else beside(tokens))
    numbered = {name: (layer, jnp.arange(len(layer.is_global))) for name, layer in layers.items()}
    steps = {name: step_of(name) for name in layers}
    (x, caches), _ = walk(model.config.sections, steps, (x, caches), numbered)
    return model.final_norm(x), caches


def extend(
    cache: Cache, made: tuple[jax.Array, jax.Array], index: jax.Array, place: jax.Array
) -> Cache:
    """Writes a layer's keys and values of one more token, `[batch, num_kv_heads, head_dim]`."""
    at = (index, 0, place, 0, 0)
    pairs = zip(cache, made, strict=True)
    return Cache(*(jax.lax.dynamic_update_slice(kept, y[None, :, None], at) for kept, y in pairs))


@partial(
    jax.jit,
    static_argnames=("definition", "config", "beside", "lora", "sampling", "num_tokens"),
)
def _generate(
    weights: nnx.State,
    adapter: Adapter,
    tokens: jax.Array,
    padding: jax.Array,
    stops: jax.Array,
    key: jax.Array,
    definition: nnx.GraphDef,
    config: DecoderConfig,
    beside: RowTable | None,
    lora: Lora,
    sampling: Sampling,
    num_tokens: int,
) -> jax.Array:
    model = nnx.merge(definition, weights)
    layers = prepare(adapter, config, lora, None)
    size = tokens.shape[1]
    logits, caches = _prefill(model, tokens, padding, layers, size + num_tokens, beside)

    def step(carry, xs):
        logits, caches, done = carry
        key, place = xs
        token = jnp.where(done, stops[0], choose(key, logits, sampling))
        done |= jnp.isin(token, stops)
        logits, caches = _decode(model, token, place, padding, layers, caches, beside)
        return (logits, caches, done), token

    keys = jax.random.split(key, num_tokens)
    done = jnp.zeros(len(tokens), bool)
    xs = (keys, size + jnp.arange(num_tokens))
    return jax.lax.scan(step, (logits, caches, done), xs)[1].T


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
    stops = model.stop_tokens() or [-1]  # which is no token
    made = _generate(
        model.weights,
        adapter or {},
        tokens,
        padding,
        np.array(stops, np.int32),
        key,
        definition=model.definition,
        config=model.config,
        beside=model.beside,
        lora=lora or NO_LORA,
        sampling=sampling,
        num_tokens=num_tokens,
    )
    found = []
    for row in np.asarray(made).tolist():
        ends = [index for index, token in enumerate(row) if token in stops]
        found.append(row[: ends[0]] if ends else row)
    return found
