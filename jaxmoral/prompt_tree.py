"""Packs token sequences that share prefixes into one tree for a single forward pass.

The nodes of the sequences' trie are laid out in depth-first order, each once. A node's position
is its depth and it may attend to its ancestors only, so a causal transformer computes for every
node what it would compute for the separate sequence that ends there. Depth-first order makes
"is an ancestor" a comparison of two numbers: j is an ancestor of i exactly when
`j <= i < subtree_end[j]`.
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
    """

    tokens: np.ndarray | jax.Array
    positions: np.ndarray | jax.Array
    subtree_end: np.ndarray | jax.Array


def pack(sequences: Sequence[Sequence[int]]) -> tuple[PromptTree, np.ndarray]:
    """Packs token sequences.

    Returns:
      The tree, and `last_node`, `[num_sequences]` int32: the node each sequence ends at.

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
    tree = PromptTree(*(np.array(field, np.int32) for field in (tokens, positions, subtree_end)))
    return tree, last_node


def pad(tree: PromptTree, num_nodes: int) -> PromptTree:
    """Appends nodes that attend only to themselves and that nobody else attends to."""
    missing = num_nodes - len(tree.tokens)
    end = np.arange(len(tree.tokens), num_nodes, dtype=np.int32) + 1
    return PromptTree(
        tokens=np.pad(tree.tokens, (0, missing)),
        positions=np.pad(tree.positions, (0, missing)),
        subtree_end=np.concatenate([tree.subtree_end, end]),
    )


def chains(sequences: jax.Array, lengths: jax.Array) -> PromptTree:
    """Sequences without shared nodes, side by side; what is past a length attends to itself only.

    Args:
      sequences: `[num_sequences, longest]` token ids.
      lengths: `[num_sequences]`.

    Returns:
      A packed forest of `num_sequences * longest` nodes.
    """
    num_sequences, longest = sequences.shape
    place = jnp.broadcast_to(jnp.arange(longest), sequences.shape)
    start = jnp.arange(num_sequences)[:, None] * longest
    end = jnp.where(place < lengths[:, None], start + lengths[:, None], start + place + 1)
    return PromptTree(sequences.ravel(), place.ravel(), end.ravel())


def ancestor_mask(tree: PromptTree, window: int | None = None) -> jax.Array:
    """Who attends to whom: `[num_nodes (query), num_nodes (key)]` bool.

    Args:
      tree: a packed tree.
      window: if given, only the nearest `window` ancestors (the node included) are visible, the
        tree's form of sliding-window attention.
    """
    chex.assert_equal_shape(tree)
    node = jnp.arange(len(tree.tokens))
    mask = (node[None, :] <= node[:, None]) & (node[:, None] < tree.subtree_end[None, :])
    if window is not None:
        mask &= tree.positions[:, None] - tree.positions[None, :] < window
    return mask
