"""Samples continuations of a tree's prompts: each prompt is read once, its branches go on together.

The prompts are packed, so what they share is read once too. The keys and values of a prompt are
kept once for all of its branches; each branch adds its own. All shapes are fixed beforehand.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.language.prompt_tree import PromptTree, sight
from jaxmoral.models.block import rotary_angles
from jaxmoral.models.generate import Cache, Caches, extend, read_tokens
from jaxmoral.models.layers import keys_from
from jaxmoral.models.lora import LayerAdapter
from jaxmoral.models.model import Decoder
from jaxmoral.models.rows import RowTable
from jaxmoral.models.vocabulary import soft_cap

Adapters = dict[str, LayerAdapter]  # of each stack of layers

_BLOCK = 512  # the most neighbouring tokens whose probabilities are summed first


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


def draw(
    uniforms: jax.Array,
    block_sums: jax.Array,
    width: int,
    logits_of: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Draws tokens by the inverse of their distribution: first a block of them, then one in it.

    Two uniform numbers take the place of one for every token of the vocabulary, and logits are kept
    of the drawn blocks alone.

    Args:
      uniforms: `[num_rows, num_draws, 2]` in [0, 1).
      block_sums: `[num_rows, num_blocks]` logs of the summed exponentials of their logits.
      width: neighbouring tokens of a block.
      logits_of: from tokens `[num_rows, n]` to their logits.

    Returns:
      `[num_rows, num_draws]` int32.
    """
    shares = jnp.exp(block_sums - block_sums.max(-1, keepdims=True))
    first = _pick(uniforms[..., 0], shares[:, None]) * width
    tokens = first[..., None] + jnp.arange(width)
    logits = logits_of(tokens.reshape(len(tokens), -1)).reshape(tokens.shape)
    shares = jnp.exp(logits - logits.max(-1, keepdims=True))
    return (first + _pick(uniforms[..., 1], shares)).astype(jnp.int32)


def _pick(uniforms: jax.Array, weights: jax.Array) -> jax.Array:
    """An index by weight, `[...]` and `[..., size]` to `[...]` int32."""
    ends = jnp.cumsum(weights, axis=-1)
    before = jnp.sum(ends <= uniforms[..., None] * ends[..., -1:], axis=-1)
    return jnp.minimum(before, weights.shape[-1] - 1)


def sample(
    model: Decoder,
    adapter: Adapters,
    prefixes: Prefixes,
    key: jax.Array,
    how: Branching,
    beside: RowTable | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Samples every branch of every prompt from the model's own distribution.

    Args:
      model: with its weights.
      adapter: of `lora.prepare`.
      prefixes: the prompts.
      key: PRNG key.
      how: static.
      beside: what the layers look up of each token, if the model has that.

    Returns:
      Tokens `[num_prompts, branches, room]` int32, the stop included and 0 behind it, and how many
      of each branch come before its stop, `[num_prompts, branches]` int32.
    """
    paths = jnp.asarray(prefixes.paths)
    num_prompts, shape = len(paths), (len(paths), how.branches)
    stops = jnp.array(how.stops, jnp.int32)
    uniforms = jax.random.uniform(key, (how.room, *shape, 2))
    hidden, read = _prefill(model, prefixes.tree, adapter, beside)
    shared = jax.tree.map(lambda kept: kept[:, paths], read)
    first = _next(model, uniforms[0], hidden[paths[:, -1]], how.max_logits)
    rows = num_prompts * how.branches
    room = lambda kept: jnp.zeros((len(kept), rows, how.room, *kept.shape[2:]), kept.dtype)
    empty = jax.tree.map(room, read)
    tokens = jnp.zeros((how.room, *shape), jnp.int32).at[0].set(first)

    def going(carry):
        place, _, done, _ = carry
        return (place < how.room) & ~done.all()

    def step(carry):
        place, tokens, done, own = carry
        at = lengths + place - 1
        newest = tokens[place - 1].ravel()
        hidden, own = _decode(model, newest, at, place - 1, adapter, shared, own, beside)
        drawn = _next(model, uniforms[place].reshape(-1, 1, 2), hidden, how.max_logits)
        drawn = jnp.where(done, 0, drawn.reshape(shape))
        return place + 1, tokens.at[place].set(drawn), done | jnp.isin(drawn, stops), own

    lengths = jnp.asarray(prefixes.lengths)
    start = (jnp.int32(1), tokens, jnp.isin(first, stops), empty)
    _, tokens, _, _ = jax.lax.while_loop(going, step, start)
    tokens = jnp.moveaxis(tokens, 0, -1)
    ended = jnp.isin(tokens, stops)
    return tokens, jnp.where(ended.any(-1), ended.argmax(-1), how.room).astype(jnp.int32)


def _prefill(
    model: Decoder, tree: PromptTree, adapter: Adapters, beside: RowTable | None
) -> tuple[jax.Array, Caches]:
    """Hidden states of a packed tree's nodes, and every stack's keys and values of them.

    These are `[layers, num_nodes, num_kv_heads, head_dim]`.
    """
    tokens, positions = jnp.asarray(tree.tokens), jnp.asarray(tree.positions)
    seen = sight(tree, model.config.sliding_window)
    rows = None if beside is None else beside(tokens)
    hidden, made = model.read(tokens, positions, seen, adapter, "none", rows, keep=True)
    return hidden, {name: Cache(*pair) for name, pair in made.items() if pair is not None}


def _decode(
    model: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    place: jax.Array,
    adapter: Adapters,
    shared: Caches,
    own: Caches,
    beside: RowTable | None,
) -> tuple[jax.Array, Caches]:
    """Hidden states after one more token of every branch.

    Args:
      model, adapter, beside: as for `sample`.
      tokens: `[num_prompts * branches]` int32.
      positions: `[num_prompts]` int32, where the tokens are in their texts.
      place: `[]` int32, where they are in the branches.
      shared: of the prompts, `[layers, num_prompts, longest, ...]`.
      own: of the branches, `[layers, num_prompts * branches, room, ...]`.
    """
    config = model.config
    some = next(iter(shared))
    num_prompts, longest = shared[some].keys.shape[1:3]
    branches = len(tokens) // num_prompts
    ago = positions[:, None] - jnp.arange(longest)  # of the prompt's tokens
    before = positions[:, None] - place > jnp.arange(longest)
    steps_ago = place - jnp.arange(own[some].keys.shape[2])
    masks = jnp.stack([steps_ago < config.sliding_window, steps_ago >= 0]) & (steps_ago >= 0)
    masks = jnp.broadcast_to(masks[:, None], (2, num_prompts, masks.shape[-1]))
    near = jnp.stack([before & (ago < config.sliding_window), before])
    masks = jnp.concatenate([near, masks], axis=-1)[:, :, None, None, None]
    by_prompt = lambda y: y.reshape(num_prompts, branches, *y.shape[1:])

    def step_of(name):
        stack = config.stacks[name]
        sin, cos = rotary_angles(config, jnp.repeat(positions, branches), stack.head_dim)

        def step(carry, numbered):
            (x, own), (layer, index) = carry, numbered
            block, kind = model.block(name, layer), layer.is_global
            q, made = block.project(x, sin[kind], cos[kind], layer.adapter)
            if made is None:
                lender, index = keys_from(name), -1
            else:
                lender, own = name, own | {name: extend(own[name], made, index, place)}
            of_prompts = Cache(*(kept[index] for kept in shared[lender]))
            of_branches = Cache(*(by_prompt(kept[index]) for kept in own[lender]))
            q = by_prompt(q.reshape(len(x), stack.num_kv_heads, -1, stack.head_dim))
            scores = jnp.concatenate(
                [
                    jnp.einsum(
                        "prkgd,pskd->prkgs", q, of_prompts.keys, preferred_element_type=jnp.float32
                    ),
                    jnp.einsum(
                        "prkgd,prskd->prkgs",
                        q,
                        of_branches.keys,
                        preferred_element_type=jnp.float32,
                    ),
                ],
                axis=-1,
            )
            scores = soft_cap(scores, config.attention_softcap)
            scores = jnp.where(masks[kind], scores, -jnp.inf)
            shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
            heads = jnp.einsum("prkgs,pskd->prkgd", shares[..., :longest], of_prompts.values)
            heads += jnp.einsum("prkgs,prskd->prkgd", shares[..., longest:], of_branches.values)
            x = block.finish(x, heads.reshape(len(x), -1), layer.adapter, layer.beside)
            return (x, own), None

        return step

    return read_tokens(model, tokens, adapter, own, step_of, beside)


def _next(model: Decoder, uniforms: jax.Array, hidden: jax.Array, max_logits: int) -> jax.Array:
    """`draw` after hidden states `[num_rows, embed_dim]`, so many logits at once."""
    sums = model.block_sums(hidden, _BLOCK, max_logits)
    width = model.config.vocab_size // sums.shape[1]
    return draw(uniforms, sums, width, partial(model.logits_of, hidden))
