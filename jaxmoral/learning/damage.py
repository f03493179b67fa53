"""How damage of a checkpoint is told from what else can go wrong: checksums, parsers' errors."""

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoral.errors import UserError

# What the storage library's parsers and checksums say; the rest is what the system said to it.
_DAMAGE = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND")


@jax.jit
def checksum(state: Any) -> jax.Array:
    """A number that changes when any bit of the arrays does, however they are split over devices.

    Bits are weighted by odd numbers of their place and added up modulo 2^32.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(state):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        place = jnp.zeros(bits.shape, jnp.uint32)  # flattening would gather what is split
        for axis in range(bits.ndim):
            stride = jnp.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
            place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
        total = 3 * total + jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)
    return total


def seal_of(config: Mapping[str, Any], about: Mapping[str, Any]) -> int:
    """A checksum of what stands beside a state."""
    rest = {key: value for key, value in about.items() if key != "seal"}
    return zlib.crc32(json.dumps([config, rest], sort_keys=True).encode())


class Damaged(UserError):
    """A checkpoint that a parser or a checksum proves damaged."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"the checkpoint {path} is damaged ({reason})")


@contextmanager
def judged(path: Path) -> Iterator[None]:
    """Tells damage of a checkpoint from all else that can go wrong while it is read."""
    try:
        yield
    except UserError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError, KeyError) as error:
        raise Damaged(path, first_line(error)) from error
    except (ValueError, OSError) as error:
        if str(error).partition(":")[0] in _DAMAGE:
            raise Damaged(path, first_line(error)) from error
        raise UserError(
            f"cannot read the checkpoint {path} ({first_line(error)}); nothing was changed"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    # What the system said is deep inside a storage library's message.
    if known := re.search("No space left on device|Disk quota exceeded", str(error)):
        return known[0]
    line = (str(error).splitlines() or [type(error).__name__])[0].partition(" [tensorstore_spec")[0]
    return line if len(line) <= 160 else f"...{line[-160:]}"
