"""Where arrays live: one mesh of all devices, and the rules by which arrays are split over it.

The axis `tensor` splits a layer's heads, its MLP and the vocabulary. The axes `data` and `fsdp`
together split what can be computed side by side: the members of a population, the conditions of an
evaluation, or, of a single agent, the nodes of its prompt tree. `fsdp` splits the frozen weights
too; a layer's are gathered when they are used. JAX's partitioner does the rest.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmoral.config import MeshConfig
from jaxmoral.devices.virtual import compile_anew
from jaxmoral.errors import UserError

AXES = ("data", "fsdp", "tensor")
SIDE_BY_SIDE = ("data", "fsdp")
_STACK = r"(?:\w+\.)?"
_WIDENS = "(q|k|v|gate|up|router|layer_gate)"
_NARROWS = "(o|down|layer_out)"
# A leaf's path: what splits its last dimensions. An axis that does not divide one is left out.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding\b", ("tensor", "fsdp")),  # and an output head of its own, the unembedding
    # A block's weights; where layers differ, their stack's name goes before.
    (rf"blocks\.{_STACK}{_WIDENS}\b", ("fsdp", "tensor")),
    (rf"blocks\.{_STACK}{_NARROWS}\b", ("tensor", "fsdp")),
    (rf"blocks\.{_STACK}{_WIDENS}_bias\b", ("tensor",)),
    (rf"blocks\.{_STACK}(expand|shrink)\b", ("tensor", "fsdp", None)),  # experts side by side
    (r"beside_projection\b", ("fsdp", "tensor")),
    (rf"adapter\.{_STACK}{_WIDENS}\.a\b", ("tensor", "fsdp")),
    (rf"adapter\.{_STACK}{_WIDENS}\.b\b", (None, "tensor")),
    (rf"adapter\.{_STACK}{_NARROWS}\.a\b", (None, "tensor")),
    (rf"adapter\.{_STACK}{_NARROWS}\.b\b", ("tensor", "fsdp")),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and what its axes `data` and `fsdp` split.

    Attributes:
      mesh: with the axes `AXES`.
      side_by_side: they split a leading axis (members, conditions); otherwise a tree's nodes.
    """

    mesh: Mesh
    side_by_side: bool = False

    @property
    def num_places(self) -> int:
        """How many members or conditions are computed at once."""
        return math.prod(self.mesh.shape[axis] for axis in SIDE_BY_SIDE)

    @property
    def node_axes(self) -> tuple[str, ...] | None:
        """What splits the nodes of a tree."""
        return None if self.side_by_side or self.num_places == 1 else SIDE_BY_SIDE

    @property
    def lead_axes(self) -> tuple[str, ...] | None:
        """What splits a leading axis of members or conditions."""
        return SIDE_BY_SIDE if self.side_by_side else None

    def sharding(self, *spec: Any) -> NamedSharding:
        """The sharding whose dimensions are split as in a PartitionSpec; none of them by default"""
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def stacked(self, lead: bool) -> NamedSharding:
        """The sharding of arrays with a leading axis of members or conditions, or of whole ones."""
        return self.sharding(self.lead_axes) if lead else self.sharding()


def constrain(x: jax.Array, layout: Layout | None, *spec: Any) -> jax.Array:
    """Fixes how an intermediate value is split; without a layout, or on one device, does nothing.

    An axis that does not divide its dimension is left out.
    """
    if layout is None or layout.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(*_fitting(spec, x.shape, layout)))


def _fitting(spec: tuple, shape: tuple[int, ...], layout: Layout) -> tuple:
    sizes = layout.mesh.shape

    def parts(axes: Any) -> int:
        names = axes if isinstance(axes, tuple) else (axes,)
        return math.prod(sizes[name] for name in names if name is not None)

    free = (None, PartitionSpec.UNCONSTRAINED)
    return tuple(
        axes if axes in free or size % parts(axes) == 0 else None
        for axes, size in zip(spec, shape, strict=False)
    )


def split_by_rules(path: str, shape: tuple[int, ...], layout: Layout, lead: bool) -> NamedSharding:
    """How a leaf of weights, adapters or optimiser state is split.

    Args:
      path: its names, joined by dots.
      shape: of the leaf.
      layout: the mesh.
      lead: whether its first dimension is one of members.
    """
    first = (layout.lead_axes,) if lead else ()
    last: tuple = next((axes for pattern, axes in RULES if re.search(pattern, path)), ())
    if first:  # members are spread over fsdp already
        last = tuple(None if axis == "fsdp" else axis for axis in last)
    last = last[-(len(shape) - len(first)) :] if len(shape) > len(first) else ()
    middle = (None,) * (len(shape) - len(first) - len(last))
    return layout.sharding(*_fitting((*first, *middle, *last), shape, layout))


def shardings(tree: Any, layout: Layout, lead: Any = False) -> Any:
    """`split_by_rules` for a pytree; `lead` is one value, or a pytree that is a prefix of it."""

    def one(path, leaf, lead):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return split_by_rules(name, jnp.shape(leaf), layout, lead)

    leads = jax.tree.broadcast(lead, tree)
    return jax.tree_util.tree_map_with_path(one, tree, leads)


def place(tree: Any, where: Any) -> Any:
    """Puts host arrays, the same in every process, on the mesh.

    Args:
      tree: of arrays.
      where: a sharding for all of them, or a pytree of shardings.
    """

    def one(leaf, sharding):
        leaf = np.asarray(leaf)
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    if isinstance(where, NamedSharding):
        return jax.tree.map(lambda leaf: one(leaf, where), tree)
    return jax.tree.map(one, tree, where)


def everywhere(tree: Any, layout: Layout) -> Any:
    """The arrays whole on every device, for whoever reads them in every process."""
    if all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree)):
        return place(tree, layout.sharding())
    return jax.jit(lambda tree: tree, out_shardings=layout.sharding())(tree)


def map_spread(function: Callable, xs: Any, layout: Layout | None) -> Any:
    """`jax.lax.map`, each place of the mesh taking an equal share of the calls.

    Places take neighbours, so a leading axis that is split already stays where it is. If the number
    of calls does not divide, the last one is repeated and its copies are dropped.
    """
    count = len(jax.tree.leaves(xs)[0])
    if layout is None or not layout.side_by_side or layout.num_places == 1:
        return jax.lax.map(function, xs)
    places = layout.num_places
    share = -(-count // places)

    def fold(x):
        if share * places > count:
            x = x[np.minimum(np.arange(share * places), count - 1)]
        x = x.reshape(places, share, *x.shape[1:])
        x = constrain_lead(x, layout)
        return jnp.swapaxes(x, 0, 1)

    def unfold(y):
        y = constrain_lead(jnp.swapaxes(y, 0, 1), layout)
        y = y.reshape(places * share, *y.shape[2:])
        return y[:count] if share * places > count else y

    together = jax.vmap(function, spmd_axis_name=SIDE_BY_SIDE)
    return jax.tree.map(unfold, jax.lax.map(together, jax.tree.map(fold, xs)))


def constrain_lead(x: jax.Array, layout: Layout) -> jax.Array:
    """Splits the first axis over the places; how the others are split is left open."""
    return constrain(x, layout, SIDE_BY_SIDE, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))


def make_layout(
    asked: MeshConfig, units: int | None, max_tensor: int = 1, weight_bytes: int = 0
) -> Layout:
    """The mesh of all devices, in every process.

    What is not asked for is chosen: as many places side by side as divide the units, then tensor
    parallelism up to `max_tensor`, then the nodes of the tree.

    Args:
      asked: sizes of axes, or None where they are chosen.
      units: how many members are computed side by side; 1 for a single agent, None if any number
        may be.
      max_tensor: the most useful size of the axis `tensor`.
      weight_bytes: of the frozen weights. If they fill more than a third of a device, they are
        split over the places too.

    Raises:
      UserError: the sizes do not make up the number of devices or of members.
    """
    compile_anew()
    devices = jax.devices()
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    heavy = weight_bytes > limit / 3
    if devices[0].platform == "gpu":  # between hosts links are slower by far
        max_tensor = min(max_tensor, jax.local_device_count())
    sizes = choose_sizes(asked, len(devices), units, max_tensor, heavy)
    # An axis may take a part of a slice's physical one; else a v6e-16 has no place for (2, 1, 8).
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    mesh = Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)
    return Layout(mesh, side_by_side=units != 1)


def choose_sizes(
    asked: MeshConfig, num_devices: int, units: int | None, max_tensor: int, heavy: bool
) -> tuple[int, int, int]:
    """Sizes of the axes (data, fsdp, tensor); see `make_layout`."""
    given = {axis: size for axis in AXES if (size := getattr(asked, axis)) is not None}
    rest, odd = divmod(num_devices, math.prod(given.values()))
    shown = ", ".join(f"{axis} {size}" for axis, size in given.items())
    if odd or (len(given) == len(AXES) and rest > 1):
        raise UserError(f"mesh: {shown} do not fit the {num_devices} devices there are")
    places = math.prod(given.get(axis, 1) for axis in SIDE_BY_SIDE)
    if units is None:
        beside = rest
    elif units == 1:
        useful = max_tensor if "tensor" not in given else 1
        beside = rest // max(n for n in range(1, rest + 1) if rest % n == 0 and n <= useful)
    elif units % places:
        raise UserError(f"mesh: {shown} do not divide the {units} members")
    else:
        beside = math.gcd(rest, units // places)
    free = [axis for axis in (("fsdp", "data") if heavy else SIDE_BY_SIDE) if axis not in given]
    sizes = dict.fromkeys(AXES, 1) | given
    if free:
        sizes[free[0]] = beside
        rest //= beside
    if "tensor" not in given:
        sizes["tensor"], rest = rest, 1
    if rest > 1:
        raise UserError(
            f"mesh: {shown} leave {rest} of every {num_devices} devices without"
            f" {'members' if units else 'work'}; leave mesh.tensor free"
        )
    return sizes["data"], sizes["fsdp"], sizes["tensor"]
