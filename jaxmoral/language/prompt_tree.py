"""Packs token sequences that share prefixes into one tree for a single forward pass.

The nodes of the sequences' trie are laid out in depth-first order, each once. A node's position
is its depth and it may attend to its ancestors only, so a causal transformer computes for every
node what it would compute for the separate sequence that ends there. Depth-first order makes
"is an ancestor" a comparison of two numbers: j is an ancestor of i exactly when
`j <= i < subtree_end[j]`.

Attention works on blocks of consecutive nodes. An ancestor of any node of a block either lies in
the block or is an ancestor of the block's first node, so a block needs the keys of one path and its
own: the work grows with the number of nodes times the depth, not with the number squared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np


class PromptTree(NamedTuple):
    """A packed trie.

    Attributes:
      tokens: `[num_nodes]` int32 token ids.
      positions: `[num_nodes]` int32 depths, the first token of a sequence being 0.
      subtree_end: `[num_nodes]` int32, one past the last descendant of each node.
      paths: `[num_blocks, longest_path]` int32, the ancestors of the first node of each block of
        `num_nodes / num_blocks` nodes; what pads a path is `num_nodes`.
    """

    tokens: np.ndarray | jax.Array
    positions: np.ndarray | jax.Array
    subtree_end: np.ndarray | jax.Array
    paths: np.ndarray | jax.Array


class Sight(NamedTuple):
    """Who attends to whom, block by block.

    Attributes:
      keys: `[num_blocks, num_keys]` int32, the nodes whose keys a block needs.
      masks: `[2 (sliding window, global), num_blocks, block_size, num_keys]` bool, which of them
        each of its nodes attends to.
    """

    keys: jax.Array
    masks: jax.Array


# Of which the number of a block's keys is a multiple, which suits matrix units; and about how many
# of them are its own.
_KEYS = 64


def pack(sequences: Sequence[Sequence[int]]) -> tuple[PromptTree, np.ndarray]:
    """Packs token sequences as `merge` does, into a tree padded to whole blocks."""
    tree, last_node = merge(sequences)
    return pad(tree, len(tree.tokens), int(tree.positions.max())), last_node


def merge(sequences: Sequence[Sequence[int]]) -> tuple[PromptTree, np.ndarray]:
    """The trie of token sequences.

    Returns:
      The tree without paths, which `pad` and `stack` add, and `last_node`, `[num_sequences]` int32:
      the node each sequence ends at.

    Raises:
      ValueError: there is no sequence, or one is empty.
    """
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise ValueError("a prompt tree needs at least one sequence, and none of them empty")
    tokens: list[int] = []
    positions: list[int] = []
    subtree_end: list[int] = []
    last_node = np.zeros(len(sequences), np.int32)

    # Sorting puts the trie's nodes in depth-first order; `path` is the current root-to-node walk.
    path: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = sequences[index]
        shared = 0
        while shared < min(len(path), len(sequence)) and tokens[path[shared]] == sequence[shared]:
            shared += 1
        del path[shared:]
        for depth in range(shared, len(sequence)):
            path.append(len(tokens))
            tokens.append(int(sequence[depth]))
            positions.append(depth)
            subtree_end.append(0)
        for node in path:
            subtree_end[node] = len(tokens)
        last_node[index] = path[-1]
    integers = lambda rows: np.array(rows, np.int32)
    return PromptTree(*map(integers, (tokens, positions, subtree_end, [[]]))), last_node


def pad(tree: PromptTree, num_nodes: int, depth: int, multiple: int = 1) -> PromptTree:
    """Appends nodes that attend only to themselves and that nobody else attends to.

    Args:
      tree: a tree outside jit.
      num_nodes: the fewest nodes of the result, which has whole blocks.
      depth: the longest path there is room for.
      multiple: of which the number of blocks is one.
    """
    num_blocks, width = _blocks(num_nodes, depth, multiple)
    size = -(-num_nodes // num_blocks)
    num_nodes = num_blocks * size
    missing = num_nodes - len(tree.tokens)
    end = np.arange(len(tree.tokens), num_nodes, dtype=np.int32) + 1
    positions = np.pad(tree.positions, (0, missing))
    paths = np.full((num_blocks, width), num_nodes, np.int32)
    walk = np.zeros(depth + 1, np.int32)  # the newest node of each depth
    for node, position in enumerate(positions):
        if node % size == 0:
            paths[node // size, :position] = walk[:position]
        walk[position] = node
    return PromptTree(
        tokens=np.pad(tree.tokens, (0, missing)),
        positions=positions,
        subtree_end=np.concatenate([tree.subtree_end, end]),
        paths=paths,
    )


def _blocks(num_nodes: int, depth: int, multiple: int = 1) -> tuple[int, int]:
    """Into how many blocks nodes are cut, and how long the paths before them are."""
    if num_nodes <= _KEYS and multiple == 1:
        return 1, 0
    size = _KEYS - depth % _KEYS
    size += _KEYS if size < _KEYS // 2 else 0
    num_blocks = -(-num_nodes // (size * multiple)) * multiple
    size = -(-num_nodes // num_blocks)
    return num_blocks, -(-(depth + size) // _KEYS) * _KEYS - size if depth + size > _KEYS else depth


def stack(trees: Sequence[PromptTree], multiple: int = 1) -> PromptTree:
    """Pads trees to one size (see `pad`) and stacks them on a new leading axis."""
    num_nodes = max(len(tree.tokens) for tree in trees)
    depth = max(int(tree.positions.max()) for tree in trees)
    padded = [pad(tree, num_nodes, depth, multiple) for tree in trees]
    return PromptTree(*map(np.stack, zip(*padded, strict=True)))


def pack_unshared(sequences: jax.Array, lengths: jax.Array) -> PromptTree:
    """Sequences without shared nodes, side by side; what is past a length attends to itself only.

    Args:
      sequences: `[num_sequences, longest]` token ids.
      lengths: `[num_sequences]`.

    Returns:
      A packed forest of `num_sequences * longest` nodes.
    """
    num_sequences, longest = sequences.shape
    per_sequence, width = _blocks(longest, longest - 1)
    size = -(-longest // per_sequence)
    sequences = jnp.pad(sequences, ((0, 0), (0, per_sequence * size - longest)))
    longest = sequences.shape[1]
    place = jnp.broadcast_to(jnp.arange(longest), sequences.shape)
    start = jnp.arange(num_sequences)[:, None] * longest
    end = jnp.where(place < lengths[:, None], start + lengths[:, None], start + place + 1)
    first = jnp.arange(per_sequence)[:, None] * size
    before = jnp.arange(width)
    paths = jnp.where(before < first, start[..., None] + before, sequences.size)
    paths = paths.reshape(num_sequences * per_sequence, width)
    return PromptTree(sequences.ravel(), place.ravel(), end.ravel(), paths)


def sight(tree: PromptTree, window: int) -> Sight:
    """What the nodes of a packed tree attend to: their ancestors, themselves included.

    Args:
      tree: a packed tree.
      window: how many of the nearest are visible in layers with a sliding window.
    """
    num_nodes, num_blocks = len(tree.tokens), len(tree.paths)
    chex.assert_equal_shape(tree[:3])
    chex.assert_is_divisible(num_nodes, num_blocks)
    node = jnp.arange(num_nodes).reshape(num_blocks, -1)
    keys = jnp.concatenate([jnp.asarray(tree.paths), node], axis=1)
    within = jnp.minimum(keys, num_nodes - 1)
    ends, positions = jnp.asarray(tree.subtree_end), jnp.asarray(tree.positions)
    seen = (keys[:, None] <= node[..., None]) & (node[..., None] < ends[within][:, None])
    near = positions[node][..., None] - positions[within][:, None] < window
    return Sight(within, jnp.stack([seen & near, seen]))
