"""The one-pass normaliser against plain logits and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmoral.models.quantise import dequantise, quantise
from jaxmoral.models.vocabulary import cut, log_sum_exp

VOCABULARY, WIDTH, ROWS, PLACES = 96, 16, 5, 3


def problem(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    table = jax.random.normal(keys[0], (VOCABULARY, WIDTH))
    hidden = 3 * jax.random.normal(keys[1], (ROWS, PLACES, WIDTH))
    excluded = jax.random.bernoulli(keys[2], 0.2, (PLACES, VOCABULARY))
    return table, hidden, excluded.at[0, :24].set(True)  # all of a place's first pieces


def plain(table, hidden, excluded, cap):
    logits = jnp.einsum("rpd,vd->rpv", hidden, table)
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    return jax.nn.logsumexp(jnp.where(excluded, -jnp.inf, logits), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize(("at_once", "splits"), [(VOCABULARY, 1), (12, 1), (24, 2), (7, 4)])
def test_sums_and_gradients_equal_those_of_all_logits(cap, at_once, splits):
    table, hidden, excluded = problem()
    weights = jax.random.normal(jax.random.key(9), (ROWS, PLACES))
    read = lambda leaves: leaves[0]

    def ours(hidden):
        vocabulary = cut((table,), excluded, at_once, splits)
        return jnp.sum(weights * log_sum_exp(read, cap, vocabulary, hidden))

    def expected(hidden):
        return jnp.sum(weights * plain(table, hidden, excluded, cap))

    for one, other in zip(
        jax.value_and_grad(ours)(hidden), jax.value_and_grad(expected)(hidden), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(hidden), expected(hidden), rtol=1e-5)  # without a gradient
    check_grads(ours, (hidden,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_pieces_are_as_large_as_allowed():
    table, _, excluded = problem()
    sizes = [cut((table,), excluded, most).excluded.shape[2:] for most in (96, 95, 32, 13, 1, 0)]
    assert sizes == [(1, 96), (2, 48), (3, 32), (8, 12), (96, 1), (96, 1)]


def test_a_quantised_table_is_read_piece_by_piece():
    table, hidden, excluded = problem(1)
    codes, scales = quantise(np.asarray(table), "int8")
    vocabulary = cut((jnp.asarray(codes), jnp.asarray(scales)), excluded, 16)
    found = log_sum_exp(lambda leaves: dequantise(*leaves), None, vocabulary, hidden)
    rounded = dequantise(jnp.asarray(codes), jnp.asarray(scales))
    np.testing.assert_allclose(found, plain(rounded, hidden, excluded, None), rtol=1e-5)


@pytest.mark.slow
def test_no_more_logits_than_a_piece_are_kept():
    """What a gradient needs does not grow with the vocabulary."""
    table, hidden, excluded = problem()

    def loss(hidden, at_once):
        vocabulary = cut((table,), excluded, at_once)
        return jnp.sum(log_sum_exp(lambda leaves: leaves[0], None, vocabulary, hidden))

    kept = jax.eval_shape(lambda hidden: jax.vjp(lambda h: loss(h, 12), hidden)[1], hidden)
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) <= 2 * hidden.size
