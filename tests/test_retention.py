"""Language kept: perplexity and divergence against plain log-softmaxes, on a tiny model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language.prompt_tree import pack
from jaxmoral.language.texts import Text, read_texts
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring import retention
from jaxmoral.measuring.retention import cut_text, measure_retention
from jaxmoral.measuring.source import load_source, parameters
from jaxmoral.models.vocabulary import cut, divergence, know, soft_cap

FLAGS = ["--prompt.labels", "[X, Y]", "--updates", "2", "--env.episodes", "64"]
FLAGS += ["--ppo.learning_rate", "0.01", "--lora.targets", "[q, down]"]
WORDS = "You are in a game with another player, and the points depend on what both choose. " * 3


@pytest.fixture(autouse=True)
def kept_here(tmp_path, monkeypatch):
    """What is kept of a base's distributions is not the user's."""
    monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def loaded(shallow):
    config = configs.load(None, [*FLAGS, "--model.source", str(shallow)])
    return load_source(fit_agent(config, say=quiet))


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("splits", [1, 2])
def test_the_divergence_in_one_pass_is_that_of_softmaxes(cap, splits):
    generator = np.random.default_rng(0)
    table = generator.normal(size=(96, 8)).astype(np.float32)
    pair = generator.normal(size=(5, 2, 8)).astype(np.float32)
    pair[4, 1] = pair[4, 0]
    pieces = cut((jnp.asarray(table),), jnp.zeros((1, 96), bool), 12, splits)
    read = lambda leaves: leaves[0]
    one, other = (know(read, cap, pieces, jnp.asarray(pair[:, i]), compared=not i) for i in (0, 1))
    kl = divergence(read, cap, pieces, one, (other.hidden, other.log_sums))
    logits = soft_cap(jnp.asarray(pair) @ table.T, cap)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    expected = np.sum(np.exp(log_probs[:, 0]) * (log_probs[:, 0] - log_probs[:, 1]), -1)
    np.testing.assert_allclose(kl, expected, atol=1e-5)
    sums = np.stack([one.log_sums, other.log_sums], 1)
    np.testing.assert_allclose(sums, jax.nn.logsumexp(logits, -1), rtol=1e-5)
    top = log_probs.argmax(-1)
    np.testing.assert_array_equal(np.stack([one.top, other.top], 1), top)
    assert abs(kl[4]) <= (0 if cap is None else 1e-8)  # two products of one row may round apart


def test_perplexity_and_divergence_are_those_of_each_window_alone(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(retention, "WINDOW", 40)
    monkeypatch.setattr(retention, "AT_ONCE", 64)
    path = tmp_path / "some.jsonl"
    lines = [{"kind": "long", "text": WORDS}, {"kind": "short", "text": "A game of A."}]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = measure_retention(loaded, path)
    agent, expected = loaded.agent, {}
    for kind, text in (("long", WORDS), ("short", "A game of A.")):
        rows = []
        for window in cut_text(agent.prompter, Text(kind, text)):
            assert len(window) <= 40
            tree, _ = pack([window])
            model = agent.policy.bind(agent.frozen, None)
            each = [
                jax.nn.log_softmax(model.model().logits(model.hidden(tree, own, None)))
                for own in parameters(loaded).values()
            ]
            rows += [
                (np.array([one[i] for one in each]), token) for i, token in enumerate(window[1:])
            ]
        expected[kind] = rows
    expected["all"] = [*expected["long"], *expected["short"]]
    assert list(found) == ["all", "long", "short"]
    for kind, rows in expected.items():
        assert found[kind]["tokens"] == len(rows)
        for index, policy in enumerate(("base", "tuned")):
            surprise = -np.mean([log_probs[index, token] for log_probs, token in rows])
            assert found[kind]["perplexity"][policy] == pytest.approx(np.exp(surprise), rel=1e-4)
        kl = np.mean([np.sum(np.exp(p[0]) * (p[0] - p[1])) for p, _ in rows])
        assert found[kind]["kl"] == pytest.approx(kl, abs=1e-5)
        same = np.mean([p[0].argmax() == p[1].argmax() for p, _ in rows])
        assert found[kind]["agreement"] == pytest.approx(same)
    assert found["all"]["kl"] > 0
    (kept,) = (tmp_path / "cache" / "retention").iterdir()
    assert measure_retention(loaded, path) == found  # from there
    kept.write_bytes(b"PK")
    assert measure_retention(loaded, path) == found


def test_what_is_kept_is_of_a_models_numbers(loaded, tmp_path):
    """Another model of the same sizes, whose files look the same from outside."""
    tiny_model.write(tmp_path / "model", seed=1, **tiny_model.SHALLOW)
    config = configs.load(None, [*FLAGS, "--model.source", str(tmp_path / "model")])
    other = load_source(config)._replace(trained=loaded.trained)
    model = dataclasses.replace(other.agent.model, sha256=loaded.agent.model.sha256)
    other = other._replace(agent=other.agent._replace(model=model))
    path = tmp_path / "some.txt"
    path.write_text(WORDS)
    perplexity = lambda of: measure_retention(of, path)["all"]["perplexity"]["base"]
    first, second = perplexity(loaded), perplexity(other)
    assert second == perplexity(other._replace(trained=None)) != first
    assert first == perplexity(loaded)


def test_what_is_kept_is_of_the_texts_tokens(loaded, tmp_path, monkeypatch):
    """Of two texts of equally many."""
    first, *rest = WORDS.split()
    texts = [" ".join([first, *others]) for others in (rest, rest[::-1])]
    paths = [tmp_path / f"{number}.txt" for number in range(2)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    first, second = (measure_retention(loaded, path)["all"] for path in paths)
    assert first["tokens"] == second["tokens"]
    monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / "empty"))
    assert measure_retention(loaded, paths[1])["all"] == second != first


def test_an_untrained_adapter_changes_nothing(loaded):
    base = parameters(loaded)["base"]
    found = measure_retention(loaded._replace(trained=base), "builtin")
    for row in found.values():
        assert row["kl"] == pytest.approx(0, abs=1e-6)
        assert row["agreement"] == 1
        assert row["perplexity"]["tuned"] == pytest.approx(row["perplexity"]["base"], rel=1e-6)
    alone = measure_retention(loaded._replace(trained=None), "builtin")
    assert alone["all"] == {
        "tokens": found["all"]["tokens"],
        "perplexity": {"base": found["all"]["perplexity"]["base"]},
    }
    assert {*found} == {"all", "prose", "instructions", "dialogue", "code", "german", "spanish"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " ", "a.txt: it is empty"),
        ("a.jsonl", "", "a.jsonl: it is empty"),
        ("a.jsonl", '{"text": "x"}\n{"kind": 1}', "a.jsonl, line 2, text: needs"),
        ("a.jsonl", "{", "a.jsonl, line 1: no JSON"),
        ("a.jsonl", '{"text": "\\ud83d"}', "a.jsonl, line 1, text: holds half a character"),
        ("a.jsonl", '{"text": "x", "kind": "all"}', "a.jsonl: a text's kind, .* cannot be all"),
        ("all.txt", "x", "all.txt: a text's kind, .* cannot be all"),
        ("a.pdf", "x", "a.pdf: needs a file that ends in .txt or .jsonl"),
    ],
)
def test_other_files_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="retention: cannot read .*none.txt"):
        read_texts(tmp_path / "none.txt")
