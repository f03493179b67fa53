"""The anchor against plain softmaxes of the texts side by side, and what it does to training."""

import json
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language.prompt_tree import pack_unshared
from jaxmoral.learning.anchor import anchored, distance, make_anchor, openings, sizes, speak
from jaxmoral.learning.collect import Collected
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.measuring.source import load_source

COEF = ["--anchor.coef", "20"]


@pytest.fixture(scope="module")
def flags(shallow):
    given = ["--model.source", str(shallow), "--prompt.labels", "[X, Y]", "--env.episodes", "64"]
    given += ["--updates", "4", "--checkpoint_every", "2", "--ppo.learning_rate", "1e-2"]
    given += ["--ppo.entropy_coef", "0.1"]  # as at the end, so that no schedule has a length
    return [*given, "--lora.targets", "[q, v]", "--anchor.tokens", "70", "--anchor.at_once", "40"]


@pytest.fixture(scope="module")
def free(flags):
    """Trained without an anchor."""
    return fit_agent(configs.load(None, flags), say=quiet)


@pytest.fixture(scope="module")
def held(flags, tmp_path_factory):
    """A run folder, and what training it with an anchor returned."""
    folder = tmp_path_factory.mktemp("run") / "held"
    often = ["--checkpoint_every", "1"]
    return folder, fit_agent(configs.load(None, [*flags, *COEF, *often]), folder, say=quiet)


@pytest.fixture(scope="module")
def plain(held):
    """KL(base || policy) over the texts side by side, in nats a token, in float64."""
    agent = held[1].agent
    whole = [[*opened, *written] for opened, written in zip(*agent.spoken, strict=True)]
    lengths = np.array([len(ids) for ids in whole])
    rows = np.zeros((len(whole), lengths.max()), np.int32)
    told = np.zeros(rows.shape, bool)
    for index, opened in enumerate(agent.spoken.openings):
        rows[index, : lengths[index]] = whole[index]
        told[index, len(opened) - 1 : lengths[index] - 1] = True

    @jax.jit
    def read(trainable):
        model, tree = agent.policy.reading(agent.frozen), pack_unshared(rows, lengths)
        hidden = model.hidden(tree, trainable, None)
        hidden = hidden.reshape(len(rows), -1, hidden.shape[-1])[:, : rows.shape[1]]
        return model.model().logits(hidden)

    def log_probs(trainable):
        logits = np.asarray(read(trainable), np.float64)[told]
        return logits - np.logaddexp.reduce(logits, -1, keepdims=True)

    def apart(trainable):
        p, q = log_probs(agent.policy.init(jax.random.key(0))), log_probs(trainable)
        return np.sum(np.exp(p) * (p - q), -1).mean()

    return apart


def whole(trained, anchor, trainable):
    """The same by the anchor's own parts."""
    model = trained.agent.policy.reading(trained.agent.frozen)
    each = jax.lax.map(lambda part: distance(model, trainable, *part), anchor[1:])
    return each.mean()


def test_the_distance_and_its_gradient_are_those_of_plain_softmaxes(held, plain):
    trained = held[1]
    anchor = make_anchor(trained.config, trained.agent)
    assert anchor.texts.weight.shape == (2, 48)  # two parts of two texts
    measured = jax.jit(lambda trainable: whole(trained, anchor, trainable))
    expected = plain(trained.trainable)
    assert measured(trained.trainable) == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-3
    base = trained.agent.policy.init(jax.random.key(3))
    assert measured(base) == pytest.approx(0, abs=2e-6)
    gradient = jax.jit(jax.grad(measured))(trained.trainable)
    slopes = jax.tree.leaves(gradient)
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in slopes))
    moved = lambda by: jax.tree.map(lambda x, g: x + by * g / length, trained.trainable, gradient)
    difference = (plain(moved(0.01)) - plain(moved(-0.01))) / 0.02
    assert length == pytest.approx(difference, rel=1e-2)


def test_without_a_coefficient_nothing_changes(flags, free):
    other = ["--anchor.tokens", "300", "--anchor.at_once", "300"]
    again = fit_agent(configs.load(None, [*flags, *other]), say=quiet)
    assert again.agent.spoken is None
    chex.assert_trees_all_equal(again.state, free.state)
    assert "anchor_kl" not in free.history[0]


def test_it_keeps_the_agent_at_the_base(held, free, plain):
    trained = held[1]
    assert trained.history[0]["anchor_kl"] == pytest.approx(0, abs=2e-6)
    assert all(record["anchor_kl"] > 1e-6 for record in trained.history[1:])
    assert plain(trained.trainable) < 0.7 * plain(free.trainable)


def test_updates_take_the_parts_in_turn(held):
    folder, trained = held
    anchor = make_anchor(trained.config, trained.agent)
    model = trained.agent.policy.reading(trained.agent.frozen)
    measured = jax.jit(lambda *arguments: distance(model, *arguments))
    for update in (2, 3):
        before = load_trained(folder, update).trainable
        part, base = jax.tree.map(lambda leaf, u=update: leaf[u % 2], anchor[1:])
        expected = float(measured(before, part, base))
        assert trained.history[update]["anchor_kl"] == pytest.approx(expected, rel=1e-3)


def test_the_loss_that_is_logged_holds_the_distance(held):
    trained = held[1]
    anchor = make_anchor(trained.config, trained.agent)
    plain = Collected(
        read=None,
        behaviour=None,
        differentiate=lambda reading, batch: (None, {"loss": np.array([1.5, 0.5])}),
        batches=None,
        metrics={},
        moments=None,
        kl=None,
    )
    inputs = SimpleNamespace(anchor=anchor, frozen=trained.agent.frozen)
    found = anchored(plain, trained.state, inputs, trained.agent.policy)
    (_, slopes), parts = found.differentiate((None, np.array([0.25, 0.125])), None)
    np.testing.assert_allclose(parts["loss"], [1.5 + 20 * 0.25, 0.5 + 20 * 0.125])
    np.testing.assert_allclose(slopes, 20)


def test_a_run_keeps_the_texts_and_goes_on_with_them(held, flags, tmp_path):
    folder, trained = held
    kept = json.loads((folder / "anchor.json").read_text())
    assert (kept["openings"], kept["continuations"]) == trained.agent.spoken
    assert all(text.startswith("<bos>") for text in kept["texts"])
    config = configs.load(None, [*flags, *COEF, "--updates", "2"])
    fit_agent(config, tmp_path / "run", say=quiet)
    longer = configs.load(None, [*flags, *COEF])
    again = fit_agent(longer, tmp_path / "run", resume=True, say=quiet)
    chex.assert_trees_all_equal(again.state, trained.state)
    more = configs.load(None, [*flags, *COEF, "--updates", "6"])
    for damage in ('{"openings": [[1]], "continuations": [[2]]}', "{", None):
        path = tmp_path / "run" / "anchor.json"
        path.unlink() if damage is None else path.write_text(damage)
        with pytest.raises(UserError, match=r"anchor.json"):
            fit_agent(more, tmp_path / "run", resume=True, say=quiet)


def test_every_seed_has_texts_of_its_own_and_members_are_as_alone(held, flags):
    trained = held[1]
    seeds = {name: [*flags, *COEF, "--seed", name] for name in ("0", "1")}
    members = {name: configs.load(None, own) for name, own in seeds.items()}
    together = fit_population(members, say=quiet)
    assert together["0"].agent.spoken == trained.agent.spoken != together["1"].agent.spoken
    alone = [record["anchor_kl"] for record in trained.history]
    found = [record["anchor_kl"] for record in together["0"].history]
    np.testing.assert_allclose(found, alone, rtol=1e-2, atol=2e-6)


@pytest.mark.parametrize(
    "more", [["--ppo.level", "token"], ["--thinking.tokens", "2", "--thinking.thoughts", "2"]]
)
def test_it_stands_beside_every_kind_of_update(more, flags):
    more = [*more, "--updates", "2", "--env.episodes", "8", "--env.rounds", "2"]
    trained = fit_agent(configs.load(None, [*flags, *COEF, *more]), say=quiet)
    first, second = trained.history
    assert abs(first["anchor_kl"]) < 2e-6 < second["anchor_kl"]


def test_sizes_are_as_asked():
    asked = configs.load(None, [*COEF, "--anchor.tokens", "256", "--anchor.at_once", "64"])
    assert sizes(asked) == (8, 2, 32)
    few = configs.load(None, [*COEF, "--anchor.tokens", "20", "--anchor.at_once", "64"])
    assert sizes(few) == (1, 1, 20)
    many = configs.load(None, [*COEF, "--anchor.tokens", "1000", "--anchor.at_once", "300"])
    assert sizes(many) == (36, 9, 32)
    assert len(set(openings())) == 16


def test_more_texts_than_openings_are_different(flags):
    config = configs.load(None, [*flags, *COEF, "--anchor.tokens", "600"])
    agent = load_source(config).agent
    spoken = speak(config, agent)
    whole = {(*a, *b) for a, b in zip(*spoken, strict=True)}
    assert len(spoken.openings) == len(whole) == 19


def test_a_text_ends_with_the_first_token_that_ends_it(flags, monkeypatch):
    agent = load_source(configs.load(None, [*flags, *COEF])).agent
    monkeypatch.setattr(type(agent.model), "stop_tokens", lambda model: range(0, 10**6, 4))
    spoken = speak(configs.load(None, [*flags, *COEF, "--anchor.tokens", "300"]), agent)
    ends = [[token % 4 == 0 for token in text] for text in spoken.continuations]
    assert not any(any(text[:-1]) for text in ends)
    assert any(text[-1] for text in ends)


def test_a_table_has_no_words():
    with pytest.raises(UserError, match="anchor.coef: a tabular policy"):
        configs.load(None, ["--model.source", "tabular", *COEF])
