"""Thoughts as branches of a prompt tree: one shape, and other contents whenever an agent thinks.

Every prompt has so many branches. A branch is room for a thought, then the cue, then what of the
legal responses' trie comes after the cue:

    prompt ─┬─ thought ───────── cue ─┬─ " action"
            │                         └─ "action"
            ├─ thought ── ░░░░░░ cue ─┬─ ...
            ├─ ...

The layout is made once, for thoughts that take all of their room. A shorter thought leaves nodes
unused: nobody attends to them, and what follows has smaller positions. So a tree is filled by
writing three arrays, within a compiled program, and its log-probabilities are those of the texts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.language.prompt_tree import PromptTree, merge

Tokens = Sequence[int]


class Thoughts(NamedTuple):
    """What was thought at each prompt.

    Attributes:
      tokens: `[num_prompts, num_thoughts, room]` int32 as they were sampled, the one that ended a
        thought included; what follows that does not count.
      lengths: `[num_prompts, num_thoughts]` int32, how many the answer is preceded by: all before
        the one that ended the thought.
    """

    tokens: np.ndarray | jax.Array
    lengths: np.ndarray | jax.Array

    @property
    def sampled(self) -> jax.Array:
        """Which tokens were sampled, `[num_prompts, num_thoughts, room]` bool."""
        return jnp.arange(self.tokens.shape[-1]) <= self.lengths[..., None]


class Branches(NamedTuple):
    """Where in a tree things are.

    Attributes:
      ends: `[num_prompts]` int32, each prompt's last node.
      slots: `[num_prompts, num_thoughts, size]` int32, a branch's nodes: the thought's room, the
        cue, the rest; what pads a branch is its last node once more.
    """

    ends: np.ndarray | jax.Array
    slots: np.ndarray | jax.Array

    def padded(self, spare: tuple[int, int]) -> "Branches":
        """With room for so many more nodes before and behind each branch's."""
        return self._replace(slots=np.pad(self.slots, ((0, 0), (0, 0), spare), mode="edge"))


class Grown(NamedTuple):
    """A tree whose thoughts are not written yet.

    Attributes:
      tree: of `prompt_tree.merge`.
      branches: of its prompts; None if nothing is thought.
      nodes: `[num_prompts * num_thoughts, num_prefixes]` int32, where each partial response ends.
    """

    tree: PromptTree
    branches: Branches | None
    nodes: np.ndarray


def grow(
    prompts: Sequence[Tokens],
    prefixes: Sequence[Tokens],
    *,
    num_thoughts: int,
    room: int,
    cue: Tokens,
    first_free: int,
) -> Grown:
    """Lays out prompts, and behind each its branches.

    Args:
      prompts: token ids.
      prefixes: partial responses, the first one empty.
      num_thoughts: of a prompt.
      room: the most tokens of a thought, at least 1.
      cue: at least one token.
      first_free: from here on no token has this number.
    """
    sequences: list[Tokens] = []
    for index, ids in enumerate(prompts):
        sequences.append(ids)
        for own in range(index * num_thoughts, (index + 1) * num_thoughts):
            # A token that nothing else has keeps a branch apart from all others.
            thought = [first_free + own, *[0] * (room - 1)]
            sequences += [[*ids, *thought, *cue, *prefix] for prefix in prefixes]
    tree, last = merge(sequences)
    last = last.reshape(len(prompts), -1)
    nodes = last[:, 1:].reshape(len(prompts), num_thoughts, -1)
    before = nodes[..., :1] - np.arange(room + len(cue), dtype=np.int32)[::-1]
    slots = np.concatenate([before, nodes[..., 1:]], axis=-1)
    tokens = np.where(tree.tokens < first_free, tree.tokens, 0)
    branches = Branches(last[:, 0], slots)
    return Grown(tree._replace(tokens=tokens), branches, nodes.reshape(-1, len(prefixes)))


def paths(tree: PromptTree, last_node: np.ndarray, longest: int) -> np.ndarray:
    """The nodes of each sequence of `prompt_tree.merge`, `[num_sequences, longest]` int32.

    What pads a row is the sequence's last node once more.
    """
    rows = np.repeat(last_node[:, None], longest, axis=1)
    walk = np.zeros(longest, np.int32)  # the newest node of each depth
    for node, position in enumerate(tree.positions):
        walk[position] = node
        rows[last_node == node, : position + 1] = walk[: position + 1]
    return rows


def fill(tree: PromptTree, slots: np.ndarray | jax.Array, thoughts: Thoughts) -> PromptTree:
    """The tree with these thoughts in it; `slots` are those of its branches."""
    room = thoughts.tokens.shape[-1]
    tokens, positions, ends = map(jnp.asarray, (tree.tokens, tree.positions, tree.subtree_end))
    own, following = slots[..., :room], slots[..., room:]
    used = jnp.arange(room) < thoughts.lengths[..., None]
    unused = room - thoughts.lengths[..., None]
    return tree._replace(
        tokens=tokens.at[own].set(thoughts.tokens),
        positions=positions.at[following].set(positions[following] - unused),
        subtree_end=ends.at[own].set(jnp.where(used, ends[own], own + 1)),
    )


def sources(branches: Branches, room: int) -> jax.Array:
    """Nodes that a thought's tokens are predicted at.

    Args:
      branches: of a tree.
      room: the most tokens of a thought.

    Returns:
      `[num_prompts, num_thoughts, room]` int32.
    """
    slots = jnp.asarray(branches.slots)[..., : room - 1]
    first = jnp.broadcast_to(jnp.asarray(branches.ends)[:, None, None], (*slots.shape[:2], 1))
    return jnp.concatenate([first, slots], axis=-1)
