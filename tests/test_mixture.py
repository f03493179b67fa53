"""Mixtures: what is drawn, that nothing is made twice, and that one of one is a run alone."""

import dataclasses
import itertools
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from mixing import TABULAR, assert_expected, assert_gradient, plain, settings
from run_files import quiet
from scipy import stats

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language.novelty import Seen, held_out_labels, mark
from jaxmoral.language.prompts import Condition, Presentation
from jaxmoral.learning.agent import make_agent, policy_table
from jaxmoral.learning.environments import environment
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.inputs import Conditions
from jaxmoral.learning.met import Met
from jaxmoral.learning.mixture import (
    LISTS,
    drawn,
    every_condition,
    kinds_of_labels,
    label_pairs,
    labels_in_words,
    player_conditions,
    without_points,
)
from jaxmoral.learning.population import prompts_differ
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.world.games import get_game

PAIRS = "[[X, Y], [Y, X], [A, B], [B, A]]"
GAMES = "[ipd, icd, bos]"
READY = Path(__file__).parents[1] / "configs" / "mixture"


def test_of_several_players_nobody_but_those_of_the_mixture_need_be_known():
    group = ["--env.game", "group(ipd,3)", "--mixture.opponents"]
    assert settings(*group, "{conditional: 1, random: 1}").env.opponent == "tit-for-tat"
    with pytest.raises(UserError, match="mixture.opponents: unknown name 'tit-for-tat'"):
        settings(*group, "{tit-for-tat: 1, random: 1}")


def test_every_condition_is_drawn_as_often():
    config = settings("--mixture.games", GAMES, "--mixture.labels", PAIRS)
    choices = [choice for update in range(2400) for choice in drawn(config, update)]
    found = Counter((choice.game.name, choice.labels) for choice in choices)
    assert len(found) == 12
    expected = 2400 / 12
    assert sum((count - expected) ** 2 / expected for count in found.values()) < 35  # p < 0.0003


def test_the_conditions_of_an_update_differ_from_each_other():
    config = settings("--mixture.labels", PAIRS, "--mixture.conditions", "3")
    for update in range(50):
        assert len({choice.labels for choice in drawn(config, update)}) == 3


def test_draws_belong_to_the_seed_and_the_update():
    def labels(*flags):
        config = settings("--mixture.labels", "words(50)", *flags)
        return [choice.labels for update in range(20) for choice in drawn(config, update)]

    assert labels() == labels()
    assert labels() != labels("--seed", "1")


def test_drawn_payoffs_do_not_depend_on_the_condition():
    """Of the temptations with either labels, the means are alike."""
    flags = ["--mixture.labels", "[[X, Y], [Y, X]]", "--env.payoff_draws", "1"]
    config = settings(*flags, "--env.payoff_range", "[1, 50]")
    found = defaultdict(list)
    for update in range(600):
        ((condition,),) = player_conditions(config, Presentation(), update)
        found[condition.presentation.labels].append(condition.game.payoffs.max())
    one, other = found.values()
    assert stats.ttest_ind(one, other).pvalue > 0.001


def test_words_are_pairs_that_can_be_told_apart():
    pairs = label_pairs(settings("--mixture.labels", "words(200)"))
    assert len(pairs) == len(set(pairs)) == 200
    used = [word for pair in pairs for word in pair]
    assert len(set(used)) == 400
    assert not any(a.startswith(b) or b.startswith(a) for a, b in pairs)
    both = label_pairs(settings("--mixture.labels", "words(200)", "--mixture.both_ways", "true"))
    assert set(both) == {*pairs, *((b, a) for a, b in pairs)}


@pytest.mark.parametrize("name", LISTS)
def test_pairs_are_of_one_kind_and_few_of_many_kinds(name):
    kinds = kinds_of_labels(name)
    for seed in ("0", "1"):
        asked = f"{name}({3 * len(kinds)})"
        config = settings("--mixture.labels", asked, "--seed", seed)
        assert labels_in_words(config) == labels_in_words(resolve(config)) == asked
        pairs = label_pairs(config)
        kind_of = lambda pair: [{*pair} <= {*kind} for kind in kinds].index(True)
        found = Counter(map(kind_of, pairs))
        assert found == dict.fromkeys(range(len(kinds)), 3)


@pytest.mark.parametrize("path", sorted(READY.glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_mixtures_resolve(path):
    config = resolve(configs.load(path))
    assert len({choice.name for update in range(9) for choice in drawn(config, update)}) > 1


def test_held_out_labels_are_in_no_list():
    held = held_out_labels()
    assert len(held) == len(set(held)) >= 40
    known = [label for kind in kinds_of_labels("labels") for label in kind]
    assert len(known) == len(set(known))
    assert not {label for pair in held for label in pair} & set(known)
    assert not any(a.startswith(b) or b.startswith(a) for a, b in held)


def test_what_a_condition_shows_that_training_did_not():
    ipd, bos = get_game("ipd"), get_game("bos")
    seen = Seen(
        (ipd,), (("X", "Y"), ("A", "B"), ("B", "A")), ("structured",), ("none",), ("original",)
    )
    shown = Presentation(labels=("A", "B"))
    assert mark(Condition(ipd, shown), seen) == "seen"
    assert mark(Condition(bos, shown), seen) == "new game"
    assert mark(Condition(ipd, shown._replace(labels=("Y", "X"))), seen) == "exchanged labels"
    strange = shown._replace(labels=("p", "q"), table_order="reversed")
    assert mark(Condition(bos, strange), seen) == "new game, new labels, new table order"
    told = strange._replace(wording="story")
    assert mark(Condition(bos, told), seen) == "new labels, new wording"  # it shows no more


ONE = ["--mixture.games", "[ipd]", "--mixture.labels", "[[X, Y]]", "--prompt.labels", "[X, Y]"]
ONE += ["--mixture.wordings", "[structured]", "--mixture.table_orders", "[original]"]


SETTINGS = {
    "plain": [],
    "two learners": ["--env.opponent", "learner"],
    "by tokens": ["--ppo.level", "token", "--env.episodes", "2", "--env.rounds", "2"],
    "the paper's streams": ["--env.streams", "numpy"],
    "drawn payoffs": ["--env.payoff_draws", "2"],
    "exact, longer memory": ["--ppo.estimator", "exact", "--env.memory", "2"],
    "blank start, noise": ["--env.blank_start", "true", "--env.noise", "0.1"],
    "two rewards": ["--reward.name", "game", "--reward.then", "utilitarian"],
    "minibatches": ["--ppo.epochs", "2", "--ppo.minibatches", "3"],
    "own past": ["--env.opponent", "past(1)", "--updates", "3"],
}


@pytest.mark.parametrize("flags", SETTINGS.values(), ids=SETTINGS)
def test_a_mixture_of_one_is_the_run_without(tiny_flags, flags):
    flags = [*tiny_flags, "--updates", "2", *flags]
    alone = fit_agent(configs.load(None, [*flags, "--prompt.labels", "[X, Y]"]), say=quiet)
    mixed = fit_agent(configs.load(None, [*flags, *ONE]), say=quiet)
    chex.assert_trees_all_equal(mixed.state, alone.state)
    assert [plain(r) for r in mixed.history] == [plain(r) for r in alone.history]


def test_games_of_several_players_are_mixed():
    """In each update the one that is drawn is played, as if it were alone."""
    games = ["public-goods(3,10,1.2)", "public-goods(3,10,2.5)"]
    flags = ["--env.opponent", "conditional", "--ppo.estimator", "exact", "--env.game"]
    mixed = settings(*flags, games[0], "--mixture.games", json.dumps(games))
    found = fit_agent(mixed, say=quiet).history[0]
    alone = fit_agent(settings(*flags, found["conditions"][0]), say=quiet)
    assert plain(found) == plain(alone.history[0])


@pytest.mark.parametrize(
    "flags", [[], ["--env.payoff_draws", "2", "--mixture.games", "[ipd, ish]"]]
)
def test_prompts_of_every_update_have_one_shape_and_their_own_reference(tiny_flags, flags):
    """Labels of one token and of several, several wordings: as if the condition were alone."""
    given = ["--prompt.labels", "[X, Y]", "--mixture.wordings", "[structured, story]"]
    given += ["--mixture.labels", "[[X, Y], [A, B], [cat, dog]]", "--mixture.conditions", "2"]
    config = resolve(configs.load(None, [*tiny_flags, *given, *flags]))
    agent = make_agent(config)
    members = [(config, agent)]
    conditions = Conditions(members, Met(members))
    shapes = set()
    for update in range(6):
        shown = conditions.shown(update)
        ((group,),) = shown
        prompts, reference = conditions.prompts(shown), conditions.reference(shown)
        shapes.add(str(jax.tree.map(np.shape, (prompts, reference))))
        table = lambda c: policy_table(agent, c, agent.policy.reference_parameters()).log_probs
        alone = np.concatenate([table(condition) for condition in group])
        np.testing.assert_allclose(reference[0], alone, atol=1e-5)
    assert len(shapes) == 1


def test_a_condition_is_made_once_and_kept_within_the_limit(tiny_flags, monkeypatch):
    flags = [*tiny_flags, "--prompt.labels", "[X, Y]", "--mixture.labels", PAIRS]

    def made(kept):
        config = resolve(configs.load(None, [*flags, "--mixture.kept", str(kept)]))
        agent, calls = make_agent(config), []
        members, make, seen = [(config, agent)], agent.prompter.pack, []
        monkeypatch.setattr(agent.prompter, "pack", lambda *a: calls.append(a) or make(*a))
        conditions = Conditions(members, Met(members))
        for update in range(40):
            shown = conditions.shown(update)
            conditions.prompts(shown)
            conditions.reference(shown)
            seen.append(shown[0][0][0].key)
        return len(calls), seen

    assert made(10)[0] == 4
    calls, seen = made(1)
    assert calls == 1 + sum(before != after for before, after in itertools.pairwise(seen))


def test_nothing_is_compiled_after_the_first_update(tiny_flags, caplog):
    flags = ["--mixture.games", GAMES, "--mixture.labels", PAIRS, "--mixture.conditions", "2"]
    flags += ["--updates", "6", "--prompt.labels", "[X, Y]"]
    config = resolve(configs.load(None, [*tiny_flags, *flags]))
    state, step = compile_update([(config, make_agent(config))])
    state, _ = step(state, 0)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        for update in range(1, 6):
            state, metrics = step(state, update)
    compiled = [record for record in caplog.records if "Compiling" in record.message]
    assert np.isfinite(metrics["loss"]).all()
    assert not compiled


@pytest.mark.slow
def test_the_log_says_what_was_drawn_and_a_resumed_run_goes_on(tmp_path):
    flags = [*TABULAR, "--mixture.games", GAMES, "--mixture.labels", PAIRS]
    flags += ["--mixture.conditions", "2", "--checkpoint_every", "2"]
    config = configs.load(None, flags)
    whole = fit_agent(config, tmp_path / "whole", say=quiet)
    fit_agent(config, tmp_path / "cut", say=quiet)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    resumed = fit_agent(config, tmp_path / "cut", resume=True, say=quiet)
    chex.assert_trees_all_equal(resumed.state, whole.state)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    told = [[record["conditions"] for record in log] for log in logs]
    assert told[0] == told[1]
    resolved = resolve(config)
    for update, names in enumerate(told[0]):
        expected = [f"{c.game.name} {'/'.join(c.labels)}" for c in drawn(resolved, update)]
        assert names == expected


@pytest.mark.slow
def test_members_of_a_population_draw_for_themselves(tmp_path):
    flags = [*TABULAR, "--mixture.games", GAMES]
    members = configs.load_members(None, [*flags, "--seed", "[0, 1]"])
    together = fit_population(members, tmp_path / "both", say=quiet)
    for name, config in members.items():
        alone = fit_agent(config, say=quiet)
        chex.assert_trees_all_equal(together[name].state, alone.state)
        assert [r["conditions"] for r in together[name].history] == [
            r["conditions"] for r in alone.history
        ]


def test_members_on_a_model_are_shown_their_own_conditions(tiny_flags):
    """Packed prompts and references of each member, as of the run alone: 1e-4 relative."""
    flags = [*tiny_flags, "--prompt.labels", "[X, Y]", "--mixture.labels", PAIRS]
    flags += ["--mixture.games", "[ipd, bos]", "--mixture.conditions", "2"]
    members = configs.load_members(None, [*flags, "--seed", "[0, 1]"])
    together = fit_population(members, say=quiet)
    for name, config in members.items():
        alone = fit_agent(config, say=quiet)
        assert together[name].history[-1]["conditions"] == alone.history[-1]["conditions"]
        for key in ("reward_mean", "loss", "kl", "p_illegal"):
            ours = [record[key] for record in together[name].history]
            assert ours == pytest.approx([r[key] for r in alone.history], rel=1e-4, abs=1e-6), key


def test_words_drawn_by_the_seed_differ_between_members():
    configs_ = [settings("--mixture.labels", "words(1)", "--seed", seed) for seed in ("0", "1")]
    agents = [make_agent(config) for config in configs_]
    assert prompts_differ(list(zip(configs_, agents, strict=True)))


def test_a_run_is_about_the_first_of_its_conditions():
    """What else reads the configuration (chat, reports, suites) sees what was trained on."""
    flags = ["--mixture.games", "[bos, icd]", "--mixture.labels", "words(20)"]
    config = settings(*flags, "--mixture.table_orders", "[reversed]", "--seed", "3")
    (first, *_) = every_condition(config, Presentation())
    assert (config.env.game, config.prompt.table_order) == ("bos", "reversed")
    assert config.prompt.labels == first.presentation.labels == config.mixture.labels[0]
    assert len(config.mixture.labels) == 20  # spelled out, whatever becomes of the list
    assert resolve(config) == config


def test_tokens_want_labels_of_one_length(tiny_flags):
    flags = [*tiny_flags, "--prompt.labels", "[X, Y]", "--ppo.level", "token"]
    config = resolve(configs.load(None, [*flags, "--mixture.labels", "[[X, Y], [cat, dog]]"]))
    with pytest.raises(UserError, match=r"mixture\.labels: with ppo\.level token"):
        make_agent(config)


def test_several_games_are_the_mean_of_each():
    """The exact estimator's reward of a mixture is that of its games, each as often."""
    flags = ["--ppo.estimator", "exact", "--updates", "1"]
    mixed = fit_agent(
        settings(*flags, "--mixture.games", GAMES, "--mixture.conditions", "3"), say=quiet
    )
    alone = [
        fit_agent(settings(*flags, "--env.game", name), say=quiet).history[0]["reward_mean"]
        for name in ("ipd", "icd", "bos")
    ]
    assert mixed.history[0]["reward_mean"] == pytest.approx(np.mean(alone), rel=1e-5)


MET = ["--mixture.opponents", "{tit-for-tat: 2, always-defect: 1, prober: 1}"]


@pytest.mark.slow
def test_the_expectation_over_opponents_is_the_mean_of_sampled_episodes():
    flags = ["--mixture.games", "[ipd, bos]", "--mixture.conditions", "2"]
    assert_expected(environment(settings(*MET, *flags)))


@pytest.mark.slow
def test_its_gradient_is_that_of_finite_differences():
    flags = ["--mixture.games", "[ipd, icd]", "--mixture.conditions", "2"]
    assert_gradient(environment(settings(*MET, *flags)))


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_one_opponent_in_a_mixture_is_that_opponent(estimator):
    flags = ["--ppo.estimator", estimator]
    alone = fit_agent(settings(*flags, "--env.opponent", "prober"), say=quiet)
    mixed = fit_agent(settings(*flags, "--mixture.opponents", "{prober: 3}"), say=quiet)
    chex.assert_trees_all_equal(mixed.state, alone.state)


@pytest.mark.slow
def test_a_population_meets_a_mixture_of_opponents():
    members = configs.load_members(None, [*TABULAR, *MET, "--reward.xi", "[1, 4]"])
    together = fit_population(members, say=quiet)
    for name, config in members.items():
        chex.assert_trees_all_equal(together[name].state, fit_agent(config, say=quiet).state)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mixture.games", "[]"], r"mixture\.games"),
        (["--mixture.labels", "[]"], r"mixture\.labels"),
        (["--mixture.labels", "[[A, A1]]"], r"mixture\.labels: .* cannot be told apart"),
        (["--mixture.labels", "words(9999)"], r"mixture\.labels: .* words\(n\) .* n from 1 to 250"),
        (["--mixture.labels", "labels(0)"], r"mixture\.labels: .* labels\(n\) with n from 1 to 3"),
        (["--mixture.labels", "letters"], r"mixture\.labels: 'letters' is neither"),
        (["--mixture.games", "['public-goods(3)']"], r"mixture\.games: .* has 3 players"),
        (["--mixture.games", "[chess]"], r"^mixture\.games: unknown name 'chess'"),
        (["--mixture.games", "['donation(1)']"], r"^mixture\.games: .* does not fit donation"),
        (["--mixture.wordings", "[nonsense]"], r"mixture\.wordings: unknown name 'nonsense'"),
        (["--mixture.conditions", "2"], r"mixture\.conditions: 2 cannot be drawn, .* holds 1"),
        (["--mixture.both_ways", "true"], r"mixture\.both_ways: needs mixture\.labels"),
        (["--mixture.tables", "x"], r"unknown key 'mixture\.tables'"),
        (["--mixture.wordings", "[]"], r"mixture\.wordings: names nothing; .* leave it out"),
        (["--mixture.opponents", "{tit-for-tat: 0}"], r"mixture\.opponents"),
        (["--mixture.opponents", "{}"], r"mixture\.opponents"),
        (["--mixture.opponents", "{nobody: 1}"], r"^mixture\.opponents: unknown name 'nobody'"),
        (
            ["--mixture.opponents", "{extortionate: 1}", "--mixture.games", "[ipd, bos]"],
            r"^mixture\.opponents: extortionate: .*bos has no zero-determinant",
        ),
        (
            ["--mixture.wordings", "['Say {choices} or {what} now']"],
            r"^mixture\.wordings: .* has the unknown placeholder {what}",
        ),
        (
            ["--mixture.games", GAMES, "--mixture.conditions", "3", "--env.episodes", "100"],
            r"mixture\.conditions: 3 games an update do not divide env\.episodes = 100",
        ),
        (
            ["--mixture.games", GAMES, "--mixture.conditions", "3", "--env.streams", "numpy"],
            r"mixture\.conditions: must be 1 with env\.streams numpy",
        ),
        (
            ["--mixture.games", GAMES, "--mixture.conditions", "3", "--ppo.level", "token"],
            r"mixture\.conditions: must be 1 with .* ppo\.level token",
        ),
        ([*MET, "--env.opponent", "learner"], r"mixture\.opponents: cannot stand with"),
        (
            ["--mixture.opponents", "{learner: 1, random: 1}"],
            r"mixture\.opponents: a learner cannot be one of several",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        settings(*flags)


def test_a_tree_that_is_too_large_is_refused_before_the_weights(tiny_flags):
    flags = ["--mixture.wordings", "[structured, story]", "--model.max_nodes", "60"]
    config = resolve(configs.load(None, [*tiny_flags, "--prompt.labels", "[X, Y]", *flags]))
    with pytest.raises(UserError, match=r"model\.max_nodes: one prompt alone is longer"):
        make_agent(config)


def test_wordings_that_show_no_game_are_said(tiny_flags):
    flags = ["--mixture.games", GAMES, "--mixture.wordings", "[structured, story, explicit]"]
    assert without_points(settings(*flags), "structured") == ["story", "explicit"]
    assert without_points(settings("--mixture.games", GAMES), "story") == ["story"]
    assert without_points(settings(*flags[2:]), "structured") == []
    config = resolve(configs.load(None, [*tiny_flags, "--prompt.labels", "[X, Y]", *flags]))
    told = [line for line in make_agent(config).summary if line.startswith("mixture")]
    assert [line.split("'")[1] for line in told] == ["story", "explicit"]


@pytest.mark.parametrize(("name", "most"), [("words", 250), ("labels", 300)])
def test_every_seed_has_as_many_pairs_as_can_be_asked_for(name, most):
    for seed in range(60):
        flags = ["--mixture.labels", f"{name}({most})", "--seed", str(seed)]
        assert len(label_pairs(configs.load(None, [*TABULAR, *flags]))) == most


def test_all_that_can_be_shown_is_known(tiny_flags):
    flags = ["--mixture.labels", PAIRS, "--mixture.games", GAMES, "--env.opponent", "learner"]
    config = settings(*flags)
    shown = {condition.key for condition in every_condition(config, Presentation())}
    member = dataclasses.replace(config, updates=50)
    members = [(member, make_agent(member))]
    conditions = Conditions(members, Met(members))
    for update in range(50):
        for group in conditions.shown(update)[0]:
            assert {condition.key for condition in group} <= shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--mixture.labels", "words(4)", "--prompt.labels", "[[A, B], [X, Y]]"],
            r"prompt\.labels: .* mixture\.labels takes its place",
        ),
        ([*MET, "--env.opponent", "[random, joss]"], r"env\.opponent: .* mixture\.opponents takes"),
        (
            ["--mixture.games", GAMES, "--env.game", "[ipd, bos]"],
            r"env\.game: .* mixture\.games takes",
        ),
    ],
)
def test_members_that_would_be_alike_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        fit_population(configs.load_members(None, [*TABULAR, *flags]), say=quiet)


@pytest.mark.slow
def test_members_may_have_the_words_their_seeds_drew(tmp_path):
    """As their files tell them apart when the population goes on."""
    flags = [*TABULAR, "--mixture.labels", "words(4)", "--seed", "[0, 1]"]
    members = configs.load_members(None, flags)
    fit_population(members, tmp_path / "runs", say=quiet)
    read = {name: configs.load(tmp_path / "runs" / name / "config.yaml", []) for name in members}
    assert len({config.prompt.labels for config in read.values()}) == 2
    longer = {name: dataclasses.replace(config, updates=8) for name, config in read.items()}
    trained = fit_population(longer, tmp_path / "runs", resume=True, extend=True, say=quiet)
    assert [len(one.history) for one in trained.values()] == [2, 2]


@pytest.mark.slow
def test_a_run_goes_on_with_more_or_less_kept(tmp_path):
    """How much is kept only takes memory."""
    shown = ["--mixture.games", GAMES, "--ppo.final_entropy_coef", "1"]
    whole = fit_agent(settings(*shown, "--updates", "8"), say=quiet)
    fit_agent(settings(*shown, "--updates", "4"), tmp_path / "run", say=quiet)
    config = settings(*shown, "--updates", "8", "--mixture.kept", "1")
    resumed = fit_agent(config, tmp_path / "run", resume=True, say=quiet)
    assert len(resumed.history) == 4
    assert [plain(record) for record in resumed.history] == [plain(r) for r in whole.history[4:]]
