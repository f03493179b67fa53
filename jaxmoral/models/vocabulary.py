"""A next-token distribution's normaliser in one pass over the embedding, without keeping logits.

The embedding is by far the largest matrix. The gradient of a log-sum-exp of logits is the mean of
the embeddings under the softmax, which can be summed up beside the normaliser itself, as in
attention that never stores its scores (arXiv 2205.14135). So each piece of the embedding is read
once for both passes, and there is room for a piece's logits only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

PyTree = Any


class Vocabulary(NamedTuple):
    """An embedding in pieces.

    Attributes:
      table: leaves `[splits, num_pieces, size, ...]`: token `(split * num_pieces + piece) * size +
        at` has row `at` of a piece's part. A mesh may split the first axis.
      excluded: `[num_places, splits, num_pieces, size]` bool, tokens that are left out.
    """

    table: PyTree
    excluded: jax.Array


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Bounds x smoothly to (-cap, cap); does nothing without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def cut(table: PyTree, excluded: jax.Array, at_once: int, splits: int = 1) -> Vocabulary:
    """Cuts an embedding into as few equal pieces as have at most `at_once` tokens.

    Args:
      table: leaves `[vocab_size, ...]`.
      excluded: `[num_places, vocab_size]` bool.
      at_once: the most tokens of a piece.
      splits: how many parts of the vocabulary lie side by side.
    """
    part = excluded.shape[1] // splits
    counts = (n for n in range(1, part + 1) if part % n == 0)
    num_pieces = next(n for n in counts if excluded.shape[1] // n <= max(at_once, splits))
    shape = (splits, num_pieces, part // num_pieces)
    return Vocabulary(
        jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), table),
        excluded.reshape(len(excluded), *shape),
    )


class Divergence(NamedTuple):
    """Two next-token distributions compared, each leaf `[num_rows]`.

    Attributes:
      log_sums: `[num_rows, 2 (one, other)]`, logs of the summed exponentials of the logits.
      kl: of the other from the one, in nats.
      same_top: whether both find the same token likeliest.
    """

    log_sums: jax.Array
    kl: jax.Array
    same_top: jax.Array


def divergence(
    read: Callable[[PyTree], jax.Array], cap: float | None, table: PyTree, pair: jax.Array
) -> Divergence:
    """KL(one || other) over the whole vocabulary, in one pass over the embedding.

    Args:
      read: from leaves `[size, ...]` of the table to `[size, embed_dim]`.
      cap: of the logits.
      table: of a `Vocabulary`.
      pair: `[num_rows, 2 (one, other), embed_dim]`.
    """
    num_rows = len(pair)
    rows = pair.reshape(-1, pair.shape[-1])

    def add(sums, index):
        peak, total, apart, best = sums
        leaves = jax.tree.map(lambda leaf: leaf[:, index], table)
        piece = read(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), leaves))
        logits = jnp.einsum("rd,vd->rv", rows, piece, preferred_element_type=jnp.float32)
        logits = soft_cap(logits, cap).reshape(num_rows, 2, -1)
        top = logits.max(-1)
        here = index * logits.shape[-1] + logits.argmax(-1)
        best = jnp.where(top > peak, here, best)
        newest = jnp.maximum(peak, top)
        shares, fade = jnp.exp(logits - newest[..., None]), jnp.exp(peak - newest)
        gap = jnp.sum(shares[:, 0] * (logits[:, 0] - logits[:, 1]), -1)
        return (newest, total * fade + shares.sum(-1), apart * fade[:, 0] + gap, best), None

    start = (
        jnp.full((num_rows, 2), jnp.finfo(jnp.float32).min),
        jnp.zeros((num_rows, 2)),
        jnp.zeros(num_rows),
        jnp.zeros((num_rows, 2), jnp.int32),
    )
    num_pieces = jax.tree.leaves(table)[0].shape[1]
    (peak, total, apart, best), _ = jax.lax.scan(add, start, jnp.arange(num_pieces))
    log_sums = peak + jnp.log(total)
    kl = apart / total[:, 0] - log_sums[:, 0] + log_sums[:, 1]
    return Divergence(log_sums, kl, best[:, 0] == best[:, 1])


def block_sums(
    read: Callable[[PyTree], jax.Array],
    cap: float | None,
    table: PyTree,
    hidden: jax.Array,
    width: int,
) -> jax.Array:
    """The logs of the summed exponentials of the logits of blocks of neighbouring tokens.

    Args:
      read: from leaves `[size, ...]` of the table to `[size, embed_dim]`.
      cap: of the logits.
      table: of a `Vocabulary`.
      hidden: `[num_rows, embed_dim]`.
      width: tokens of a block, a divisor of a piece's size.

    Returns:
      `[num_rows, vocab_size / width]` float32.
    """
    splits, num_pieces = jax.tree.leaves(table)[0].shape[:2]

    def add(_, index):
        leaves = jax.tree.map(lambda leaf: leaf[:, index], table)
        piece = read(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), leaves))
        logits = jnp.einsum("vd,rd->vr", piece, hidden, preferred_element_type=jnp.float32)
        blocks = soft_cap(logits, cap).reshape(splits, -1, width, len(hidden))
        peak = blocks.max(2)
        return None, peak + jnp.log(jnp.exp(blocks - peak[:, :, None]).sum(2))

    _, sums = jax.lax.scan(add, None, jnp.arange(num_pieces))
    return jnp.moveaxis(sums, 0, 1).reshape(-1, len(hidden)).T


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def log_sum_exp(
    read: Callable[[PyTree], jax.Array],
    cap: float | None,
    vocabulary: Vocabulary,
    hidden: jax.Array,
) -> jax.Array:
    """The log of the summed exponentials of all logits but the excluded ones.

    Args:
      read: from leaves `[size, ...]` of the table to `[size, embed_dim]`.
      cap: of the logits.
      vocabulary: the embedding; it is not differentiated.
      hidden: `[num_rows, num_places, embed_dim]`.

    Returns:
      `[num_rows, num_places]` float32.
    """
    return _pass(read, cap, vocabulary, hidden, False)[0]


def _pass(
    read: Callable[[PyTree], jax.Array],
    cap: float | None,
    vocabulary: Vocabulary,
    hidden: jax.Array,
    with_gradient: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """The sums, and if asked for their gradients, `[num_rows, num_places, embed_dim]` float32."""
    table, excluded = vocabulary
    chex.assert_axis_dimension(hidden, 1, len(excluded))
    rows = hidden.reshape(-1, hidden.shape[-1])

    def add(sums, index):
        peak, total, gradient = sums
        take = lambda x, axis: jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)
        leaves = jax.tree.map(lambda leaf: take(leaf, 1), table)
        piece = read(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), leaves))
        logits = jnp.einsum("vd,rd->vr", piece, rows, preferred_element_type=jnp.float32)
        logits = soft_cap(logits, cap)
        left_out = jnp.tile(take(excluded, 2).reshape(len(excluded), -1).T, (1, len(hidden)))
        logits = jnp.where(left_out, -jnp.inf, logits)
        newest = jnp.maximum(peak, logits.max(0))
        shares, fade = jnp.exp(logits - newest), jnp.exp(peak - newest)
        total = total * fade + shares.sum(0)
        if gradient is not None:
            if cap is not None:
                shares = shares * jnp.where(left_out, 0, 1 - (logits / cap) ** 2)
            mean = jnp.einsum(
                "vr,vd->rd", shares.astype(piece.dtype), piece, preferred_element_type=jnp.float32
            )
            gradient = gradient * fade[:, None] + mean
        return (newest, total, gradient), None

    lowest = jnp.full(len(rows), jnp.finfo(jnp.float32).min)
    start = jnp.zeros(rows.shape, jnp.float32) if with_gradient else None
    sums = (lowest, jnp.zeros(len(rows)), start)
    (peak, total, gradient), _ = jax.lax.scan(add, sums, jnp.arange(excluded.shape[2]))
    found = (peak + jnp.log(total)).reshape(hidden.shape[:2])
    if gradient is not None:
        gradient = (gradient / total[:, None]).reshape(hidden.shape)
    return found, gradient


def _forward(read, cap, vocabulary, hidden):
    found, gradient = _pass(read, cap, vocabulary, hidden, True)
    assert gradient is not None
    return found, (gradient.astype(hidden.dtype),)


def _backward(read, cap, residuals, cotangent):
    (gradient,) = residuals
    return None, (cotangent[..., None] * gradient).astype(gradient.dtype)


log_sum_exp.defvjp(_forward, _backward)
