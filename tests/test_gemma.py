"""Gemma, its LoRA and its tokenizer against transformers and plain matrix algebra."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoTokenizer

from jaxmoral.language.prompt_tree import pack, sight
from jaxmoral.models.lora import Lora, init_adapter, prepare

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1950 Flood and Dresher wrote down a game; Tucker told it as the prisoner's dilemma.",
    "def payoff(own, other):\n    return table[own][other]  # points\n\n\nprint(payoff(0, 1))",
    "| | action1 | action2 |\n|---|---|---|\n| action1 | 3, 3 | 0, 4 |\n",
    "Kooperation lohnt sich, wenn man sich wiedersieht. 囚人のジレンマ — café naïve 😀 ∑x²",
    "  leading spaces,\ttabs, <b>tags</b>, [brackets]   and trailing spaces   ",
)


def log_probs(model, tokens, adapter=None, lora=None, dropout_key=None):
    """Log-softmax at every position of one sequence."""
    config, definition, weights = model
    lora = lora or Lora(1, 1.0, 0.0, ())
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


def test_real_model_equals_torch_on_the_same_file(real, torch_real):
    """Issue: max |difference of log-softmax| <= 1e-3 over 200+ positions, the same top tokens."""
    largest, positions = 0.0, 0
    for text in TEXTS:
        tokens = real.tokenizer.encode(text * 2)
        with torch.no_grad():
            expected = torch_real(torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()
        ours = log_probs((real.config, real.definition, real.weights), tokens)
        largest = max(largest, float(np.abs(ours - expected).max()))
        np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))
        positions += len(tokens)
    print(f"largest difference {largest:.2e} over {positions} positions")
    assert positions >= 200
    assert largest <= 1e-3


def test_tokenizer_equals_transformers_on_the_same_file(real, gguf_file):
    oracle = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    texts = [*TEXTS, "", " ", "\n\n\n", "x  y   z", "\u2581x \u2581", "<start_of_turn>user\nhi"]
    texts += [text[i : i + 17] for text in TEXTS for i in range(0, len(text), 7)]
    for text in texts:
        assert real.tokenizer.encode(text) == oracle.encode(text), text
    ids = real.tokenizer.encode("one two")
    assert ids.count(real.tokenizer.bos_token_id) == 1
    assert ids[0] == real.tokenizer.bos_token_id


def random_adapter(config, lora):
    adapter = init_adapter(jax.random.key(0), config, lora)
    return jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), adapter
    )


def test_lora_equals_merged_weights(tiny):
    config, definition, weights, _ = tiny
    lora = Lora(3, 6.0, 0.0, tuple(config.linear_shapes))
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
