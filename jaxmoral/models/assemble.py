"""Puts weights that arrive in parts where they belong, quantised if asked for, on their devices."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from jaxmoral.devices.mesh import Layout, split_by_rules
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.model import Decoder
from jaxmoral.models.quantise import quantise


def assemble(
    config: DecoderConfig,
    parts: Iterable[tuple[str, Any, np.ndarray]],
    dtype: str,
    layout: Layout | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Puts named parts of weights into the module's state, one at a time.

    A process keeps what its own devices hold, and that only until a weight is complete.

    Args:
      config: of the model; says whether matrices are quantised.
      parts: (name, index, numbers), e.g. one layer's matrix and its number.
      dtype: of the matrices, or of the scales of quantised ones; norms are float32.
      layout: where they go; None is the default device.
    """
    definition, abstract = Decoder.abstract(config, layout)
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    names = [".".join(str(key.key) for key in path if hasattr(key, "key")) for path, _ in leaves]
    missing = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    quantised = {name.removesuffix(".codes") for name in names if name.endswith(".codes")}
    begun: dict[str, _Shards] = {}
    finished: dict[str, jax.Array] = {}

    def put(name: str, index: Any, part: np.ndarray) -> None:
        if name not in begun:
            leaf = missing[name]
            kept = name.endswith(".scale") or jnp.issubdtype(leaf.dtype, jnp.integer)
            begun[name] = _Shards(name, leaf.shape, leaf.dtype if kept else dtype, layout)
        begun[name].put(index, part)
        if begun[name].missing == 0:
            finished[name] = begun.pop(name).array()
            del missing[name]

    for name, index, part in parts:
        if config.quantisation is None or name not in quantised:
            put(name, index, part)
        else:
            codes, scales = quantise(part, config.quantisation)
            put(f"{name}.codes", index, codes)
            put(f"{name}.scales", index, scales)
    if missing:
        raise ValueError(f"there is no {', '.join(sorted(missing))}")
    return definition, jax.tree.unflatten(structure, [finished[name] for name in names])


class _Shards:
    """A weight that arrives in parts; this process keeps what its devices hold."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, layout: Layout | None):
        self._name, self._shape = name, shape
        if layout is None:
            self._sharding: Any = SingleDeviceSharding(jax.devices()[0])
        else:
            self._sharding = split_by_rules(name, shape, layout, lead=False)
        self._boxes: dict[jax.Device, tuple] = {}
        self._buffers: dict[tuple, np.ndarray] = {}
        self.missing = math.prod(shape)
        for device, index in self._sharding.addressable_devices_indices_map(shape).items():
            box = tuple(part.indices(n)[:2] for part, n in zip(index, shape, strict=True))
            self._boxes[device] = box
            if box not in self._buffers:
                sizes = tuple(stop - start for start, stop in box)
                self._buffers[box] = _aligned_empty(sizes, jnp.dtype(dtype))

    def put(self, index: Any, part: np.ndarray) -> None:
        """Takes a part: everything (...), a place on the first axis, or a slice of it."""
        if isinstance(index, int):
            index, part = slice(index, index + 1), part[None]
        first, last, _ = (slice(None) if index is ... else index).indices(self._shape[0])
        if part.shape != (last - first, *self._shape[1:]):
            expected = (last - first, *self._shape[1:])
            raise ValueError(f"{self._name} has shape {part.shape}, not {expected}")
        self.missing -= part.size
        for box, buffer in self._buffers.items():
            (top, bottom), *rest = box
            start, stop = max(first, top), min(last, bottom)
            if start < stop:
                inner = tuple(slice(*side) for side in rest)
                buffer[start - top : stop - top] = part[
                    (slice(start - first, stop - first), *inner)
                ]

    def array(self) -> jax.Array:
        """The weight on its devices."""
        pieces = [jax.device_put(self._buffers[box], at) for at, box in self._boxes.items()]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, pieces)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that JAX can use on a CPU without copying it (64-byte aligned)."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
