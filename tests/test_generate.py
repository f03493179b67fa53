"""Generation against transformers' generate and against the plain forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import CONFIGS, load_tiny, save_tiny
from flax import nnx

from jaxmoral.models.generate import Sampling, _decode, _prefill, choose, generate
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.lora import NO_LORA, Lora, init_adapter, prepare
from jaxmoral.models.peft import merge

GREEDY = Sampling(temperature=0.0)
KINDS = [kind for kind in CONFIGS if kind != "gemma4-vision"]  # whose decoder is gemma4-sharing's


class NoStops:
    """A tokenizer that ends nothing within the vocabulary."""

    eos_token_id = 1
    unk_token_id = None

    def convert_tokens_to_ids(self, token):
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_torch_on_tiny_models(kind, tmp_path):
    """Prompts of different lengths, windows shorter than the prompts, soft caps."""
    twin = save_tiny(kind, tmp_path)
    config, definition, weights, beside = load_tiny(tmp_path)
    model = LoadedModel("tiny", "", config, definition, weights, NoStops(), beside=beside)
    sequences = [list(range(5, 18)), [9, 8, 7], [40, 41, 42, 43, 44]]
    ours = generate(model, sequences, 12, jax.random.key(0), GREEDY)
    for sequence, got in zip(sequences, ours, strict=True):
        with torch.no_grad():  # one pass: each token must be the best one after those before it
            logits = twin(input_ids=torch.tensor([sequence + got])).logits[0]
        best = logits[len(sequence) - 1 :].argmax(-1).tolist()
        assert got == best[: len(got)]
        assert len(got) == 12 or best[-1] == NoStops.eos_token_id


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_with_a_cache_equal_torch(kind, tmp_path):
    """After a prompt and after each further token, beside a shorter sequence."""
    twin = save_tiny(kind, tmp_path)
    config, definition, weights, beside = load_tiny(tmp_path)
    sequences, size = np.array([range(5, 23), range(60, 78)], np.int32), 11
    sequences[1, :4] = 0  # padding
    padding = jnp.array([0, 4])
    adapter = prepare({}, config, NO_LORA, None)
    length = sequences.shape[1]

    @jax.jit
    def read(weights, prompts):
        model = nnx.merge(definition, weights)
        return _prefill(model, prompts, padding, adapter, length, beside)

    @jax.jit
    def go_on(weights, token, place, caches):
        model = nnx.merge(definition, weights)
        return _decode(model, token, place, padding, adapter, caches, beside)

    logits, caches = read(weights, sequences[:, :size])
    found = [logits]
    for place in range(size, length):
        logits, caches = go_on(weights, sequences[:, place], place, caches)
        found.append(logits)
    ours = jax.nn.log_softmax(jnp.stack(found, 1))
    for row, skipped in enumerate(padding.tolist()):
        with torch.no_grad():
            every = twin(input_ids=torch.tensor(sequences[row : row + 1, skipped:])).logits[0]
        expected = every[size - 1 - skipped :].log_softmax(-1).numpy()
        np.testing.assert_allclose(ours[row], expected, atol=1e-4)


def test_an_adapter_speaks_like_its_merged_weights(tmp_path):
    save_tiny("gemma3", tmp_path)
    config, definition, weights, _ = load_tiny(tmp_path)
    lora = Lora(2, 4.0, 0.0, ("q", "v", "down"))
    adapter = init_adapter(jax.random.key(0), config, lora)
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    adapter = jax.tree.map(noise, adapter)
    model = LoadedModel("tiny", "", config, definition, weights, NoStops())
    adapted = generate(model, [[5, 6, 7]], 20, jax.random.key(0), GREEDY, adapter, lora)
    plain = generate(model, [[5, 6, 7]], 20, jax.random.key(0), GREEDY)
    for name in lora.targets:
        kernel = weights["blocks"][name]
        kernel[...] = jnp.asarray(merge(name, kernel[...], adapter, lora))
    merged = LoadedModel("tiny", "", config, definition, weights, NoStops())
    assert adapted == generate(merged, [[5, 6, 7]], 20, jax.random.key(0), GREEDY)
    assert adapted != plain


class Endless(NoStops):
    eos_token_id = None


def test_a_model_whose_texts_never_end_speaks_as_long_as_it_may(tmp_path):
    save_tiny("gemma3", tmp_path)
    parts = load_tiny(tmp_path)[:3]
    one, other = (LoadedModel("tiny", "", *parts, end()) for end in (Endless, NoStops))
    (found,) = generate(one, [[5, 6, 7]], 9, jax.random.key(0), GREEDY)
    (ended,) = generate(other, [[5, 6, 7]], 9, jax.random.key(0), GREEDY)
    assert len(found) == 9
    assert found[: len(ended)] == ended


def shares(sampling, logits, count=20_000):
    keys = jax.random.split(jax.random.key(0), count)
    tokens = jax.vmap(lambda key: choose(key, logits[None], sampling)[0])(keys)
    return np.bincount(tokens, minlength=len(logits)) / count


def test_sampling_follows_its_settings():
    probs = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    logits = jnp.log(jnp.asarray(probs))
    np.testing.assert_allclose(shares(Sampling(), logits), probs, atol=0.015)
    sharp = probs**2 / (probs**2).sum()
    np.testing.assert_allclose(shares(Sampling(temperature=0.5), logits), sharp, atol=0.015)
    three = np.array([40, 30, 15, 0, 0]) / 85
    np.testing.assert_allclose(shares(Sampling(top_p=0.8), logits), three, atol=0.015)
    assert shares(GREEDY, logits, 10)[0] == 1
