"""Layers of several shapes: how they are ordered, scanned and trained; see `models/layers.py`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from flax import nnx
from safetensors.numpy import load_file

from jaxmoral import config, load_members, train_population
from jaxmoral.errors import UserError
from jaxmoral.language.prompt_tree import pack, sight
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent, policy_table
from jaxmoral.learning.resolve import resolve
from jaxmoral.measuring.choices import choose
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.layers import Section, sections, stack_names
from jaxmoral.models.load import load
from jaxmoral.models.lora import Lora, init_adapter, prepare
from jaxmoral.models.merged import save_merged
from jaxmoral.models.model import Decoder
from jaxmoral.models.peft import save_peft
from jaxmoral.models.sizes import num_parameters
from jaxmoral.models.walk import walk
from jaxmoral.world.games import get_game

SMALL = {"vocab_size": 96, "embed_dim": 32, "num_heads": 4, "head_dim": 16, "mlp_dim": 48}
SMALL |= {"sliding_window": 64}
KINDS = {"sharing": tiny_model.SHARING, "experts": tiny_model.EXPERTS}
# A language model's updates take seconds to compile, however small it is.
slow = pytest.mark.slow


def test_periods_are_as_short_as_they_can_be():
    near, wide = "sliding", "full"
    assert sections([near, near, wide] * 4) == [Section(4, ((near, 2), (wide, 1)))]
    assert sections([""] * 7) == [Section(1, (("", 7),))]
    assert sections([near] * 5 + [wide] + [near] * 3 + [wide]) == [
        Section(1, ((near, 5), (wide, 1), (near, 3), (wide, 1)))
    ]
    assert sections([]) == []


@pytest.mark.parametrize(
    "names",
    [["a", "a", "b"] * 3, ["a", "b", "a", "a", "b"], ["a"], ["b", "a", "a"], ["a", "b"] * 2],
)
def test_a_walk_is_a_loop_over_the_layers(names):
    """Each layer once, in order, with its own weights; what it leaves is where its weights are."""
    places = {name: [i for i, other in enumerate(names) if other == name] for name in {*names}}
    layers = {name: jnp.array(found, jnp.float32) for name, found in places.items()}
    grow = {"a": 2.0, "b": 3.0}
    steps = {n: lambda x, layer, n=n: (grow[n] * x + layer, x - layer) for n in layers}
    carry, left = walk(sections(names), steps, jnp.array(1.0), layers)
    x, expected = 1.0, []
    for place, name in enumerate(names):
        expected.append(x - place)
        x = grow[name] * x + place
    assert carry == x
    for name, found in places.items():
        np.testing.assert_array_equal(left[name], np.array(expected)[found])


def test_layers_are_named_by_what_they_see_and_whether_they_share():
    names = stack_names([False, True, False, True], [False, False, True, True], alike=False)
    assert names == ["sliding", "full", "shared_sliding", "shared_full"]
    assert stack_names([False, True], [False, False], alike=True) == ["", ""]


def lines_of_program(num_layers: int) -> int:
    """Lines of the gradient through a model of so many layers, five with a window by turns."""
    config = DecoderConfig(
        **SMALL
        | tiny_model.EXPERTS
        | {"num_layers": num_layers}
        | {"global_layers": (*[False] * 5, True) * (num_layers // 6)}
    )
    lora = Lora(2, 4.0, 0.0, config.linear_names)
    tree = jax.tree.map(jnp.asarray, pack([list(range(3, 90))])[0])
    definition, weights = Decoder.abstract(config)

    def loss(adapter, weights):
        model = nnx.merge(definition, weights)
        layers = prepare(adapter, config, lora, None)
        seen = sight(tree, config.sliding_window)
        return model.hidden(tree.tokens, tree.positions, seen, layers, "elementwise").sum()

    adapter = jax.eval_shape(lambda key: init_adapter(key, config, lora), jax.random.key(0))
    return len(jax.jit(jax.grad(loss)).lower(adapter, weights).as_text().splitlines())


@slow
def test_a_program_does_not_grow_with_depth():
    """What is compiled for 60 layers is what is compiled for two periods."""
    assert lines_of_program(60) <= 1.01 * lines_of_program(12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind, sizes in KINDS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_model.write(made[kind], **sizes)
    return made


def flags(folder, *more):
    given = ["--model.source", str(folder), "--prompt.labels", "[X, Y]", "--updates", "6"]
    given += ["--lora.targets", "[q, v, down]"]
    return [*given, "--env.episodes", "1024", "--ppo.learning_rate", "0.01", *more]


def silent(line):
    pass


@pytest.fixture(scope="module", params=KINDS)
def alone(request, folders):
    """A model's folder and a run on it."""
    folder = folders[request.param]
    return folder, train_population(load_members(None, flags(folder)), say=silent)[""]


@slow
def test_it_learns_and_its_exports_say_the_same(alone, tmp_path):
    """Merged, and as an adapter that is put on the base again."""
    folder, trained = alone
    first, last = trained.history[0], trained.history[-1]
    assert last["reward_mean"] > first["reward_mean"] + 1
    agent, adapter = trained.agent, trained.trainable["adapter"]
    measure = partial(evaluate_agent, games=["ipd"], protocols=["exact"])
    policies = lambda source: measure(source)["suites"]["trained"]["ipd"]["policies"]
    tuned = policies(trained)["tuned"]["remembered"]

    (tmp_path / "merged").mkdir()
    save_merged(tmp_path / "merged", agent.model, adapter, agent.lora)
    (tmp_path / "peft").mkdir()
    save_peft(tmp_path / "peft", agent.model.config, adapter, agent.lora, str(folder))
    merged = config.load(None, flags(tmp_path / "merged"))
    adapted = config.load(None, flags(folder, "--lora.adapter", str(tmp_path / "peft")))
    found = policies(merged)["base"]["remembered"]
    again = policies(adapted)["tuned"]["remembered"]
    for cell, shares in tuned.items():
        assert found[cell] == pytest.approx(shares, abs=1e-3)
        assert again[cell] == pytest.approx(shares, abs=1e-4)


@slow
def test_a_prompt_is_answered_like_any_other_text(alone):
    """By the packed prompts' table, and as a question among texts."""
    agent = alone[1].agent
    shown = Condition(get_game("ipd"), agent.presentation)
    table = policy_table(agent, shown, alone[1].trainable)
    found = choose(alone[1], agent.prompter.texts(shown)[0], agent.presentation.labels)["tuned"]
    np.testing.assert_allclose(list(found.values()), np.exp(table.log_probs[0]), atol=1e-5)


@slow
def test_members_of_a_population_are_their_own_runs(alone):
    folder, trained = alone
    members = load_members(None, flags(folder, "--seed", "[1, 0]"))
    member = train_population(members, say=silent)["seed=0"]
    pairs = zip(jax.tree.leaves(trained.trainable), jax.tree.leaves(member.trainable), strict=True)
    for ours, theirs in pairs:
        gap = np.linalg.norm(np.asarray(ours) - np.asarray(theirs))
        assert gap <= 1e-4 * max(np.linalg.norm(ours), 1)


@slow
def test_rows_of_sampled_tokens_are_looked_up_within_the_program(folders):
    """The probability of an answer's first token is the one that the prompt tree gives."""
    settings = resolve(config.load(None, flags(folders["sharing"])))
    agent = make_agent(settings)
    shown = Condition(get_game("ipd"), agent.presentation)
    inputs = jax.tree.map(lambda x: jnp.asarray(x[0]), agent.prompter.pack([[shown]]))
    assert inputs.beside.shape == (*inputs.tree.tokens.shape, 12 * 8)
    bound = agent.policy.bind(agent.frozen, inputs)
    trainable = agent.policy.init(jax.random.key(0))
    _, logits = jax.jit(bound.table_and_logits)(trainable)
    prompt, tokens = jnp.arange(4), jnp.array([[5], [90], [17], [60]])
    found, _ = jax.jit(bound.score)(trainable, prompt=prompt, tokens=tokens)
    expected = jax.nn.log_softmax(logits[prompt, 0])[jnp.arange(4), tokens[:, 0]]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)


def test_what_is_only_looked_up_stays_on_the_disk(folders):
    model = load(str(folders["sharing"]))
    assert isinstance(model.beside.rows, np.memmap)
    held = sum(leaf.size for leaf in jax.tree.leaves(model.weights))
    assert num_parameters(model.config) == held + model.beside.rows.size
    stored = load_file(folders["sharing"] / "model.safetensors")
    table = stored["model.embed_tokens_per_layer.weight"]
    np.testing.assert_array_equal(model.beside.read([[5, 9], [2, 5]]), table[[[5, 9], [2, 5]]])


@slow
def test_training_on_sampled_tokens_runs(folders):
    given = flags(folders["sharing"], "--ppo.level", "token", "--env.episodes", "2")
    given += ["--env.rounds", "1"]
    trained = train_population(load_members(None, [*given, "--updates", "2"]), say=silent)[""]
    assert np.isfinite([record["loss"] for record in trained.history]).all()


@slow
def test_linear_layers_that_a_model_has_not_are_refused(folders):
    message = r"lora.targets: .* has no linear layer router, only q k v o gate up down layer_gate"
    with pytest.raises(UserError, match=message):
        make_agent(
            resolve(config.load(None, flags(folders["sharing"], "--lora.targets", "[router]")))
        )
