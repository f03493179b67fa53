"""The exact response distribution against the enumeration of every token sequence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoral.language.responses import (
    index_pieces,
    outcome_log_probs,
    outcomes,
    path_log_probs,
    spell,
)

# A vocabulary with overlapping pieces, white space, byte-like pieces, a control and a stop token.
PIECES = [b"a", b"ab", b"b", b" ", b" a", b"1", b"2", b"b1", b"\n", None, b"", b"x"]
STOP = 10
BUDGETS = (2, 3, 4)
compiled = jax.jit(outcome_log_probs)


def random_model(seed, prefixes):
    """A random next-token distribution for every prefix: logits by prefix, and log-probabilities.

    The given prefixes are drawn first, the others when they are asked for.
    """
    generator, logits, normal = np.random.default_rng(seed), {}, {}

    def log_probs(prefix):
        if prefix not in logits:
            row = logits[prefix] = 3 * generator.normal(size=len(PIECES))
            normal[prefix] = (row - np.log(np.exp(row).sum())).tolist()
        return normal[prefix]

    for prefix in prefixes:
        log_probs(prefix)
    return logits, log_probs


def read(sequence, labels, budgets, spaced):
    """Which label a response is, by the plain definition; `len(labels)` is illegal.

    Each may take as many tokens as its own budget, or as that after a space.
    """
    text = b""
    for place, token in enumerate(sequence, 1):
        if token == STOP or PIECES[token] is None:
            break
        text += PIECES[token]
        space = text.startswith(b" ")
        written = text[space:].rstrip()
        if written in labels:
            budget = (spaced if space else budgets)[labels.index(written)]
            if place >= budget:
                return labels.index(written) if place == budget else len(labels)
    written = text.removeprefix(b" ").rstrip()
    return labels.index(written) if token == STOP and written in labels else len(labels)


def by_enumeration(log_probs, labels, budgets, spaced):
    """The distribution over labels and illegal, from every sequence of tokens."""
    expected = np.zeros(len(labels) + 1)
    for sequence in itertools.product(range(len(PIECES)), repeat=max(*budgets, *spaced)):
        p = np.exp(sum(log_probs(sequence[:i])[token] for i, token in enumerate(sequence)))
        expected[read(sequence, labels, budgets, spaced)] += p
    return expected


@pytest.mark.parametrize("labels", [[b"ab1", b"ab2"], [b"a", b"b"], [b"ab", b"b1"]])
@pytest.mark.parametrize("budgets", [(2, 3), (1, 3), (3, 2), (2, 1)])
def test_another_number_of_tokens_after_a_space(labels, budgets):
    budget, spaced = budgets
    if min(budgets) == 1 and len(labels[0]) > 2:
        labels = [b"a", b"b"]
    pieces = index_pieces(PIECES)
    responses = spell(labels, pieces, [STOP], budget, spaced, max_prefixes=1000)
    logits, log_probs = random_model(2, responses.prefixes)
    expected = by_enumeration(log_probs, labels, [budget] * 2, [spaced] * 2)
    rows = np.stack([logits[prefix] for prefix in responses.prefixes])
    ours = jnp.exp(compiled(rows[None], responses.trie))[0]
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    assert expected.min() > 0
    assert all(PIECES[prefix[0]] != b"\n" for prefix in responses.prefixes if prefix)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "budgets", "spaced"),
    [
        ([b"a", b"b1", b"x"], [1, 2, 1], [1, 2, 2]),
        ([b"ab1", b"ab2", b"a2", b"b"], [3, 2, 2, 1], [3, 2, 2, 1]),
        ([b"a b", b"b a", b"x", b"2"], [3, 3, 1, 2], [2, 3, 2, 2]),
        ([b"xx", b"1", b"2", b"ab", b"ax"], [2, 1, 1, 1, 2], [3, 2, 2, 2, 2]),
    ],
)
def test_several_options_equal_brute_force(labels, budgets, spaced):
    responses = spell(labels, index_pieces(PIECES), [STOP], budgets, spaced, max_prefixes=1000)
    logits, log_probs = random_model(3, responses.prefixes)
    expected = by_enumeration(log_probs, labels, budgets, spaced)
    rows = np.stack([logits[prefix] for prefix in responses.prefixes])
    paths = path_log_probs(jnp.asarray(rows)[None], responses.trie)
    ours = jnp.exp(outcomes(paths, responses.trie, len(labels)))[0]
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    assert expected.min() > 0
    more = jnp.exp(outcomes(paths, responses.trie, len(labels) + 2))[0]  # of larger questions
    np.testing.assert_allclose(more, [*expected[:-1], 0, 0, expected[-1]], rtol=2e-5)


def test_a_short_option_needs_no_room_for_a_long_one():
    """White space before a short option is not tried out as far as a long one would allow."""
    pieces = [bytes([code]) for code in b"abcdefgh"] + [b" ", b"\n", b"\t", b"  "]
    long = spell([b"abcdefgh", b"h"], index_pieces(pieces), [], [8, 1], max_prefixes=10)
    assert (8,) not in long.prefixes
    with pytest.raises(ValueError, match="more than 10 partial responses"):
        spell([b"abcdefgh", b"h"], index_pieces(pieces), [], 8, max_prefixes=10)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("labels", [[b"ab1", b"ab2"], [b"a", b"b"], [b"ab", b"b1"]])
@pytest.mark.parametrize("seed", [0, 1])
def test_distribution_equals_brute_force(budget, labels, seed):
    responses = spell(labels, index_pieces(PIECES), [STOP], budget, max_prefixes=1000)
    logits, log_probs = random_model(seed, responses.prefixes)
    expected = by_enumeration(log_probs, labels, [budget] * 2, [budget] * 2)
    rows = np.stack([logits[prefix] for prefix in responses.prefixes])
    ours = jnp.exp(compiled(rows[None], responses.trie))[0]
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    assert expected[:2].min() > 0


def test_tiny_illegal_probabilities_keep_their_precision():
    responses = spell([b"a", b"b"], index_pieces([b"a", b"b", b"x"]), [], 1)
    logits = jnp.array([[[0.0, 0.0, -60.0]]])
    illegal = outcome_log_probs(logits, responses.trie)[0, 2]
    np.testing.assert_allclose(illegal, -60 - np.log(2), rtol=1e-6)


def test_gradient_equals_finite_differences():
    responses = spell([b"ab1", b"ab2"], index_pieces(PIECES), [STOP], 3)
    shape = (1, len(responses.prefixes), len(PIECES))
    logits = jax.random.normal(jax.random.key(0), shape)
    weights = jnp.array([0.3, -1.0, 2.0])
    loss = jax.jit(lambda logits: jnp.sum(compiled(logits, responses.trie) * weights))
    gradient = jax.grad(loss)(logits)
    for index in [(0, 0, 1), (0, 1, 5), (0, 2, 11), (0, 0, 9)]:
        bump = jnp.zeros(shape).at[index].set(1e-2)
        slope = (loss(logits + bump) - loss(logits - bump)) / 2e-2
        np.testing.assert_allclose(gradient[index], slope, atol=2e-3)


def test_labels_beyond_the_budget_are_refused():
    with pytest.raises(ValueError, match="no response of at most 1 tokens"):
        spell([b"ab1", b"ab2"], index_pieces(PIECES), [STOP], 1)


def test_the_number_of_partial_responses_is_bounded():
    assert (
        len(spell([b"ab1", b"ab2"], index_pieces(PIECES), [STOP], 3, max_prefixes=64).prefixes)
        <= 64
    )
    with pytest.raises(ValueError, match="more than 64 partial responses of up to 60 tokens"):
        spell([b"ab1", b"ab2"], index_pieces(PIECES), [STOP], 60, max_prefixes=64)
