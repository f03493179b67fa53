"""Goes through the layers of a decoder in their order, compiling each run of alike ones once."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoral.models.layers import Section

PyTree = Any


def walk(
    order: Sequence[Section], steps: dict[str, Callable], carry: PyTree, layers: dict[str, PyTree]
) -> tuple[PyTree, dict[str, PyTree]]:
    """Applies a step to each layer: runs are scanned, and periods of runs are.

    Args:
      order: of the layers, see `DecoderConfig.sections`. A stack is in one section only.
      steps: for each stack a function from the carry and a layer to the next carry and what the
        layer leaves.
      carry: before the first layer.
      layers: of each stack; leaves have a leading axis of its layers.

    Returns:
      The last carry; and of each stack what its layers left, stacked like them.
    """
    left: dict[str, PyTree] = {}
    for section in order:
        parts = _cut(section, layers)
        if section.periods == 1:
            carry, made = _period(section, steps, carry, parts)
        else:
            carry, made = jax.lax.scan(partial(_period, section, steps), carry, parts)
        left |= _join(section, made)
    return carry, left


def _period(section: Section, steps: dict[str, Callable], carry: PyTree, parts: list[PyTree]):
    left = []
    for (name, length), part in zip(section.runs, parts, strict=True):
        if length == 1:
            carry, made = steps[name](carry, part)
        else:
            carry, made = jax.lax.scan(steps[name], carry, part)
        left.append(made)
    return carry, left


def _lead(section: Section, length: int) -> tuple[int, ...]:
    """The leading axes of a run in all periods; one that is 1 is left out."""
    return tuple(size for size in (section.periods, length) if size > 1)


def _cut(section: Section, layers: dict[str, PyTree]) -> list[PyTree]:
    """The layers of each run, in all periods."""
    sizes: dict[str, int] = {}
    for name, length in section.runs:
        sizes[name] = sizes.get(name, 0) + length
    starts = dict.fromkeys(sizes, 0)
    parts = []
    for name, length in section.runs:
        start, end, size = starts[name], starts[name] + length, sizes[name]

        def run(leaf, start=start, end=end, size=size):
            if end - start < size:
                leaf = leaf.reshape(section.periods, size, *leaf.shape[1:])[:, start:end]
                leaf = leaf.reshape(-1, *leaf.shape[2:])
            return leaf.reshape(*_lead(section, end - start), *leaf.shape[1:])

        parts.append(jax.tree.map(run, layers[name]))
        starts[name] = end
    return parts


def _join(section: Section, made: list[PyTree]) -> dict[str, PyTree]:
    """What the runs of each stack left in all periods, on one leading axis."""
    pieces: dict[str, list[PyTree]] = {}
    for (name, length), part in zip(section.runs, made, strict=True):
        axes = len(_lead(section, length))
        whole = (section.periods, length)
        unfold = lambda leaf, axes=axes, whole=whole: leaf.reshape(*whole, *leaf.shape[axes:])
        pieces.setdefault(name, []).append(jax.tree.map(unfold, part))

    def join(*leaves):
        joined = jnp.concatenate(leaves, axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    return {name: jax.tree.map(join, *parts) for name, parts in pieces.items()}
