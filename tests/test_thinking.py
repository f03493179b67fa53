"""Thinking: trees against flat texts, samples and gradients against every thought enumerated."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from thinking_models import CUE, PROMPTS, RESPONSES, ROOM, every_thought, everywhere, thinker
from tiny_model import SHARING

from jaxmoral.config import PPOConfig, ThinkingConfig
from jaxmoral.language.prompt_tree import pack, pad, sight
from jaxmoral.language.responses import outcome_log_probs
from jaxmoral.language.thought_tree import Thoughts
from jaxmoral.learning import thinking_policy
from jaxmoral.learning.batches import Batch
from jaxmoral.learning.losses import exact_entropy, ppo_loss
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.thinking import (
    Reading,
    ThoughtBatch,
    advantages,
    information_values,
    make_thought_batch,
    mean_answers,
    means_of_others,
    thought_loss,
    visits,
)
from jaxmoral.models.lora import prepare
from jaxmoral.models.sample import draw
from jaxmoral.models.vocabulary import block_sums, cut

PLAIN = PPOConfig(kl_coef=0.0, entropy_coef=0.0, value_coef=0.0)
GENERATOR = np.random.default_rng(0)
WEIGHTS = np.array([0.5, 0.2, 0.3])  # how often each prompt comes
GAINS = GENERATOR.normal(size=(3, 3))  # of each answer to each prompt


def flat_reader(policy, weights, trainable):
    """Hidden states and next-token logits after every token of one text alone, of up to 16."""

    @jax.jit
    def compute(tree):
        model = policy.bind(weights, None).model()
        adapter = prepare(trainable["adapter"], policy.config, policy.lora, None)
        seen = sight(tree, policy.config.sliding_window)
        hidden = model.hidden(tree.tokens, tree.positions, seen, adapter, "none")
        return hidden, model.logits(hidden)

    def read(ids):
        tree = jax.tree.map(jnp.asarray, pad(pack([ids])[0], 16, 15))
        return tuple(np.asarray(found)[: len(ids)] for found in compute(tree))

    return read


@pytest.fixture(scope="module")
def whole():
    """A thinker, and the compiled reading of all its thoughts by given parameters."""
    policy, weights, inputs, trainable = thinker(thoughts=every_thought()[1].size)
    read = jax.jit(lambda trainable: policy.bind(weights, inputs).read(trainable, everywhere()))
    return policy, read, trainable


@pytest.mark.slow
@pytest.mark.parametrize(("chunks", "at_once"), [(1, 4), (3, 512)])
def test_a_tree_of_thoughts_equals_the_texts_one_by_one(chunks, at_once, monkeypatch):
    """Answers, tokens and values of thoughts of every length, in one tree or in three."""
    monkeypatch.setattr(thinking_policy, "NORMALISED_AT_ONCE", at_once)
    policy, weights, inputs, trainable = thinker(thoughts=4, chunks=chunks)
    tokens, lengths = every_thought()
    some = np.array([[0, 9, 7, 40], [3, 0, 22, 11], [30, 8, 1, 0]])  # with each length
    thoughts = Thoughts(tokens[0][some], lengths[0][some])
    assert set(thoughts.lengths.ravel()) == {0, 1, 2}
    read = jax.jit(lambda thoughts: policy.bind(weights, inputs).read(trainable, thoughts))
    reading = jax.device_get(read(thoughts))
    flat = flat_reader(policy, weights, trainable)
    for (prompt, own), length in np.ndenumerate(thoughts.lengths):
        written = thoughts.tokens[prompt, own].tolist()
        before = PROMPTS[prompt] + written[:length]
        rows = []
        for prefix in RESPONSES.prefixes:
            _, logits = flat([*before, *CUE, *prefix])
            rows.append(logits[-1])
        expected = outcome_log_probs(np.stack(rows)[None], RESPONSES.trie)[0]
        np.testing.assert_allclose(reading.answers[prompt, own], expected, atol=1e-5)
        hidden, logits = flat(before)
        log_probs = log_softmax(logits, -1)
        for place, token in enumerate(written):
            number = 0.0
            if place <= length:
                number = log_probs[len(PROMPTS[prompt]) - 1 + place, token]
            assert reading.tokens[prompt, own, place] == pytest.approx(float(number), abs=1e-5)
        head, last = trainable["value_head"], len(PROMPTS[prompt]) - 1
        value = float(hidden[last] @ head["kernel"] + head["bias"])
        assert reading.values[prompt] == pytest.approx(value, abs=1e-5)


def test_everything_that_can_be_thought_adds_up(whole):
    _, read, trainable = whole
    reading = read(trainable)
    np.testing.assert_allclose(np.exp(reading.tokens.sum(-1)).sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.exp(reading.answers).sum(-1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def enumerated(whole):
    """Probabilities of all thoughts `[3, n]`, and answers after them `[3, n, 3]`."""
    _, read, trainable = whole
    reading = read(trainable)
    return np.exp(reading.tokens.sum(-1)), np.exp(reading.answers)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 3])
def test_thoughts_come_as_often_as_their_probability(enumerated, chunks):
    """And the table is their mean answer without bias, in one tree and in three."""
    policy, weights, inputs, trainable = thinker(thoughts=6, chunks=chunks)
    model = policy.bind(weights, inputs)

    @jax.jit
    def think(key):
        thoughts = model.think(trainable, key)
        return thoughts, jnp.exp(model.read(trainable, thoughts).table.log_probs)

    keys = jax.random.split(jax.random.key(0), 600)
    thoughts, tables = jax.lax.map(think, keys)
    probabilities, answers = enumerated
    tokens, lengths = every_thought()
    names = [tuple(row[: n + 1]) for row, n in zip(tokens[0].tolist(), lengths[0], strict=True)]
    for prompt in range(len(PROMPTS)):
        rows = np.asarray(thoughts.tokens[:, prompt]).reshape(-1, ROOM)
        ends = np.asarray(thoughts.lengths[:, prompt]).ravel()
        found = [tuple(row[: n + 1]) for row, n in zip(rows.tolist(), ends, strict=True)]
        assert set(found) <= set(names)
        for name, p in zip(names, probabilities[prompt], strict=True):
            error = 5 * np.sqrt(p * (1 - p) / len(found))
            assert abs(found.count(name) / len(found) - p) < error, name
    expected = np.einsum("pt,pto->po", probabilities, answers)
    error = 5 * np.asarray(tables).std(0) / np.sqrt(len(keys))
    assert (np.abs(tables.mean(0) - expected) < error).all()
    alike = (thoughts.tokens[:, :, 0] == thoughts.tokens[:, :, 1]).all(-1).mean()
    assert alike < 0.5  # a prompt's thoughts differ


@pytest.mark.slow
def test_layers_that_differ_sample_what_their_tree_says():
    """Shared keys and values, two head sizes: every thought as often as the tree's probability."""
    sizes = SHARING | {"num_layers": 6, "global_layers": (False, True) * 3, "num_shared": 2}
    sizes |= {"per_layer_dim": 0}
    policy, weights, inputs, trainable = thinker(thoughts=every_thought()[1].size, **sizes)
    read = jax.jit(lambda trainable: policy.bind(weights, inputs).read(trainable, everywhere()))
    probabilities = np.exp(read(trainable).tokens.sum(-1))
    few, _, inputs, _ = thinker(thoughts=6, **sizes)
    think = jax.jit(lambda key: few.bind(weights, inputs).think(trainable, key))
    thoughts = jax.lax.map(think, jax.random.split(jax.random.key(0), 400))
    tokens, lengths = every_thought()
    for prompt in range(len(PROMPTS)):
        rows = np.asarray(thoughts.tokens[:, prompt]).reshape(-1, ROOM)
        for row, p in zip(tokens[0], probabilities[prompt], strict=True):
            p = float(p)
            share = (rows == row).all(-1).mean()
            assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(rows)) + 1e-6


def test_draws_follow_their_distribution():
    """Of 1,000 tokens in blocks of 100, some of them impossible."""
    logits = np.random.default_rng(1).normal(size=(2, 1000)) * 2
    logits[:, ::3] = -np.inf
    logits = jnp.asarray(logits, jnp.float32)
    uniforms = jax.random.uniform(jax.random.key(0), (2, 60_000, 2))
    sums = jax.nn.logsumexp(logits.reshape(2, 10, 100), axis=-1)
    logits_of = partial(jnp.take_along_axis, logits, axis=-1)
    drawn = np.asarray(jax.jit(lambda uniforms: draw(uniforms, sums, 100, logits_of))(uniforms))
    logits = np.asarray(logits, np.float64)
    for row, tokens in zip(logits, drawn, strict=True):
        expected = np.exp(row) / np.exp(row).sum() * len(tokens)
        found = np.bincount(tokens, minlength=1000)
        assert found[expected == 0].sum() == 0
        often = expected > 5
        chi = ((found - expected)[often] ** 2 / expected[often]).sum()
        assert abs(chi - often.sum()) < 5 * np.sqrt(2 * often.sum())


@pytest.mark.parametrize(("cap", "at_once", "splits", "width"), [(None, 24, 1, 8), (2.0, 4, 2, 2)])
def test_sums_of_blocks_are_those_of_all_logits(cap, at_once, splits, width):
    random = np.random.default_rng(0)
    table, hidden = random.normal(size=(24, 5)), random.normal(size=(3, 5))
    logits = hidden @ table.T
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    expected = np.log(np.exp(logits).reshape(3, -1, width).sum(-1))
    table, hidden = jnp.asarray(table, jnp.float32), jnp.asarray(hidden, jnp.float32)
    vocabulary = cut(table, jnp.zeros((1, 24), bool), at_once, splits)
    own = block_sums(lambda rows: rows, cap, vocabulary, hidden, width)
    np.testing.assert_allclose(own, expected, rtol=1e-5)


def answers_batch(table):
    """Every answer to every prompt, with its gain."""
    table = jax.lax.stop_gradient(table)
    weight = jnp.asarray(WEIGHTS, table.log_probs.dtype)[:, None] * jnp.exp(table.log_probs)
    zeros = jnp.zeros(weight.size, weight.dtype)
    gains = jnp.asarray(GAINS, weight.dtype).ravel()
    return Batch(weight.ravel(), None, None, table.log_probs.ravel(), zeros, gains, zeros)


def total_loss(reading, behaviour, thoughts, thinking, config=PLAIN):
    """The whole loss of a reading, given what the behaviour policy made of the same thoughts."""
    batch = answers_batch(behaviour.table)
    reference = jnp.full_like(reading.answers, -jnp.log(3.0))

    def loss(table, others):
        return ppo_loss(
            table, batch, reference=others, kl_coef=0.0, entropy_coef=0.0, config=config
        )[0]

    about = make_thought_batch(loss, batch, behaviour, reference, thinking.baseline)
    own, _ = thought_loss(
        reading.tokens,
        about,
        reference=behaviour.tokens,
        sampled=thoughts.sampled,
        thinking=thinking,
        config=config,
    )
    return loss(reading.table, mean_answers(reference)) + own


def test_thoughts_are_learned_where_nobody_comes_if_the_loss_looks_there():
    """A loss of the whole policy, such as the exploitability, whatever the batch visits."""
    generator = np.random.default_rng(0)
    answers = jax.nn.log_softmax(jnp.asarray(generator.normal(size=(3, 4, 3)), jnp.float32))
    reading = Reading(answers, jnp.zeros(3), jnp.full((3, 4, 2), -1.0))
    thinking = ThinkingConfig(tokens=2, kl_coef=0.5)
    loss = lambda table, reference: jnp.sum(GAINS * jnp.exp(table.log_probs))
    weight = jnp.asarray([[0.25] * 3, [0.75] * 3, [0.0] * 3]).ravel()
    zeros = jnp.zeros(9)
    batch = Batch(weight, None, None, reading.table.log_probs.ravel(), zeros, zeros, zeros)
    about = make_thought_batch(loss, batch, reading, reading.answers, "group")

    def thoughts_loss(tokens):
        sampled = jnp.ones((3, 4, 2), bool)
        given = {"reference": reading.tokens, "sampled": sampled, "thinking": thinking}
        return thought_loss(tokens, about, config=PLAIN, **given)[0]

    worth = -np.einsum("pro,po->pr", np.exp(answers), GAINS)  # the loss is linear in the answers
    expected = -(worth - worth.mean(1, keepdims=True)) / 3  # the mean of the three others, a fourth
    found = jax.grad(thoughts_loss)(reading.tokens)
    np.testing.assert_allclose(found, expected[..., None] * np.ones(2), rtol=1e-4, atol=1e-6)


def read_table(theta, chosen):
    """What a table that thinks makes of thoughts, `[3, n]` numbers of those enumerated."""
    tokens, lengths = map(jnp.asarray, every_thought())
    thoughts = Thoughts(tokens[0][chosen], lengths[0][chosen])
    prompt, first, second = jnp.arange(3)[:, None], *jnp.moveaxis(thoughts.tokens, -1, 0)
    steps = [
        jax.nn.log_softmax(theta["first"])[prompt, first],
        jax.nn.log_softmax(theta["second"])[prompt, first, second],
    ]
    made = jnp.where(thoughts.sampled, jnp.stack(steps, -1), 0)
    answers = jax.nn.log_softmax(theta["answers"])[prompt, chosen]
    return thoughts, Reading(answers, jnp.zeros(3), made)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("baseline", ["group", "value"])
def test_the_estimators_mean_is_the_gradient_by_finite_differences(baseline, ratio):
    """In float64: every pair of thoughts of a table that thinks, weighted by its probability."""
    number = every_thought()[1].size
    thinking = ThinkingConfig(tokens=2, baseline=baseline, ratio=ratio, kl_coef=0.0)

    @jax.jit
    def expected_loss(theta):
        _, reading = read_table(theta, jnp.tile(jnp.arange(number), (3, 1)))
        chances = jnp.exp(reading.tokens.sum(-1))
        policy = jnp.einsum("pt,pto->po", chances, jnp.exp(reading.answers))
        return -jnp.sum(WEIGHTS[:, None] * policy * GAINS)

    def estimate(theta, pair):
        chosen = jnp.tile(pair, (3, 1))
        thoughts, behaviour = jax.lax.stop_gradient(read_table(theta, chosen))
        loss = lambda theta: total_loss(read_table(theta, chosen)[1], behaviour, thoughts, thinking)
        chance = jnp.exp(behaviour.tokens.sum(-1)).prod(-1)  # of the pair at each prompt
        gradient = jax.grad(loss)(theta)
        return jax.tree.map(lambda g: g * chance.reshape(3, *[1] * (g.ndim - 1)), gradient)

    with jax.enable_x64(True):
        generator = np.random.default_rng(2)
        shapes = {"first": (3, 7), "second": (3, 7, 7), "answers": (3, number, 3)}
        start = {name: generator.normal(size=shape) for name, shape in shapes.items()}
        pairs = jnp.array(list(itertools.product(range(number), repeat=2)))
        add = lambda total, pair: (jax.tree.map(jnp.add, total, estimate(start, pair)), None)
        zeros = jax.tree.map(jnp.zeros_like, start)
        mean, _ = jax.jit(lambda pairs: jax.lax.scan(add, zeros, pairs))(pairs)
        for name, shape in shapes.items():
            assert mean[name].dtype == np.float64
            for index in map(tuple, generator.integers(0, shape, (12, len(shape)))):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = {key: np.array(leaf) for key, leaf in start.items()}
                    moved[name][index] += step
                    ends.append(float(expected_loss(moved)))
                slope = (ends[0] - ends[1]) / 2e-5
                assert float(mean[name][index]) == pytest.approx(slope, abs=1e-8), (name, index)


@pytest.mark.slow
def test_on_a_decoder_the_estimators_mean_is_the_enumerated_gradient(monkeypatch):
    """Sampled thoughts, the real tree, LoRA's parameters: five standard errors in every number."""
    monkeypatch.setattr(thinking_policy, "NORMALISED_AT_ONCE", 4)
    policy, weights, inputs, trainable = thinker(thoughts=3)
    everything = thinker(thoughts=every_thought()[1].size)[2]
    thinking = ThinkingConfig(tokens=2, kl_coef=0.0)

    def expected_loss(trainable):
        reading = policy.bind(weights, everything).read(trainable, everywhere())
        table = jnp.einsum("pt,pto->po", jnp.exp(reading.tokens.sum(-1)), jnp.exp(reading.answers))
        return -jnp.sum(WEIGHTS[:, None] * table * GAINS)

    @jax.jit
    def estimate(key):
        model = policy.bind(weights, inputs)
        thoughts = model.think(trainable, key)
        behaviour = jax.lax.stop_gradient(model.read(trainable, thoughts))
        loss = lambda p: total_loss(model.read(p, thoughts), behaviour, thoughts, thinking)
        return jax.grad(loss)(trainable)["adapter"]

    expected = jax.jit(jax.grad(expected_loss))(trainable)["adapter"]
    each = jax.lax.map(estimate, jax.random.split(jax.random.key(3), 1000))
    for ours, theirs in zip(jax.tree.leaves(each), jax.tree.leaves(expected), strict=True):
        error = np.asarray(ours).std(0) / np.sqrt(len(ours))
        away = np.abs(np.asarray(ours).mean(0) - theirs)
        assert (away <= 5 * error + 1e-7).all()
        assert np.abs(theirs).max() > 10 * error.min()


@pytest.mark.slow
def test_without_the_thoughts_part_the_gradient_is_biased(whole):
    """The enumerated gradient is not that through the answers alone."""
    _, read, trainable = whole

    @jax.jit
    @jax.grad
    def gradient(trainable, through_thoughts):
        reading = read(trainable)
        chances = jnp.exp(reading.tokens.sum(-1))
        fixed = jax.lax.stop_gradient(chances)
        chances = fixed + through_thoughts * (chances - fixed)
        table = jnp.einsum("pt,pto->po", chances, jnp.exp(reading.answers))
        return -jnp.sum(WEIGHTS[:, None] * table * GAINS)

    both, answers = (gradient(trainable, part)["adapter"]["q"]["b"] for part in (1.0, 0.0))
    assert float(jnp.abs(both - answers).max()) > 0.1 * float(jnp.abs(both).max())


def test_advantages_leave_the_own_thought_out():
    worth = np.random.default_rng(4).normal(size=(5, 4))
    ours = advantages(jnp.asarray(worth), "group")
    for (prompt, own), value in np.ndenumerate(worth):
        others = np.delete(worth[prompt], own)
        assert ours[prompt, own] == pytest.approx(value - others.mean(), abs=1e-6)
    scaled = advantages(jnp.asarray(worth), "group-std")
    spread = worth.std(1, ddof=1, keepdims=True) + 1e-4
    np.testing.assert_allclose(scaled, ours / spread, rtol=1e-5)
    np.testing.assert_array_equal(advantages(jnp.asarray(worth), "value"), jnp.asarray(worth))


def loss_by_hand(log_prob, batch, reference, lengths, thinking, clip):
    """The thoughts' loss as loops over prompts, thoughts and tokens."""
    total = kl = 0.0
    num_prompts, num_thoughts, room = log_prob.shape
    for prompt, own in itertools.product(range(num_prompts), range(num_thoughts)):
        visited = batch.visits[prompt]
        weight = (visited or 1) / num_thoughts  # a loss may look where nobody comes
        places = range(min(lengths[prompt, own] + 1, room))
        change = [log_prob[prompt, own, k] - batch.log_prob[prompt, own, k] for k in places]
        for k in places:
            ratio = np.exp(np.mean(change) if thinking.ratio == "sequence" else change[k])
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            advantage = batch.advantage[prompt, own]
            total -= weight * min(ratio * advantage, clipped * advantage)
            away = reference[prompt, own, k] - log_prob[prompt, own, k]
            kl += visited / num_thoughts * (np.exp(away) - 1 - away)
    return total + thinking.kl_coef * kl, kl


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_thoughts_loss_equals_a_loop(ratio):
    generator = np.random.default_rng(5)
    log_prob, old, reference = -generator.exponential(size=(3, 4, 2, 6))
    lengths = generator.integers(0, 7, (4, 2))
    batch = ThoughtBatch(np.array([0.1, 0.4, 0.0, 0.5]), generator.normal(size=(4, 2)), old)
    thinking = ThinkingConfig(tokens=6, ratio=ratio, kl_coef=0.3)
    sampled = Thoughts(np.zeros((4, 2, 6)), lengths).sampled
    expected, kl = loss_by_hand(log_prob, batch, reference, lengths, thinking, 0.2)
    ours, parts = thought_loss(
        jnp.asarray(log_prob),
        jax.tree.map(jnp.asarray, batch),
        reference=jnp.asarray(reference),
        sampled=sampled,
        thinking=thinking,
        config=PPOConfig(clip=0.2),
    )
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    assert float(parts["thought_kl"]) == pytest.approx(kl, rel=1e-5)


def test_the_kl_of_thoughts_is_that_of_their_distributions(whole):
    """Over all thoughts, the estimate's mean is the KL of whole thoughts, in nats."""
    (policy, read, trainable), thoughts = whole, everywhere()
    own, base = read(trainable).tokens, read(policy.reference_parameters()).tokens
    chances = np.exp(own.sum(-1))
    expected = (chances * (own - base).sum(-1)).sum(-1)
    each = np.where(thoughts.sampled, np.exp(base - own) - 1 - (base - own), 0).sum(-1)
    np.testing.assert_allclose((chances * each).sum(-1), expected, rtol=1e-4)
    assert expected.min() > 1e-3


def test_visits_are_counted_alike_in_samples_and_in_cells():
    table = PolicyTable(jax.nn.log_softmax(jnp.asarray(GAINS)), jnp.zeros(3))
    batch = answers_batch(table)
    np.testing.assert_allclose(visits(batch, 3), WEIGHTS, rtol=1e-6)
    prompt = jnp.array([0, 2, 2, 1])
    sampled = batch._replace(weight=jnp.full(4, 0.25), prompt=prompt)
    np.testing.assert_allclose(visits(sampled, 3), [0.25, 0.25, 0.5])


@pytest.mark.slow
def test_information_is_that_of_many_thoughts(enumerated):
    """Of eight thoughts nearly without bias, where the plain estimate has some."""
    chances, answers = enumerated
    policy = np.einsum("pt,pto->po", chances, answers)
    entropy = lambda p: -(p * np.log(p)).sum(-1)
    exact = entropy(policy) - (chances * entropy(answers)).sum(-1)
    generator = np.random.default_rng(6)
    drawn = [generator.choice(chances.shape[1], (3000, 8), p=row / row.sum()) for row in chances]
    for prompt, rows in enumerate(drawn):
        given = jnp.log(answers[prompt])[rows]  # [3000, 8, 3]
        found = np.asarray(information_values(given).mean(1))
        plain = exact_entropy(mean_answers(given)) - exact_entropy(given).mean(1)
        error = 5 * found.std() / np.sqrt(len(found))
        assert abs(found.mean() - exact[prompt]) < error + 0.02 * exact[prompt]
        assert abs(found.mean() - exact[prompt]) < 0.3 * abs(plain.mean() - exact[prompt])
    np.testing.assert_allclose(information_values(given[:, :1]), 0, atol=1e-6)


def test_each_thoughts_information_is_the_jackknifes():
    """Its value is what the sum of the plain estimates gains by it."""
    answers = jax.nn.log_softmax(jnp.asarray(GENERATOR.normal(size=(2, 5, 3))))
    found = information_values(answers)

    def plain(p):
        entropy = lambda p: -(p * np.log(p)).sum(-1)
        return len(p) * (entropy(p.mean(0)) - entropy(p).mean())

    for (prompt, own), value in np.ndenumerate(found):
        p = np.exp(np.asarray(answers[prompt], np.float64))
        expected = plain(p) - plain(np.delete(p, own, axis=0))
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_means_of_others_leave_one_out():
    answers = jax.nn.log_softmax(jnp.asarray(GENERATOR.normal(size=(2, 4, 3))))
    ours = means_of_others(answers)
    for own in range(4):
        others = np.delete(np.exp(answers), own, axis=1).mean(1)
        np.testing.assert_allclose(np.exp(ours[:, own]), others, rtol=1e-5)
