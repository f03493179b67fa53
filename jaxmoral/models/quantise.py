"""Weight-only quantisation of the frozen base: 8-bit integers, or NF4 (arXiv 2305.14314).

The last axis of a matrix is cut into blocks that share a scale, their largest absolute value. A
weight is its block's scale times a number in [-1, 1]: k / 127 for int8, one of the 16 quantiles of
a normal distribution for NF4, whose codes are packed two to a byte. With float32 scales for blocks
of 64 a weight takes 8.5 or 4.5 bits.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BLOCK = 64
_CHUNK = 2**15  # blocks that are rounded at once
# arXiv 2305.14314, appendix E.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
KINDS = ("int8", "nf4")


def block_size(size: int) -> int:
    """How many weights share a scale on an axis of this size."""
    return math.gcd(size, BLOCK)


def quantise(weights: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds weights `[..., size]` to the nearest codes, some blocks at a time.

    Returns:
      codes: `[..., size]` int8, or `[..., size / 2]` uint8 for NF4, the first of two in the high
        half.
      scales: `[..., size / block]` float32.
    """
    blocks = weights.reshape(-1, block_size(weights.shape[-1]))
    codes, scales = [], []
    for start in range(0, len(blocks), _CHUNK):
        part = blocks[start : start + _CHUNK]
        size = 1 << (len(part) - 1).bit_length()  # few shapes, few compiled programs
        padded = np.pad(part, ((0, size - len(part)), (0, 0)))
        chunk = jax.device_get(_round(padded, kind))
        codes.append(chunk[0][: len(part)])
        scales.append(chunk[1][: len(part)])
    *lead, _ = weights.shape
    return np.concatenate(codes).reshape(*lead, -1), np.concatenate(scales).reshape(*lead, -1)


@partial(jax.jit, static_argnames="kind")
def _round(blocks: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    blocks = blocks.astype(jnp.float32)
    scales = jnp.abs(blocks).max(-1)
    unit = blocks / jnp.where(scales == 0, 1, scales)[:, None]
    if kind == "int8":
        return jnp.rint(unit * 127).astype(jnp.int8), scales
    middles = (NF4[1:] + NF4[:-1]) / 2
    codes = jnp.sum(unit[..., None] > middles, axis=-1, dtype=jnp.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scales


def dequantise(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """The weights `[..., size]` that codes stand for, in the dtype of the scales."""
    if codes.dtype == jnp.uint8:
        pairs = jnp.stack([codes >> 4, codes & 15], axis=-1)
        unit = jnp.asarray(NF4)[pairs].reshape(*codes.shape[:-1], -1)
    else:
        unit = codes.astype(jnp.float32) / 127
    blocks = unit.reshape(*scales.shape, -1) * scales[..., None].astype(jnp.float32)
    return blocks.reshape(unit.shape).astype(scales.dtype)


class Quantised(nnx.Module):
    """A quantised matrix; indexing its leading axes dequantises what was chosen, and no more."""

    def __init__(self, kind: str, shape: tuple[int, ...]):
        *rows, size = shape
        packed = (*rows, size // 2), jnp.uint8
        codes = jnp.zeros(*packed) if kind == "nf4" else jnp.zeros(shape, jnp.int8)
        self.codes = nnx.Param(codes)
        self.scales = nnx.Param(jnp.zeros((*rows, size // block_size(size))))

    def __getitem__(self, rows) -> jax.Array:
        return dequantise(self.codes[rows], self.scales[rows])


def read_matrix(
    stored: nnx.Param | Quantised, place: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The numbers of a frozen matrix; `place` is applied to what is stored."""
    if isinstance(stored, Quantised):
        return dequantise(place(stored.codes[...]), place(stored.scales[...]))
    return place(stored[...])


def matrix(kind: str | None, shape: tuple[int, ...]) -> nnx.Param | Quantised:
    """A frozen matrix, or one of each expert, quantised or as it is."""
    return nnx.Param(jnp.zeros(shape)) if kind is None else Quantised(kind, shape)
