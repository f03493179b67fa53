"""The packed tree against brute force, torch, and separate forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmoral.language.prompt_tree import Sight, pack, pack_unshared, pad, sight, stack
from jaxmoral.models.lora import Lora, init_adapter, prepare

SEQUENCES = [
    [2, 5, 9, 11, 12, 13, 14, 15],
    [2, 5, 9, 11, 12, 13, 14, 15, 16, 17],
    [2, 5, 9, 30, 12, 13, 14, 15],
    [2, 40, 41, 42, 43, 44],
    [2, 5, 9, 11, 12, 60],
]


FAR = 10**6
SMALL = 64, 8  # nodes in one block, and the depth of the trees that are drawn
compiled_sight = jax.jit(sight, static_argnums=1)


def seen_by(tree, window=FAR):
    """How often each node attends to each other, `[2 (sliding, global), num_nodes, num_nodes]`."""
    keys, masks = map(np.asarray, compiled_sight(tree, window))
    counts = np.zeros((2, len(tree.tokens), len(tree.tokens)), int)
    kind, block, row, key = np.nonzero(masks)
    np.add.at(counts, (kind, block * masks.shape[2] + row, keys[block, key]), 1)
    return counts


def ancestors(tree):
    """What `seen_by` should be without a window, from the definition of a subtree."""
    node = np.arange(len(tree.tokens))
    return (node <= node[:, None]) & (node[:, None] < np.asarray(tree.subtree_end))


def paths(tree):
    """Each node's tokens from the root, by following the mask."""
    return [tuple(tree.tokens[np.flatnonzero(row)]) for row in seen_by(tree)[1]]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_nodes_are_exactly_the_prefixes(sequences):
    tree, last = pack(sequences)
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    found = paths(pad(tree, *SMALL))[: len(tree.tokens)]
    assert len(found) == len(set(found)) == len(prefixes)
    assert set(found) == prefixes
    for sequence, node in zip(sequences, last, strict=True):
        assert found[node] == tuple(sequence)
    np.testing.assert_array_equal(tree.positions, [len(path) - 1 for path in found])


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=6),
    st.integers(1, 5),
)
@settings(max_examples=50, deadline=None)
def test_window_sees_the_nearest_ancestors(sequences, window):
    tree, _ = pack(sequences)
    near, full = seen_by(pad(tree, *SMALL), window)
    for node in range(len(tree.tokens)):
        ancestors = sorted(np.flatnonzero(full[node]), key=lambda j: tree.positions[j])
        assert set(np.flatnonzero(near[node])) == set(ancestors[-window:])


def test_padding_is_seen_by_nobody():
    tree, _ = pack(SEQUENCES)
    size = len(tree.tokens)
    mask = seen_by(pad(tree, size + 3, 9))[1]
    np.testing.assert_array_equal(mask[:size, :size], seen_by(tree)[1])
    assert not mask[:size, size:].any()
    np.testing.assert_array_equal(mask[size:], np.eye(size + 3, dtype=int)[size:])


@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(1, 30), st.sampled_from([1, 2, 8]))
@settings(max_examples=15, deadline=None)
def test_blocks_see_every_ancestor_once_and_nothing_else(seed, length, count, multiple):
    """Trees of any shape, cut into any number of blocks, alone and stacked with another."""
    random = np.random.default_rng(seed)
    sequences = random.integers(0, 2, (count, length)).tolist()  # they part early or late
    shared = random.integers(0, length, count)
    rows = [
        [*sequences[0][:keep], *row[keep:]] for row, keep in zip(sequences, shared, strict=True)
    ]
    tree, last = pack(rows)
    other, _ = pack([[1] * (length // 2 + 1)])
    stacked = stack([tree, other], multiple)
    for each in (
        tree,
        jax.tree.map(lambda x: x[0], stacked),
        jax.tree.map(lambda x: x[1], stacked),
    ):
        np.testing.assert_array_equal(seen_by(each)[1], ancestors(each))
    assert stacked.paths.shape[1] % multiple == 0
    full = ancestors(tree)
    for row, node in zip(rows, last, strict=True):
        assert tree.tokens[np.flatnonzero(full[node])].tolist() == row


def test_a_block_needs_one_path_and_itself():
    """The keys of a tree of 3,000 leaves do not grow with the tree."""
    rows = [[0] * 90 + [i // 100, i % 100, 1] for i in range(3000)]
    tree, _ = pack(rows)
    keys, masks = sight(tree, FAR)
    assert len(tree.tokens) > 6000
    assert masks.shape[1] * masks.shape[2] == len(tree.tokens)
    assert keys.shape[1] <= 192


@pytest.mark.parametrize("longest", [7, 64, 65, 150])
def test_chains_are_causal(longest):
    lengths = np.array([longest, 3, longest // 2 + 1])
    forest = jax.jit(pack_unshared)(jnp.ones((3, longest), jnp.int32), lengths)
    room = len(forest.tokens) // 3
    counts = seen_by(forest)[1]
    expected = np.eye(3 * room, dtype=int)
    for index, length in enumerate(lengths):
        start = index * room
        expected[start : start + length, start : start + length] = np.tri(length)
    np.testing.assert_array_equal(counts, expected)


def test_empty_sequences_are_refused():
    for sequences in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one sequence"):
            pack(sequences)


def forward(tiny, adapter, lora, tokens, positions, seen):
    config, definition, weights, _ = tiny
    model = nnx.merge(definition, weights)
    layers = prepare(adapter, config, lora, None)
    hidden = model.hidden(jnp.asarray(tokens), jnp.asarray(positions), seen, layers, "elementwise")
    return jax.nn.log_softmax(model.logits(hidden))


def test_tree_equals_torch_on_separate_sequences(tiny):
    """Every position of every sequence, with windows shorter than the sequences."""
    config, _, _, twin = tiny
    lora = Lora(2, 4.0, 0.0, ("q",))
    adapter = init_adapter(jax.random.key(0), config, lora)
    tree, last = pack(SEQUENCES)
    seen = sight(tree, config.sliding_window)
    packed = np.asarray(forward(tiny, adapter, lora, tree.tokens, tree.positions, seen))
    full = ancestors(tree)
    for sequence, node in zip(SEQUENCES, last, strict=True):
        with torch.no_grad():
            expected = twin(torch.tensor([sequence])).logits[0].log_softmax(-1).numpy()
        np.testing.assert_allclose(packed[np.flatnonzero(full[node])], expected, atol=2e-5)


def test_tree_gradients_equal_separate_forwards(tiny):
    config = tiny[0]
    lora = Lora(2, 4.0, 0.0, config.linear_names)
    adapter = init_adapter(jax.random.key(1), config, lora)
    adapter = jax.tree.map(  # B is zero at the start; a zero would hide A's gradient
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapter
    )
    tree, last = pack(SEQUENCES)
    weights = jax.random.normal(jax.random.key(2), (len(SEQUENCES), config.vocab_size))

    @jax.jit
    @jax.value_and_grad
    def packed(adapter):
        seen = sight(tree, config.sliding_window)
        rows = forward(tiny, adapter, lora, tree.tokens, tree.positions, seen)[last]
        return jnp.sum(rows * weights)

    size = max(map(len, SEQUENCES))
    causal = np.tri(size, dtype=bool)
    near = causal & ~np.tri(size, k=-config.sliding_window, dtype=bool)
    seen = Sight(jnp.arange(size)[None], jnp.stack([near, causal])[:, None])

    @jax.jit
    @jax.value_and_grad
    def alone(adapter, sequence, end, weight):
        rows = forward(tiny, adapter, lora, sequence, np.arange(size), seen)
        return jnp.sum(rows[end] * weight)

    value, gradient = packed(adapter)
    separate = [
        alone(adapter, np.pad(sequence, (0, size - len(sequence))), len(sequence) - 1, weight)
        for sequence, weight in zip(SEQUENCES, weights, strict=True)
    ]
    expected_value, expected = jax.tree.map(lambda *x: np.sum(x, axis=0), *separate)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert np.abs(theirs).max() > 1e-4
        np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-3)
