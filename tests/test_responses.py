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


def outcome(sequence, labels):
    """0, 1 or 2 for one sampled response, by the plain definition of legality."""
    text = b""
    for token in sequence:
        if token == STOP:
            break
        if PIECES[token] is None:
            return 2
        text += PIECES[token]
    stripped = text.strip()
    return labels.index(stripped) if stripped in labels else 2


def outcome_after_a_space(sequence, labels, budget):
    """The same where a response that begins with one space may go on until it is a label."""
    text = b""
    for place, token in enumerate(sequence, 1):
        if token == STOP:
            break
        if PIECES[token] is None:
            return 2
        text += PIECES[token]
        spaced = text[:1] == b" " and text[1:2].strip() == text[1:2]
        if place >= budget and (text.strip() in labels or not spaced):
            break
    return labels.index(text.strip()) if text.strip() in labels else 2


@pytest.mark.parametrize("labels", [[b"ab1", b"ab2"], [b"a", b"b"], [b"ab", b"b1"]])
@pytest.mark.parametrize("budgets", [(2, 3), (1, 3), (3, 2)])
def test_a_space_may_cost_a_token_more(labels, budgets):
    budget, longest = budgets[0], max(budgets)
    if budget == 1 and len(labels[0]) > 2:
        labels = [b"a", b"b"]
    responses = spell(labels, index_pieces(PIECES), [STOP], *budgets, max_prefixes=1000)
    logits, log_probs = random_model(2, responses.prefixes)
    expected = np.zeros(3)
    for sequence in itertools.product(range(len(PIECES)), repeat=longest):
        p = np.exp(sum(log_probs(sequence[:i])[token] for i, token in enumerate(sequence)))
        expected[outcome_after_a_space(sequence, labels, budget)] += p
    rows = np.stack([logits[prefix] for prefix in responses.prefixes])
    ours = jnp.exp(compiled(rows[None], responses.trie))[0]
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    plain = spell(labels, index_pieces(PIECES), [STOP], budget, max_prefixes=1000)
    assert set(plain.prefixes) <= set(responses.prefixes)
    if labels == [b"ab1", b"ab2"]:
        assert (len(responses.prefixes) > len(plain.prefixes)) == (longest > budget)


def option(sequence, labels, budgets):
    """Which of several labels a response is; each may take as many tokens as its own budget."""
    text = b""
    for place, token in enumerate(sequence, 1):
        if token == STOP or PIECES[token] is None:
            break
        text += PIECES[token]
        if text.strip() in labels:
            budget = budgets[labels.index(text.strip())]
            if place >= budget:
                return labels.index(text.strip()) if place == budget else len(labels)
    if token == STOP and text.strip() in labels:
        return labels.index(text.strip())
    return len(labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "budgets"),
    [
        ([b"a", b"b1", b"x"], [1, 2, 1]),
        ([b"ab1", b"ab2", b"a2", b"b"], [3, 2, 2, 1]),
        ([b"a b", b"b a", b"x", b"2"], [3, 3, 1, 2]),
        ([b"xx", b"1", b"2", b"ab", b"ax"], [2, 1, 1, 1, 2]),
    ],
)
def test_several_options_equal_brute_force(labels, budgets):
    responses = spell(labels, index_pieces(PIECES), [STOP], budgets, max_prefixes=1000)
    logits, log_probs = random_model(3, responses.prefixes)
    expected = np.zeros(len(labels) + 1)
    for sequence in itertools.product(range(len(PIECES)), repeat=max(budgets)):
        p = np.exp(sum(log_probs(sequence[:i])[token] for i, token in enumerate(sequence)))
        expected[option(sequence, labels, budgets)] += p
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
    expected = np.zeros(3)
    for sequence in itertools.product(range(len(PIECES)), repeat=budget):
        p = np.exp(sum(log_probs(sequence[:i])[token] for i, token in enumerate(sequence)))
        expected[outcome(sequence, labels)] += p
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
