"""The packed tree against brute force, torch, and separate forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmoral.gemma.lora import Lora, init_adapter, prepare
from jaxmoral.prompt_tree import ancestor_mask, pack, pad

SEQUENCES = [
    [2, 5, 9, 11, 12, 13, 14, 15],
    [2, 5, 9, 11, 12, 13, 14, 15, 16, 17],
    [2, 5, 9, 30, 12, 13, 14, 15],
    [2, 40, 41, 42, 43, 44],
    [2, 5, 9, 11, 12, 60],
]


def paths(tree):
    """Each node's tokens from the root, by following the mask."""
    mask = np.asarray(ancestor_mask(tree))
    return [tuple(tree.tokens[np.flatnonzero(row)]) for row in mask]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_nodes_are_exactly_the_prefixes(sequences):
    tree, last = pack(sequences)
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    found = paths(tree)
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
    full, near = np.asarray(ancestor_mask(tree)), np.asarray(ancestor_mask(tree, window))
    for node in range(len(tree.tokens)):
        ancestors = sorted(np.flatnonzero(full[node]), key=lambda j: tree.positions[j])
        assert set(np.flatnonzero(near[node])) == set(ancestors[-window:])


def test_padding_is_seen_by_nobody():
    tree, _ = pack(SEQUENCES)
    size = len(tree.tokens)
    mask = np.asarray(ancestor_mask(pad(tree, size + 3)))
    np.testing.assert_array_equal(mask[:size, :size], ancestor_mask(tree))
    assert not mask[:size, size:].any()
    np.testing.assert_array_equal(mask[size:], np.eye(size + 3, dtype=bool)[size:])


def test_empty_sequences_are_refused():
    for sequences in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one sequence"):
            pack(sequences)


def forward(tiny, adapter, lora, tokens, positions, masks, dtype=jnp.float32):
    config, definition, weights, _ = tiny
    model = nnx.merge(definition, weights)
    layers = prepare(adapter, config, lora, None)
    hidden = model.hidden(jnp.asarray(tokens), jnp.asarray(positions), masks, layers, "elementwise")
    return jax.nn.log_softmax(model.logits(hidden))


def test_tree_equals_torch_on_separate_sequences(tiny):
    """Every position of every sequence, with windows shorter than the sequences."""
    config, _, _, twin = tiny
    lora = Lora(2, 4.0, 0.0, ("q",))
    adapter = init_adapter(jax.random.key(0), config, lora)
    tree, last = pack(SEQUENCES)
    masks = (ancestor_mask(tree, config.sliding_window), ancestor_mask(tree))
    packed = np.asarray(forward(tiny, adapter, lora, tree.tokens, tree.positions, masks))
    full = np.asarray(ancestor_mask(tree))
    for sequence, node in zip(SEQUENCES, last, strict=True):
        with torch.no_grad():
            expected = twin(torch.tensor([sequence])).logits[0].log_softmax(-1).numpy()
        np.testing.assert_allclose(packed[np.flatnonzero(full[node])], expected, atol=2e-5)


def test_tree_gradients_equal_separate_forwards(tiny):
    config = tiny[0]
    lora = Lora(2, 4.0, 0.0, tuple(config.linear_shapes))
    adapter = init_adapter(jax.random.key(1), config, lora)
    adapter = jax.tree.map(  # B is zero at the start; a zero would hide A's gradient
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapter
    )
    tree, last = pack(SEQUENCES)
    weights = jax.random.normal(jax.random.key(2), (len(SEQUENCES), config.vocab_size))

    def packed(adapter):
        masks = (ancestor_mask(tree, config.sliding_window), ancestor_mask(tree))
        rows = forward(tiny, adapter, lora, tree.tokens, tree.positions, masks)[last]
        return jnp.sum(rows * weights)

    def separate(adapter):
        total = 0.0
        for sequence, weight in zip(SEQUENCES, weights, strict=True):
            size = len(sequence)
            causal = np.tril(np.ones((size, size), bool))
            near = causal & ~np.tril(np.ones((size, size), bool), -config.sliding_window)
            masks = (jnp.asarray(near), jnp.asarray(causal))
            rows = forward(tiny, adapter, lora, sequence, np.arange(size), masks)
            total += jnp.sum(rows[-1] * weight)
        return total

    value, gradient = jax.value_and_grad(packed)(adapter)
    expected_value, expected = jax.value_and_grad(separate)(adapter)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert np.abs(theirs).max() > 1e-4
        np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-3)
