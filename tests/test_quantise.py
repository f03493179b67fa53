"""Quantised bases: codes and scales against independent computations, and training through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from conftest import load_tiny, save_tiny
from flax import nnx
from run_files import quiet
from scipy.stats import norm

from jaxmoral import config as configs
from jaxmoral.language.prompt_tree import Sight
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.models import quantise as q
from jaxmoral.models.lora import Lora, init_adapter, prepare
from jaxmoral.models.merged import save_merged
from jaxmoral.models.sizes import num_parameters, weight_bytes


def test_the_codebook_holds_quantiles_of_a_normal_distribution():
    """arXiv 2305.14314, section 3: quantiles of both halves, 8 below zero and 9 from zero up."""
    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9))[:-1]
    below = -norm.ppf(np.linspace(offset, 0.5, 8))[:-1]
    values = np.sort([*above, 0.0, *below])
    np.testing.assert_allclose(q.NF4, values / values.max(), atol=1e-6)


def by_hand(weights, kind):
    """Block by block, number by number, in float64."""
    levels = [k / 127 for k in range(-127, 128)] if kind == "int8" else q.NF4.tolist()
    rows = []
    for row in weights.astype(np.float64):
        found = []
        for block in row.reshape(-1, 64):
            top = max(abs(block)) or 1.0
            found += [top * min(levels, key=lambda level, x=x: abs(level - x / top)) for x in block]
        rows.append(found)
    return np.array(rows)


@pytest.mark.parametrize("kind", q.KINDS)
def test_round_trip_is_the_nearest_level_of_each_block(kind):
    weights = np.random.default_rng(0).normal(size=(6, 192)).astype(np.float32)
    weights[2, 64:128] = 0.0
    weights[3] *= 1e3
    codes, scales = q.quantise(weights, kind)
    assert codes.nbytes == weights.size // (1 if kind == "int8" else 2)
    restored = q.dequantise(jnp.asarray(codes), jnp.asarray(scales))
    np.testing.assert_allclose(restored, by_hand(weights, kind), rtol=1e-5, atol=1e-6)


FAMILIES = ["gemma3", "llama-biased", "gemma4-sharing", "gemma4-experts"]
LORA = Lora(2, 4.0, 0.0, ("q", "down"))


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory):
    """A family's folder, its model with all bits, and what that computes of given weights."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, folder)
    full = load_tiny(folder)
    return folder, full, computes(full)


dequantise = jax.jit(q.dequantise)


def computes(model):
    """Logits of a few tokens, and the gradient of their squares with respect to an adapter."""
    tokens = jnp.array([1, 5, 9, 2, 7, 7, 3])
    rows = model.rows(tokens)
    causal = jnp.tril(jnp.ones((1, 7, 7), bool))
    seen = Sight(jnp.arange(7)[None], jnp.stack([causal, causal]))

    def squares(adapter, weights):
        module = nnx.merge(model.definition, weights)
        layers = prepare(adapter, model.config, LORA, None)
        hidden = module.hidden(tokens, jnp.arange(7), seen, layers, "elementwise", rows)
        logits = module.logits(hidden)
        return jnp.sum(logits**2), logits

    def compute(adapter, weights):
        (_, logits), gradient = jax.value_and_grad(squares, has_aux=True)(adapter, weights)
        return logits, gradient

    return jax.jit(compute)


@pytest.mark.parametrize("kind", q.KINDS)
def test_a_quantised_model_is_the_model_of_its_dequantised_weights(kind, whole):
    """Norms and biases stay as they are, an output head of its own does not."""
    folder, full, compute = whole
    quantised = load_tiny(folder, quantisation=kind)

    def restore(path, leaf):
        name = path[-1].key
        if name in ("scale", "layer_scalar", "expert_scale") or name.endswith("_bias"):
            return leaf
        matrix = np.asarray(leaf)
        nearest = np.asarray(dequantise(*q.quantise(matrix, kind)))
        assert not np.array_equal(nearest, matrix)
        return nearest

    restored = jax.tree.map(lambda leaf: leaf, full.weights)
    params = jax.tree_util.tree_map_with_path(restore, nnx.to_pure_dict(full.weights))
    nnx.replace_by_pure_dict(restored, params)
    adapter = init_adapter(jax.random.key(0), full.config, LORA)
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    ours, gradient = computes(quantised)(adapter, quantised.weights)
    expected, expected_gradient = compute(adapter, restored)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    for one, other in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(("kind", "limit"), [("nf4", 0.35), ("int8", 0.6)])
def test_memory_of_the_real_model(kind, limit, real):
    """At most 0.35 (NF4) and 0.6 (int8) of bfloat16."""
    agent = make_agent(resolve(configs.parse({"model": {"quantisation": kind}})))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(agent.frozen))
    assert held == weight_bytes(agent.model.config, 4)
    assert held < limit * 2 * num_parameters(real.config)
    assert num_parameters(agent.model.config) == num_parameters(real.config)


@pytest.fixture(scope="module")
def history_of(tmp_path_factory):
    """The records of a training on a tiny model, by quantisation; each trained once."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.write(folder)
    tree = {"model": {"source": str(folder)}, "prompt": {"labels": ["X", "Y"]}, "updates": 8}
    tree |= {"ppo": {"learning_rate": 0.01}, "env": {"episodes": 1024}}

    @functools.cache
    def train(quantisation):
        model = tree["model"] | {"quantisation": quantisation}
        return fit_agent(configs.parse(tree | {"model": model}), say=quiet).history

    return train


@pytest.mark.parametrize(("kind", "gap"), [("nf4", 0.2), ("int8", 0.1)])
def test_training_works_through_it(kind, gap, history_of):
    """It earns nearly what training through the whole weights does, at every update."""
    histories = history_of(kind), history_of("none")
    earned, expected = ([record["reward_mean"] for record in history] for history in histories)
    assert earned[-1] > earned[0] + 1
    assert histories[0][-1]["p_illegal"] < 0.1
    np.testing.assert_allclose(earned, expected, atol=gap)


def remembered(source, policy):
    """A policy's shares of C, D and illegal answers after each remembered round of the dilemma."""
    result = evaluate_agent(source, ["ipd"], ["random"], protocols=["exact"])
    return result["suites"]["trained"]["ipd"]["policies"][policy]["remembered"]


def test_learning_on_the_real_model(real, tmp_path):
    config = configs.parse({"model": {"quantisation": "nf4"}, "updates": 3})
    trained = fit_agent(config, say=quiet)
    first, last = trained.history[0], trained.history[-1]
    assert last["reward_mean"] > first["reward_mean"] + 1
    assert last["p_illegal"] < 0.1

    # Merged, it is a full model that answers as the quantised one with its adapter did.
    agent = trained.agent
    save_merged(tmp_path, agent.model, trained.trainable["adapter"], agent.lora)
    tuned = remembered(trained, "tuned")
    merged = configs.parse({"model": {"source": str(tmp_path)}})
    for cell, shares in remembered(merged, "base").items():
        assert shares == pytest.approx(tuned[cell], abs=1e-3)


def test_int8_barely_changes_the_real_policy(real):
    """8-bit weights move an untrained model's answers by a few per cent at most."""
    whole, rounded = (
        remembered(resolve(configs.parse({"model": {"quantisation": kind}})), "base")
        for kind in ("none", "int8")
    )
    for cell, shares in whole.items():
        for outcome, share in shares.items():
            assert abs(rounded[cell][outcome] - share) < 0.05
