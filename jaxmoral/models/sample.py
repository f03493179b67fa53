"""Samples continuations of a tree's prompts: each prompt is read once, its branches go on together.

The prompts are packed, so what they share is read once too. The keys and values of a prompt are
kept once for all of its branches; each branch adds its own. All shapes are fixed beforehand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral.language.prompt_tree import PromptTree, sight
from jaxmoral.models.generate import Cache
from jaxmoral.models.lora import LayerAdapter
from jaxmoral.models.model import Decoder, rotary_angles
from jaxmoral.models.vocabulary import soft_cap

_BLOCK = 512  # neighbouring tokens whose probabilities are summed first


class Prefixes(NamedTuple):
    """Prompts to be continued.

    Attributes:
      tree: the packed prompts.
      paths: `[num_prompts, longest]` int32, the nodes of each, from its first to its last; what
        pads a path is its last node once more.
      lengths: `[num_prompts]` int32.
    """

    tree: PromptTree
    paths: np.ndarray | jax.Array
    lengths: np.ndarray | jax.Array


class Branching(NamedTuple):
    """How prompts are continued; static.

    Attributes:
      branches: of each prompt.
      room: the most tokens of a branch.
      stops: tokens that end one.
      max_logits: how many are made at once.
    """

    branches: int
    room: int
    stops: tuple[int, ...]
    max_logits: int


def draw(uniforms: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws tokens by the inverse of their distribution: first a block of them, then one in it.

    Two uniform numbers take the place of one for every token of the vocabulary.

    Args:
      uniforms: `[num_rows, num_draws, 2]` in [0, 1).
      logits: `[num_rows, vocab_size]`.

    Returns:
      `[num_rows, num_draws]` int32.
    """
    num_rows, size = logits.shape
    width = next(n for n in range(min(_BLOCK, size), 0, -1) if size % n == 0)
    shares = jnp.exp(logits - logits.max(-1, keepdims=True)).reshape(num_rows, -1, width)
    block = _pick(uniforms[..., 0], shares.sum(-1)[:, None])
    within = shares[jnp.arange(num_rows)[:, None], block]
    return (block * width + _pick(uniforms[..., 1], within)).astype(jnp.int32)


def _pick(uniforms: jax.Array, weights: jax.Array) -> jax.Array:
    """An index by weight, `[...]` and `[..., size]` to `[...]` int32."""
    ends = jnp.cumsum(weights, axis=-1)
    before = jnp.sum(ends <= uniforms[..., None] * ends[..., -1:], axis=-1)
    return jnp.minimum(before, weights.shape[-1] - 1)


def sample(
    model: Decoder, adapter: LayerAdapter, prefixes: Prefixes, key: jax.Array, how: Branching
) -> tuple[jax.Array, jax.Array]:
    """Samples every branch of every prompt from the model's own distribution.

    Args:
      model: with its weights.
      adapter: of `lora.prepare`.
      prefixes: the prompts.
      key: PRNG key.
      how: static.

    Returns:
      Tokens `[num_prompts, branches, room]` int32, the stop included and 0 behind it, and how many
      of each branch come before its stop, `[num_prompts, branches]` int32.
    """
    paths = jnp.asarray(prefixes.paths)
    num_prompts, shape = len(paths), (len(paths), how.branches)
    stops = jnp.array(how.stops, jnp.int32)
    uniforms = jax.random.uniform(key, (how.room, *shape, 2))
    hidden, read = _prefill(model, prefixes.tree, adapter)
    shared = Cache(read.keys[:, paths], read.values[:, paths])
    first = _next(model, uniforms[0], hidden[paths[:, -1]], how.max_logits)
    room = (*read.keys.shape[:1], num_prompts * how.branches, how.room, *read.keys.shape[2:])
    empty = jnp.zeros(room, read.keys.dtype)
    tokens = jnp.zeros((how.room, *shape), jnp.int32).at[0].set(first)

    def going(carry):
        place, _, done, _ = carry
        return (place < how.room) & ~done.all()

    def step(carry):
        place, tokens, done, own = carry
        at = lengths + place - 1
        hidden, own = _decode(model, tokens[place - 1].ravel(), at, place - 1, adapter, shared, own)
        drawn = _next(model, uniforms[place].reshape(-1, 1, 2), hidden, how.max_logits)
        drawn = jnp.where(done, 0, drawn.reshape(shape))
        return place + 1, tokens.at[place].set(drawn), done | jnp.isin(drawn, stops), own

    lengths = jnp.asarray(prefixes.lengths)
    start = (jnp.int32(1), tokens, jnp.isin(first, stops), Cache(empty, empty))
    _, tokens, _, _ = jax.lax.while_loop(going, step, start)
    tokens = jnp.moveaxis(tokens, 0, -1)
    ended = jnp.isin(tokens, stops)
    return tokens, jnp.where(ended.any(-1), ended.argmax(-1), how.room).astype(jnp.int32)


def _prefill(model: Decoder, tree: PromptTree, adapter: LayerAdapter) -> tuple[jax.Array, Cache]:
    """Hidden states of a packed tree's nodes, and every layer's keys and values of them."""
    config = model.config
    seen = sight(tree, config.sliding_window)
    sin, cos = rotary_angles(config, jnp.asarray(tree.positions))
    definition, weights = nnx.split(model.blocks)

    def body(x, layer):
        weights, adapter, is_global = layer
        block = nnx.merge(definition, weights)
        q, k, v = block.project(x, sin[is_global], cos[is_global], adapter)
        heads = block.attention(q, k, v, seen.keys, seen.masks[is_global])
        return block.finish(x, heads, adapter), (k, v)

    layers = (weights, adapter, jnp.array(config.global_layers, jnp.int32))
    x, (keys, values) = jax.lax.scan(body, model.embed(jnp.asarray(tree.tokens)), layers)
    return model.final_norm(x), Cache(keys, values)


def _decode(
    model: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    place: jax.Array,
    adapter: LayerAdapter,
    shared: Cache,
    own: Cache,
) -> tuple[jax.Array, Cache]:
    """Hidden states after one more token of every branch.

    Args:
      model, adapter: as for `sample`.
      tokens: `[num_prompts * branches]` int32.
      positions: `[num_prompts]` int32, where the tokens are in their texts.
      place: `[]` int32, where they are in the branches.
      shared: of the prompts, `[num_layers, num_prompts, longest, ...]`.
      own: of the branches, `[num_layers, num_prompts * branches, room, ...]`.
    """
    config = model.config
    num_prompts, longest = shared.keys.shape[1:3]
    branches = len(tokens) // num_prompts
    sin, cos = rotary_angles(config, jnp.repeat(positions, branches))
    ago = positions[:, None] - jnp.arange(longest)  # of the prompt's tokens
    before = positions[:, None] - place > jnp.arange(longest)
    steps = place - jnp.arange(own.keys.shape[2])
    masks = jnp.stack([steps < config.sliding_window, steps >= 0]) & (steps >= 0)
    masks = jnp.broadcast_to(masks[:, None], (2, num_prompts, masks.shape[-1]))
    near = jnp.stack([before & (ago < config.sliding_window), before])
    masks = jnp.concatenate([near, masks], axis=-1)[:, :, None, None, None]
    definition, weights = nnx.split(model.blocks)

    def body(carry, layer):
        x, own = carry
        weights, adapter, is_global, index, shared = layer
        block = nnx.merge(definition, weights)
        q, k, v = block.project(x, sin[is_global], cos[is_global], adapter)
        at = (index, 0, place, 0, 0)
        own = Cache(
            jax.lax.dynamic_update_slice(own.keys, k[None, :, None], at),
            jax.lax.dynamic_update_slice(own.values, v[None, :, None], at),
        )
        by_prompt = lambda y: y.reshape(num_prompts, branches, *y.shape[1:])
        q = by_prompt(q.reshape(len(x), config.num_kv_heads, -1, config.head_dim))
        keys, values = by_prompt(own.keys[index]), by_prompt(own.values[index])
        of_prompt = jnp.einsum(
            "prkgd,pskd->prkgs", q, shared.keys, preferred_element_type=jnp.float32
        )
        of_branch = jnp.einsum("prkgd,prskd->prkgs", q, keys, preferred_element_type=jnp.float32)
        scores = jnp.concatenate([of_prompt, of_branch], axis=-1)
        scores = soft_cap(scores, config.attention_softcap)
        scores = jnp.where(masks[is_global], scores, -jnp.inf)
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        heads = jnp.einsum("prkgs,pskd->prkgd", shares[..., :longest], shared.values)
        heads += jnp.einsum("prkgs,prskd->prkgd", shares[..., longest:], values)
        return (block.finish(x, heads.reshape(len(x), -1), adapter), own), None

    is_global = jnp.array(config.global_layers, jnp.int32)
    layers = (weights, adapter, is_global, jnp.arange(config.num_layers), shared)
    (x, own), _ = jax.lax.scan(body, (model.embed(tokens), own), layers)
    return model.final_norm(x), own


def _next(model: Decoder, uniforms: jax.Array, hidden: jax.Array, max_logits: int) -> jax.Array:
    """`draw` after hidden states `[num_rows, embed_dim]`, so many logits at once."""
    num_rows, size = len(hidden), model.config.vocab_size
    at_once = max(max_logits // size, 1)
    divisors = (n for n in range(1, num_rows + 1) if num_rows % n == 0)
    parts = next(n for n in divisors if num_rows // n <= at_once)
    after = lambda xs: draw(xs[0], model.logits(xs[1]))
    if parts == 1:
        return after((uniforms, hidden))
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (uniforms, hidden))
    return jax.lax.map(after, split).reshape(num_rows, -1)
