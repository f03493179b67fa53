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


class EmbeddingPieces(NamedTuple):
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


def cut(
    table: PyTree, excluded: jax.Array, at_once: int, splits: int = 1, width: int = 1
) -> EmbeddingPieces:
    """Cuts an embedding into as few equal pieces as have at most `at_once` tokens, if they can.

    Args:
      table: leaves `[vocab_size, ...]`.
      excluded: `[num_places, vocab_size]` bool.
      at_once: the most tokens of a piece.
      splits: how many parts of the vocabulary lie side by side.
      width: neighbouring tokens that stay together, a divisor of a part's size.
    """
    part = excluded.shape[1] // splits
    at_once = max(at_once, width * splits)
    counts = (n for n in range(1, part // width + 1) if part % (n * width) == 0)
    num_pieces = next(n for n in counts if excluded.shape[1] // n <= max(at_once, splits))
    shape = (splits, num_pieces, part // num_pieces)
    return EmbeddingPieces(
        jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), table),
        excluded.reshape(len(excluded), *shape),
    )


class Known(NamedTuple):
    """Next-token distributions of which no logits are kept; each leaf is `[num_rows, ...]`.

    Attributes:
      hidden: `[num_rows, embed_dim]`, the states before the tokens.
      log_sums: logs of the summed exponentials of the logits.
      top: int32, the likeliest token.
      slope: `[num_rows, embed_dim]` float32, of `log_sums` by `hidden`, if others are compared with
        these; None otherwise, and where logits are capped.
    """

    hidden: jax.Array
    log_sums: jax.Array
    top: jax.Array
    slope: jax.Array | None


def know(
    read: Callable[[PyTree], jax.Array],
    cap: float | None,
    vocabulary: EmbeddingPieces,
    hidden: jax.Array,
    *,
    compared: bool,
) -> Known:
    """What is to be known of the distributions after hidden states, in one pass; no gradients.

    Args:
      read, cap: as for `log_sum_exp`.
      vocabulary: that leaves nothing out.
      hidden: `[num_rows, embed_dim]`.
      compared: whether others will be compared with these.
    """
    with_slope = compared and cap is None
    # A slope in fewer digits would tell in a small divergence.
    rows = hidden.astype(jnp.float32) if with_slope else hidden
    sums = _pass(read, cap, vocabulary, rows[:, None], with_gradient=with_slope, with_top=True)
    assert sums.top is not None
    slope = None if sums.gradient is None else sums.gradient[:, 0]
    return Known(hidden, sums.log_sums[:, 0], sums.top[:, 0], slope)


def divergence(
    read: Callable[[PyTree], jax.Array],
    cap: float | None,
    vocabulary: EmbeddingPieces,
    one: Known,
    other: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """KL(one || other) over the whole vocabulary in nats, `[num_rows]`.

    Logits are linear in the hidden state, so their mean difference under `one` is that of the
    states along the slope of the normaliser, and no logits are needed again; of capped logits they
    are made once more, in pieces.

    Args:
      read, cap, vocabulary: as for `know`.
      one: with what others are compared; it is not differentiated.
      other: `[num_rows, embed_dim]` hidden states and the logs of the sums after them.
    """
    hidden, log_sums = other
    if one.slope is not None:
        apart = hidden.astype(jnp.float32) - one.hidden.astype(jnp.float32)
        gap = jnp.sum(apart * one.slope, axis=-1)
    else:
        gap = _mean_gap(read, cap, vocabulary, one, hidden)
    return log_sums - one.log_sums - gap


def _mean_gap(read, cap, vocabulary: EmbeddingPieces, one: Known, hidden: jax.Array) -> jax.Array:
    """The mean difference of logits under `one`, `[num_rows]`."""
    pair = jnp.stack([one.hidden.astype(hidden.dtype), hidden])

    def add(total, index):
        piece = _piece(read, vocabulary, index)
        logits = jnp.einsum("prd,vd->prv", pair, piece, preferred_element_type=jnp.float32)
        logits = soft_cap(logits, cap)
        shares = jnp.exp(logits[0] - one.log_sums[:, None])
        return total + jnp.sum(shares * (logits[1] - logits[0]), axis=-1), None

    pieces = jnp.arange(vocabulary.excluded.shape[2])
    return jax.lax.scan(jax.checkpoint(add), jnp.zeros(len(hidden)), pieces)[0]


def _piece(
    read: Callable[[PyTree], jax.Array], vocabulary: EmbeddingPieces, index: jax.Array
) -> jax.Array:
    """The embeddings of one piece, `[splits * size, embed_dim]`."""
    take = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 1, keepdims=False)
    leaves = jax.tree.map(take, vocabulary.table)
    return read(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), leaves))


def block_sums(
    read: Callable[[PyTree], jax.Array],
    cap: float | None,
    vocabulary: EmbeddingPieces,
    hidden: jax.Array,
    width: int,
) -> jax.Array:
    """The logs of the summed exponentials of the logits of blocks of neighbouring tokens.

    Args:
      read: from leaves `[size, ...]` of the table to `[size, embed_dim]`.
      cap: of the logits.
      vocabulary: the embedding.
      hidden: `[num_rows, embed_dim]`.
      width: tokens of a block, a divisor of a piece's size.

    Returns:
      `[num_rows, vocab_size / width]` float32.
    """
    _, splits, num_pieces, _ = vocabulary.excluded.shape

    def add(_, index):
        piece = _piece(read, vocabulary, index)
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
    vocabulary: EmbeddingPieces,
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
    return _pass(read, cap, vocabulary, hidden, with_gradient=False).log_sums


class _Sums(NamedTuple):
    """Of one pass over the embedding; what was not asked for is None.

    Attributes:
      log_sums: `[num_rows, num_places]`.
      gradient: `[num_rows, num_places, embed_dim]` float32, of them by the hidden states.
      top: `[num_rows, num_places]` int32, the tokens of the largest logits.
    """

    log_sums: jax.Array
    gradient: jax.Array | None
    top: jax.Array | None


def _pass(
    read: Callable[[PyTree], jax.Array],
    cap: float | None,
    vocabulary: EmbeddingPieces,
    hidden: jax.Array,
    *,
    with_gradient: bool,
    with_top: bool = False,
) -> _Sums:
    excluded = vocabulary.excluded
    chex.assert_axis_dimension(hidden, 1, len(excluded))
    rows = hidden.reshape(-1, hidden.shape[-1])
    num_splits, num_pieces, size = excluded.shape[1:]

    def add(sums, index):
        peak, total, gradient, best = sums
        piece = _piece(read, vocabulary, index)
        raw = jnp.einsum("vd,rd->vr", piece, rows, preferred_element_type=jnp.float32)
        here = jax.lax.dynamic_index_in_dim(excluded, index, 2, keepdims=False)
        left_out = jnp.tile(here.reshape(len(excluded), -1).T, (1, len(hidden)))
        raw = jnp.where(left_out, -jnp.inf, raw)
        logits = jnp.where(left_out, -jnp.inf, soft_cap(raw, cap))
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
        if best is not None:
            split, at = jnp.divmod(_first_largest(raw), size)
            best = jnp.where(newest > peak, (split * num_pieces + index) * size + at, best)
        return (newest, total, gradient, best), None

    lowest = jnp.full(len(rows), jnp.finfo(jnp.float32).min)
    start = jnp.zeros(rows.shape, jnp.float32) if with_gradient else None
    first = jnp.zeros(len(rows), jnp.int32) if with_top else None
    sums = (lowest, jnp.zeros(len(rows)), start, first)
    (peak, total, gradient, best), _ = jax.lax.scan(add, sums, jnp.arange(num_pieces))
    shape = hidden.shape[:2]
    if gradient is not None:
        gradient = (gradient / total[:, None]).reshape(hidden.shape)
    top = None if best is None else best.reshape(shape)
    return _Sums((peak + jnp.log(total)).reshape(shape), gradient, top)


def _first_largest(logits: jax.Array) -> jax.Array:
    """`logits.argmax(0)` of what no cap has rounded, on a CPU in a quarter of its time."""
    tokens = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    return jnp.where(logits == logits.max(0), tokens, len(logits)).min(0)


def _forward(read, cap, vocabulary, hidden):
    found = _pass(read, cap, vocabulary, hidden, with_gradient=True)
    assert found.gradient is not None
    return found.log_sums, (found.gradient.astype(hidden.dtype),)


def _backward(read, cap, residuals, cotangent):
    (gradient,) = residuals
    return None, (cotangent[..., None] * gradient).astype(gradient.dtype)


log_sum_exp.defvjp(_forward, _backward)
