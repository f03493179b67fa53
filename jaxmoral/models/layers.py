"""What a decoder's layers are made of and how they follow each other: stacks, runs, periods.

Layers of one shape are a stack: their weights lie behind each other on a leading axis. Where layers
differ, those of one stack that follow each other are a run, and runs that come again make a period:
a model of 60 layers, five with a window and one without by turns, is one period of two runs,
computed ten times.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Stack(NamedTuple):
    """Layers of one shape.

    Attributes:
      layers: their places among all layers.
      head_dim, num_kv_heads: of the attention.
      own_keys: whether they make keys and values; else those come from the last layer that does.
      linear_shapes: (inputs, outputs) of each linear layer.
      norm_sizes: of each norm.
      vector_sizes: of biases and scales.
      expert_shapes: of each matrix that all experts have, (experts, inputs, outputs).
    """

    layers: tuple[int, ...]
    head_dim: int
    num_kv_heads: int
    own_keys: bool
    linear_shapes: dict[str, tuple[int, int]]
    norm_sizes: dict[str, int]
    vector_sizes: dict[str, int]
    expert_shapes: dict[str, tuple[int, int, int]]


class Section(NamedTuple):
    """Layers that follow each other.

    Attributes:
      periods: how often the runs come.
      runs: the stack's name and the number of layers of each run.
    """

    periods: int
    runs: tuple[tuple[str, int], ...]


_SHARED = "shared_"


def stack_names(is_global: Sequence[bool], is_shared: Sequence[bool], alike: bool) -> list[str]:
    """The stack of each layer."""
    if alike:
        return [""] * len(is_global)
    pairs = zip(is_global, is_shared, strict=True)
    return [_SHARED * shared + ("full" if wide else "sliding") for wide, shared in pairs]


def weight_name(stack: str, name: str) -> str:
    """What a weight of a block is called among a model's weights."""
    return ".".join(part for part in ("blocks", stack, name) if part)


def keys_from(name: str) -> str:
    """The stack from whose last layer the layers of a stack without keys take theirs."""
    return name.removeprefix(_SHARED)


def sections(names: Sequence[str]) -> list[Section]:
    """Layers, given by their stacks, in as short a period as they have; nothing of no layers."""
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = name, runs[-1][1] + 1
        else:
            runs.append((name, 1))
    for size in range(1, len(runs) + 1):
        periods, rest = divmod(len(runs), size)
        if not rest and runs == runs[:size] * periods:
            return [Section(periods, tuple(runs[:size]))]
    return []
