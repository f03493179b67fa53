"""Gemma, its LoRA and its tokenizer against transformers and plain matrix algebra."""

import dataclasses
import re
from pathlib import Path

import golden_real_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch
from flax import nnx

from jaxmoral import config as configs
from jaxmoral.language.prompt_tree import pack, sight
from jaxmoral.language.texts import read_texts
from jaxmoral.learning.prompter import Prompter
from jaxmoral.measuring.choices import choose
from jaxmoral.measuring.retention import cut_text, measure_retention
from jaxmoral.measuring.source import load_source
from jaxmoral.models.generate import Sampling, generate
from jaxmoral.models.lora import NO_LORA, Lora, init_adapter, prepare
from jaxmoral.models.merged import save_merged
from jaxmoral.models.peft import save_peft
from jaxmoral.models.tensor_names import LINEAR_NAMES

ROOT = Path(__file__).parents[1]


def log_probs(model, tokens, adapter=None, lora=None, dropout_key=None):
    """Log-softmax at every position of one sequence."""
    config, definition, weights = model
    lora = lora or NO_LORA
    tree, _ = pack([tokens])
    seen = sight(tree, config.sliding_window)

    @jax.jit
    def run(weights, adapter, key):
        module = nnx.merge(definition, weights)
        layers = prepare(adapter, config, lora, key)
        hidden = module.hidden(
            jnp.asarray(tree.tokens), jnp.asarray(tree.positions), seen, layers, "elementwise"
        )
        return jax.nn.log_softmax(module.logits(hidden))

    return np.asarray(run(weights, adapter or {}, dropout_key))


def test_tiny_model_equals_torch(tiny):
    config, definition, weights, twin = tiny
    tokens = list(range(3, 23))
    with torch.no_grad():
        expected = twin(torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()
    ours = log_probs((config, definition, weights), tokens)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.fixture(scope="module")
def golden():
    """What torch computed of the same file, unless something has changed since."""
    return golden_real_model.read()


def in_one_tree(model, sequences, adapter=None, lora=None, last=0):
    """Log-softmax `[tokens, vocabulary]` of all sequences, one after the other.

    With `last` only of so many tokens at the end of each.
    """
    config, definition, weights = model
    tree, ends = pack(sequences)
    seen = sight(tree, config.sliding_window)
    paths = [np.flatnonzero(node < tree.subtree_end[: node + 1])[-last:] for node in ends]

    @jax.jit
    def run(weights, adapter, tree, seen, nodes):
        module = nnx.merge(definition, weights)
        layers = prepare(adapter, config, lora or NO_LORA, None)
        hidden = module.hidden(tree.tokens, tree.positions, seen, layers, "elementwise")
        return jax.nn.log_softmax(module.logits(hidden[nodes]))

    tree = jax.tree.map(jnp.asarray, tree)
    return np.asarray(run(weights, adapter or {}, tree, seen, np.concatenate(paths)))


def test_real_model_equals_torch_on_the_same_file(real, golden):
    """Max |difference of log-softmax| <= 1e-3 over 200+ positions, the same top tokens."""
    texts = golden_real_model.split(golden["tokens"], golden["lengths"])
    ours = in_one_tree((real.config, real.definition, real.weights), texts)
    assert len(ours) == len(golden["tokens"]) >= 200
    np.testing.assert_array_equal(ours.argmax(-1), golden["best"])
    vocabulary = np.arange(real.config.vocab_size)
    seen = ours[vocabulary % len(ours), vocabulary]
    assert np.bincount(vocabulary % len(ours)).min() > real.config.embed_dim
    largest = np.abs(seen - golden["log_probs"]).max()
    assert largest <= 1e-3 - golden_real_model.STEP


def test_tokenizer_equals_transformers_on_the_same_file(real, golden):
    encode = real.tokenizer.encode
    texts = [text * 2 for text in golden_real_model.TEXTS]
    expected = golden_real_model.split(golden["tokens"], golden["lengths"])
    texts += golden_real_model.spellings()
    expected += golden_real_model.split(golden["spelled"], golden["spelled_lengths"])
    for text, tokens in zip(texts, expected, strict=True):
        assert encode(text) == tokens, text
    ids = encode("one two")
    assert ids.count(real.tokenizer.bos_token_id) == 1
    assert ids[0] == real.tokenizer.bos_token_id


def test_greedy_equals_transformers_on_the_real_model(real, golden):
    """The same 64 tokens for 20 prompts."""
    encoded = [real.tokenizer.encode(text) for text in golden_real_model.beginnings()]
    assert len(encoded) == 20
    ours = generate(real, encoded, 64, jax.random.key(0), Sampling(temperature=0.0))
    for ids, got, expected in zip(encoded, ours, golden["greedy"], strict=True):
        assert got == expected[expected >= 0].tolist(), real.tokenizer.decode(ids)[:60]


def test_exports_of_the_real_model_speak_in_peft_and_transformers(real, golden, tmp_path):
    """Our log-probabilities with an adapter are those of the exported files, to 1e-3."""
    model, lora = (real.config, real.definition, real.weights), golden_real_model.LORA
    adapter = golden_real_model.adapter(real.config)
    save_peft(tmp_path, real.config, adapter, lora, "gemma3-270m")
    assert golden_real_model.digest_of_adapter(tmp_path) == str(golden["adapter_files"]), (
        f"exports are not what PEFT was given; run: {golden_real_model.COMMAND}"
    )
    prompts = [real.tokenizer.encode(text) for text in golden_real_model.beginnings()[::5]]
    ours = in_one_tree(model, prompts, adapter, lora, last=1)
    base = in_one_tree(model, prompts, last=1)
    for name in ("adapted", "merged"):
        found = np.take_along_axis(ours, golden["likely"], -1)
        assert np.abs(found - golden[name]).max() <= 1e-3 - golden_real_model.STEP, name
        assert np.abs(np.take_along_axis(base, golden["likely"], -1) - golden[name]).max() > 0.1

    save_merged(tmp_path, real, adapter, lora)
    kernels = nnx.to_pure_dict(real.weights)["blocks"]
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as merged:
        for target in lora.targets:
            name = LINEAR_NAMES[target]
            a, b = (adapter[target][side][-1].astype(np.float64) for side in "ab")
            expected = (kernels[target][-1] + lora.alpha / lora.rank * a.T @ b).T
            found = merged.get_tensor(f"model.layers.{real.config.num_layers - 1}.{name}.weight")
            np.testing.assert_allclose(found, expected, atol=1e-6)


def random_adapter(config, lora):
    adapter = init_adapter(jax.random.key(0), config, lora)
    return jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), adapter
    )


def test_lora_equals_merged_weights(tiny):
    config, definition, weights, _ = tiny
    lora = Lora(3, 6.0, 0.0, config.linear_names)
    adapter = random_adapter(config, lora)
    merged = nnx.to_pure_dict(weights)
    for name, pair in adapter.items():
        low_rank = np.einsum("lri,lro->lio", pair["a"], pair["b"]) * lora.alpha / lora.rank
        merged["blocks"][name] = merged["blocks"][name] + low_rank
    _, state = definition, jax.tree.map(lambda x: x, weights)
    nnx.replace_by_pure_dict(state, merged)
    tokens = [2, 7, 5, 30, 31, 32, 8, 9]
    model = (config, definition, weights)
    ours = log_probs(model, tokens, adapter, lora)
    np.testing.assert_allclose(ours, log_probs((config, definition, state), tokens), atol=5e-5)
    assert np.abs(ours - log_probs(model, tokens)).max() > 0.1


def test_fresh_adapter_changes_nothing(tiny):
    config, definition, weights, _ = tiny
    lora = Lora(3, 6.0, 0.0, ("q", "down"))
    adapter = init_adapter(jax.random.key(0), config, lora)
    assert set(adapter) == {"q", "down"}
    model, tokens = (config, definition, weights), [2, 7, 5, 30]
    np.testing.assert_array_equal(log_probs(model, tokens, adapter, lora), log_probs(model, tokens))


def test_dropout_acts_only_with_a_key_and_keeps_the_mean(tiny):
    config, definition, weights, _ = tiny
    lora = Lora(3, 6.0, 0.5, ("q", "up"))
    adapter = random_adapter(config, lora)
    small = jax.tree.map(lambda x: 0.1 * x, adapter)
    model, tokens = (config, definition, weights), [2, 7, 5, 30]
    without = log_probs(model, tokens, small, lora)
    exact = log_probs(model, tokens, small, dataclasses.replace(lora, dropout=0.0))
    np.testing.assert_array_equal(without, exact)
    keys = jax.random.split(jax.random.key(0), 400)
    samples = np.stack([log_probs_cached(model, tokens, small, lora, key) for key in keys])
    assert samples.std(0).max() > 1e-4
    error = np.abs(samples.mean(0) - exact)
    assert np.all(error < 6 * samples.std(0) / np.sqrt(len(keys)) + 1e-3)


_COMPILED = {}


def log_probs_cached(model, tokens, adapter, lora, key):
    """`log_probs` with dropout, compiled once."""
    config, definition, weights = model
    if lora not in _COMPILED:
        tree, _ = pack([tokens])
        seen = sight(tree, config.sliding_window)

        def run(key):
            module = nnx.merge(definition, weights)
            layers = prepare(adapter, config, lora, key)
            hidden = module.hidden(
                jnp.asarray(tree.tokens), jnp.asarray(tree.positions), seen, layers, "elementwise"
            )
            return jax.nn.log_softmax(module.logits(hidden))

        _COMPILED[lora] = jax.jit(run)
    return np.asarray(_COMPILED[lora](key))


@pytest.mark.parametrize("remat", ["none", "elementwise", "block"])
def test_remat_changes_no_gradient(tiny, remat):
    config, definition, weights, _ = tiny
    lora = Lora(2, 4.0, 0.0, ("v", "gate"))
    adapter = random_adapter(config, lora)
    tree, _ = pack([[2, 7, 5, 30, 31], [2, 7, 6]])
    seen = sight(tree, config.sliding_window)

    def loss(adapter, remat):
        module = nnx.merge(definition, weights)
        layers = prepare(adapter, config, lora, None)
        hidden = module.hidden(
            jnp.asarray(tree.tokens), jnp.asarray(tree.positions), seen, layers, remat
        )
        return jnp.sum(jnp.sin(hidden))

    gradient = jax.grad(loss)(adapter, remat)
    direction = random_adapter(config, dataclasses.replace(lora))
    moved = lambda step: jax.tree.map(lambda x, d: x + step * d, adapter, direction)
    slope = (loss(moved(1e-3), remat) - loss(moved(-1e-3), remat)) / 2e-3
    dots = jax.tree.map(lambda g, d: jnp.vdot(g, d), gradient, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(dots)), slope, rtol=2e-2)


def test_bfloat16_stays_close(tiny):
    config, definition, weights, _ = tiny
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    tokens = [2, 7, 5, 30, 31, 32]
    exact = log_probs((config, definition, weights), tokens)
    ours = log_probs((config, definition, half), tokens)
    assert ours.dtype == np.float32
    # Eight bits of mantissa through four layers with weights far larger than a trained model's.
    assert np.abs(np.exp(ours) - np.exp(exact)).max() < 0.1


def test_options_of_the_real_model_are_products_of_next_token_probabilities(real):
    """What torch agrees on, one sequence after the other, against the trie in its forest."""
    text, options = "A friend lent you ten coins. What do you do?", ("keep them", "give them back")
    found = choose(configs.parse({"model": {"dtype": "float32"}}), text, options)["base"]
    prompter = Prompter(real, "plain")
    ids, trie = prompter.tokens(text), prompter.options(options).trie
    ways = [
        [int(trie.edge_token[e]) for e in edges if e < trie.no_edge]
        for edges in trie.spelling_edges
    ]
    model, last = (real.config, real.definition, real.weights), max(map(len, ways)) + 1
    rows = in_one_tree(model, [ids + way for way in ways], last=last)
    expected = np.full(len(options), -np.inf)
    parts = np.split(rows, len(ways))
    for part, way, action in zip(parts, ways, trie.spelling_action, strict=True):
        before = part[-len(way) - 1 : -1]
        likelihood = sum(before[i, token] for i, token in enumerate(way))
        expected[action] = np.logaddexp(expected[action], likelihood)
    np.testing.assert_allclose(np.log([found[o] for o in options]), expected, atol=1e-3)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)


def test_the_texts_of_the_retention_are_as_long_as_the_manual_says(real, tmp_path):
    prompter, texts = Prompter(real, "plain"), read_texts("builtin")
    windows = [window for text in texts for window in cut_text(prompter, text)]
    number = re.search(r"reads ([\d,]+) tokens", (ROOT / "docs/scenarios.md").read_text())[1]
    predicted = sum(len(window) - 1 for window in windows)
    assert predicted == int(number.replace(",", "")) >= 5000
    path = tmp_path / "prose.txt"
    path.write_text(next(text.text for text in texts if text.kind == "prose")[:600])
    found = measure_retention(load_source(configs.Config()), path)
    assert 1 < found["all"]["perplexity"]["base"] < 60
