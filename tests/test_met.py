"""Agents that do not learn, and past selves, as those who are met."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from mixing import TABULAR, assert_expected, assert_gradient, plain, settings
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent, policy_table
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.inputs import Conditions
from jaxmoral.learning.met import Met
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.saved import load_trained, update_of
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.models.peft import save_peft
from jaxmoral.world import chain
from jaxmoral.world.games import get_game, mirror
from jaxmoral.world.machines import agent_machine
from jaxmoral.world.memory import make_memory
from jaxmoral.world.pairs import agent_player, machine_player, meet

PAST = ["--mixture.opponents", "{tit-for-tat: 1, past(2): 3}", "--checkpoint_every", "3"]


def assert_alike(found, expected):
    """Records of two runs, to float32 rounding."""
    for ours, theirs in zip(found.history, expected.history, strict=True):
        for key, value in plain(theirs).items():
            assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.fixture(scope="module")
def selfish(tmp_path_factory):
    """The folder of a short tabular run, whose agent answers illegally now and then."""
    folder = tmp_path_factory.mktemp("runs") / "selfish"
    fit_agent(settings("--reward.name", "game", "--updates", "3"), folder, say=quiet)
    return folder


def test_a_folder_takes_no_name_of_a_machine(selfish, tmp_path, monkeypatch):
    """A run called like one may stand beside; any other name means a folder, with ./ before it."""
    for name in ("tit-for-tat", "friend"):
        shutil.copytree(selfish, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    flags = ["--env.opponent", "tit-for-tat", "--updates", "1"]
    beside = fit_agent(settings(*flags), say=quiet)
    monkeypatch.chdir(selfish.parent)
    elsewhere = fit_agent(settings(*flags), say=quiet)
    chex.assert_trees_all_equal(beside.state, elsewhere.state)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"env\.opponent: friend is a run folder; write \./friend"):
        settings("--env.opponent", "friend")


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2])
def test_an_agent_as_a_machine_does_what_the_agent_does(length, blank):
    """In float64 of two players in closed form; what is illegal counts as the last legal move."""
    memory = make_memory(length, blank=blank)
    rows = len(memory.histories) * 4
    random = np.random.default_rng(length)
    ours, theirs = (
        np.asarray(chain.memory_policy(jax.nn.log_softmax(random.normal(size=(rows, 3)))))
        for _ in range(2)
    )
    player = agent_player(memory, ours)
    both = meet([player], [agent_player(memory, theirs)], num_rounds=6).episode[0, 0]
    found = meet([player], [machine_player(agent_machine(memory, theirs))], num_rounds=6)
    expected = both[..., :2].copy()
    for previous in range(memory.num_previous):
        last = previous % 2 if previous < 4 else 0
        expected[previous, :, last] += both[previous, :, 2]
    np.testing.assert_allclose(found.episode[0, 0], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_a_run_is_met_as_the_machine_that_its_policy_is(selfish, estimator, monkeypatch):
    met = load_trained(selfish)
    agent, trainable = met.agent, met.trainable
    shown = Condition(get_game("ipd"), agent.presentation)
    policy = np.asarray(chain.memory_policy(policy_table(agent, shown, trainable).log_probs))
    cells = [[1, 1], [1, 0], [0, 1], [0, 0]]  # (own C, other's C) by the newest cell
    cooperate = [row[0] + row[2] * own for row, (own, _) in zip(policy, cells, strict=True)]
    machine = {"cooperate": [*map(float, cooperate), 0.5], "transitions": [[0, 1, 2, 3]] * 5}
    named = ["--opponents.frozen", json.dumps(machine | {"start": 4})]
    named += ["--env.opponent", "frozen", "--ppo.estimator", estimator]
    alone = fit_agent(settings(*named), say=quiet)
    met = ["--ppo.estimator", estimator, "--env.opponent"]
    for name in (str(selfish), f"{selfish}@3"):
        found = fit_agent(settings(*met, name), say=quiet)
        assert found.config.env.opponent == f"{selfish}@3"
        assert_alike(found, alone)
    monkeypatch.chdir(selfish.parent)
    beside = fit_agent(settings(*met, f"./{selfish.name}"), say=quiet)
    assert beside.config.env.opponent == f"./{selfish.name}@3"
    assert_alike(beside, alone)
    earlier = fit_agent(settings(*met, f"{selfish}@0"), say=quiet)
    assert plain(earlier.history[0]) != plain(alone.history[0])


@pytest.mark.slow
def test_the_best_checkpoint_is_met_by_its_number(tmp_path):
    """Of a run whose entropy weighs more and more, so that it ends worse than it was."""
    run, flags = tmp_path / "odd@best", ["--ppo.entropy_coef", "0", "--ppo.final_entropy_coef"]
    flags += ["1000", "--updates", "4", "--checkpoint_every", "1", "--reward.name", "game"]
    fit_agent(settings(*flags), run, say=quiet)
    newest, best = update_of(run), update_of(run, "best")
    assert best != newest
    numbered = fit_agent(settings("--env.opponent", f"{run}@{best}"), say=quiet)
    folder, ask = tmp_path / "found", ["--env.opponent", f"{run}@best"]
    fit_agent(settings(*ask, "--updates", "3", "--ppo.final_entropy_coef", "1"), folder, say=quiet)
    found = fit_agent(settings(*ask), say=quiet)
    assert found.config.env.opponent == f"{run}@{best}"
    assert_alike(found, numbered)
    again = settings(*ask, "--updates", "4", "--ppo.final_entropy_coef", "1")
    resumed = fit_agent(again, folder, resume=True, say=quiet)
    assert resumed.config.env.opponent == f"{run}@{best}"
    plain_name = fit_agent(settings("--env.opponent", str(run), "--updates", "1"), say=quiet)
    assert plain_name.config.env.opponent == f"{run}@{newest}"  # though it ends in @best
    both = ["--mixture.opponents", json.dumps({str(run): 1, f"{run}@best": 1})]
    with pytest.raises(UserError, match=r"are of one run; name its checkpoints by their numbers"):
        fit_agent(settings(*both), say=quiet)


@pytest.mark.parametrize("kind", ["other", "peft"])
def test_an_agent_sees_the_condition_from_its_own_side(kind, tiny_flags, tmp_path):
    """A model in an asymmetric game and other labels than it was trained on, by its own rank."""
    own = [*tiny_flags, "--prompt.labels", "[X, Y]", "--updates", "2"]
    fit_agent(configs.load(None, [*own, "--lora.rank", "2"]), tmp_path / "other", say=quiet)
    stored = load_trained(tmp_path / "other")
    other, trainable = stored.agent, stored.trainable
    (tmp_path / "peft").mkdir()
    save_peft(tmp_path / "peft", other.model.config, trainable["adapter"], other.lora, "base")
    flags = ["--mixture.games", "[bos]", "--mixture.labels", "[[A, B], [X, Y]]"]
    flags += ["--env.opponent", str(tmp_path / kind)]
    config = resolve(configs.load(None, [*own, *flags]))
    agent = make_agent(config)
    members = [(config, agent)]
    conditions = Conditions(members, Met(members))
    for update in range(3):
        shown = conditions.shown(update)
        arena = conditions.environment(shown, update)
        (condition,) = shown[0][0]
        mirrored = condition._replace(game=mirror(condition.game))
        assert mirrored.game.payoffs[0, 0, 0] == 2  # what the row player gets is 3
        policy = np.asarray(chain.memory_policy(policy_table(other, mirrored, trainable).log_probs))
        expected = agent_machine(make_memory(), policy)
        np.testing.assert_allclose(arena.opponent.moves, expected.moves, atol=1e-6)


def test_members_and_adapters_are_met_too(tiny_flags, tmp_path):
    own = [*tiny_flags, "--prompt.labels", "[X, Y]", "--updates", "2", "--ppo.estimator", "exact"]
    members = configs.load_members(None, [*own, "--seed", "[0, 1]"])
    fit_population(members, tmp_path / "both", say=quiet)
    member = tmp_path / "both" / "seed=1"
    trained = load_trained(member)
    (tmp_path / "peft").mkdir()
    agent = trained.agent
    config, adapter = agent.model.config, trained.trainable["adapter"]
    save_peft(tmp_path / "peft", config, adapter, agent.lora, "base")
    runs = [
        fit_agent(configs.load(None, [*own, "--env.opponent", str(path)]), say=quiet)
        for path in (member, tmp_path / "peft")
    ]
    numbered = configs.load(None, [*own, "--env.opponent", f"{tmp_path / 'peft'}@2"])
    with pytest.raises(UserError, match="peft holds a PEFT adapter, which has no checkpoints"):
        fit_agent(numbered, say=quiet)
    one, other = ([plain(record) for record in run.history] for run in runs)
    assert one == other
    against_base = fit_agent(configs.load(None, [*own, "--env.opponent", "past(9)"]), say=quiet)
    assert plain(against_base.history[0]) != one[0]


@pytest.mark.slow
def test_the_past_is_remembered_as_it_was(tmp_path):
    """What is met in update 5 is the policy before update 0, 2 or 4, each as often."""
    config = settings(*PAST, "--updates", "6")
    members = [(config, make_agent(config))]
    met = Met(members)
    state, step = compile_update(members, met)
    conditions, kept = Conditions(members, met), []
    for update in range(5):
        kept.append(np.asarray(state.players.trainable["logits"][0]))
        state, _ = step(state, update)
    ((group,),), found = conditions.shown(5), []
    for seed in range(300):
        met._members = [(dataclasses.replace(config, seed=seed), members[0][1])]
        ((machine, _),) = met.machines(0, group, update=5, packed=conditions.packed)
        expected = {
            past: agent_machine(
                make_memory(),
                np.asarray(chain.memory_policy(jax.nn.log_softmax(kept[past]))),
            )
            for past in (0, 2, 4)
        }
        found += [p for p, e in expected.items() if np.allclose(machine.moves, e.moves, atol=1e-6)]
    assert len(found) == 300
    counts = [found.count(past) for past in (0, 2, 4)]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 15  # p < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("check", [assert_expected, assert_gradient])
def test_the_exact_estimator_takes_the_expectation_over_them(selfish, check):
    flags = ["--mixture.opponents", json.dumps({"prober": 2, "past(2)": 1, str(selfish): 1})]
    flags += ["--mixture.games", "[ipd, bos]", "--mixture.conditions", "2"]
    config = settings(*flags, "--updates", "9")
    members = [(config, make_agent(config))]
    met = Met(members)
    state, step = compile_update(members, met)
    for update in range(5):
        state, _ = step(state, update)
    conditions = Conditions(members, met)
    check(conditions.environment(conditions.shown(5), 5))


def test_before_there_is_a_past_it_is_the_untrained_policy():
    base = {"cooperate": [2 / 3, 2 / 3, 1 / 3, 1 / 3, 0.5], "transitions": [[0, 1, 2, 3]] * 5}
    named = ["--opponents.base", json.dumps(base | {"start": 4}), "--env.opponent", "base"]
    expected = fit_agent(settings(*named), say=quiet)
    assert_alike(fit_agent(settings("--env.opponent", "past(6)"), say=quiet), expected)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_past(tmp_path):
    """Its checkpoints are kept however many there are; a run in memory is the same."""
    flags = [*PAST, "--updates", "14", "--checkpoint_every", "1"]
    whole = fit_agent(settings(*flags), say=quiet)
    cut = tmp_path / "cut"
    fit_agent(settings(*flags), cut, say=quiet)
    kept = {int(path.name) for path in (cut / "checkpoints").iterdir()}
    assert {0, 2, 4, 6, 8, 10, 12, 14} <= kept
    assert 3 not in kept
    for update in (12, 13, 14):
        shutil.rmtree(cut / "checkpoints" / str(update))
    resumed = fit_agent(settings(*flags), cut, resume=True, say=quiet)
    chex.assert_trees_all_equal(resumed.state, whole.state)
    shutil.rmtree(cut / "checkpoints" / "4")
    shutil.rmtree(cut / "checkpoints" / "14")
    with pytest.raises(UserError, match=r"meets itself as it was before update 4 \(no checkpoint"):
        fit_agent(settings(*flags), cut, resume=True, say=quiet)


@pytest.mark.slow
def test_a_run_that_is_met_may_have_gone_on_or_away(selfish, tmp_path):
    """A run stays with the checkpoint it began with; afterwards nobody needs the folder."""
    other, folder = tmp_path / "other", tmp_path / "run"
    shutil.copytree(selfish, other)
    flags = ["--mixture.opponents", json.dumps({str(other): 1, "random": 1})]
    flags += ["--ppo.final_entropy_coef", "1.0"]
    fit_agent(settings(*flags, "--updates", "2"), folder, say=quiet)
    longer = settings("--reward.name", "game", "--updates", "5")
    fit_agent(longer, other, resume=True, say=quiet, extend=True)
    resumed = fit_agent(settings(*flags, "--updates", "4"), folder, resume=True, say=quiet)
    assert set(resumed.config.mixture.opponents) == {f"{other}@3", "random"}
    newer = ["--mixture.opponents", json.dumps({f"{other}@5": 1, "random": 1}), "--updates", "4"]
    with pytest.raises(UserError, match=r"mixture\.opponents"):
        fit_agent(settings(*flags, *newer), folder, resume=True, say=quiet)
    shutil.rmtree(other)
    assert load_trained(folder).config.mixture.opponents == resumed.config.mixture.opponents
    with pytest.raises(UserError, match=r"mixture\.opponents: there is no run and no PEFT adapter"):
        fit_agent(settings(*flags, "--updates", "6"), folder, resume=True, say=quiet)


def test_one_agent_under_two_names_is_refused(selfish):
    names = json.dumps({str(selfish): 1, f"{selfish}@3": 2})
    with pytest.raises(UserError, match=r"mixture\.opponents: .* are the same agent"):
        fit_agent(settings("--mixture.opponents", names), say=quiet)


def test_a_long_path_is_no_long_key(selfish, tmp_path):
    folder = tmp_path / ("x" * 150) / "selfish"
    shutil.copytree(selfish, folder)
    flags = ["--mixture.opponents", json.dumps({str(folder): 1, "random": 1}), "--updates", "1"]
    fit_agent(settings(*flags), tmp_path / "run", say=quiet)
    assert f"{folder}@3" in load_trained(tmp_path / "run").config.mixture.opponents


@pytest.mark.slow
def test_members_meet_their_own_past():
    members = configs.load_members(None, [*TABULAR, *PAST, "--seed", "[0, 1]"])
    together = fit_population(members, say=quiet)
    for name, config in members.items():
        alone = fit_agent(config, say=quiet)
        chex.assert_trees_all_equal(together[name].state, alone.state)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env.opponent", "runs/nobody"], r"env\.opponent: there is no run and no PEFT adapter"),
        (["--env.opponent", "past(0)"], r"unknown name 'past'|past"),
        (["--env.memory", "2"], r"env\.opponent: .* its env\.memory is 1, not 2"),
        (["--env.blank_start", "true"], r"its env\.blank_start is False, not True"),
        (["--prompt.template", "chat"], r"its prompt\.template is plain, not chat"),
        (["--model.quantisation", "nf4"], r"its model\.quantisation is none, not nf4"),
        (["--thinking.cue", "So"], r"its thinking\.cue is None, not So"),
        (
            ["--env.game", "public-goods(3)"],
            r"env\.opponent: .* needs a game of two players",
        ),
        (
            ["--env.streams", "numpy"],
            r"env\.opponent: .* is an agent and needs env\.streams jax",
        ),
        (["--opponents.past(2)", "{cooperate: [1], transitions: [[0, 0, 0, 0]]}"], "stands for"),
        (["--mixture.opponents", "{runs/nobody: 1}"], r"mixture\.opponents: there is no run"),
    ],
)
def test_who_cannot_be_met_is_refused(selfish, flags, message):
    with pytest.raises(UserError, match=message):
        fit_agent(settings("--env.opponent", str(selfish), *flags), say=quiet)


@pytest.mark.slow
def test_an_agent_for_three_players_is_not_met_in_a_game_of_two(tmp_path):
    game = ["--env.game", "public-goods(3)", "--env.opponent", "conditional"]
    fit_agent(settings(*game, "--updates", "1"), tmp_path / "three", say=quiet)
    with pytest.raises(UserError, match="its number of players is 3, not 2"):
        fit_agent(settings("--env.opponent", str(tmp_path / "three")), say=quiet)


def test_who_thinks_before_it_answers_is_not_met_by_who_does_not(tmp_path):
    chat = ["--prompt.template", "chat", "--updates", "1"]
    fit_agent(settings(*chat), tmp_path / "run", say=quiet)
    flags = [*chat, "--prompt.thinking", "off", "--env.opponent", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"its prompt\.thinking is .*, not off"):
        fit_agent(settings(*flags), say=quiet)


def test_an_agent_of_another_model_is_refused(selfish, tiny_flags):
    flags = [*tiny_flags, "--prompt.labels", "[X, Y]", "--env.opponent", str(selfish)]
    with pytest.raises(UserError, match=r"its policy is a table, not a language model"):
        fit_agent(configs.load(None, flags), say=quiet)
