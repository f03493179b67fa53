"""A checkpoint's reward is that of the policy in it: against episodes enumerated by hand."""

import itertools
import json
from collections import defaultdict
from functools import partial

import chex
import numpy as np
import pytest
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral import evaluate
from jaxmoral.errors import UserError
from jaxmoral.learning import training
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.saved import load_population, load_trained
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.measuring.evaluation import evaluate_agent

FLAGS = ["--model.source", "tabular", "--env.episodes", "256", "--ppo.learning_rate", "0.3"]
FLAGS += ["--updates", "8", "--checkpoint_every", "1", "--env.rounds", "4"]
POINTS = {"CC": (3, 3), "CD": (0, 4), "DC": (4, 0), "DD": (1, 1)}
# Of the second player: it repeats the first one's last move, whatever its own was.
TIT_FOR_TAT = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], float)


measure = partial(evaluate_agent, protocols=["exact"])


def policy_of(logits):
    """P(C, D, illegal) after CC, CD, DC, DD (own move first), over the four label orders."""
    odds = np.exp(np.asarray(logits, float))
    return (odds / odds.sum(-1, keepdims=True)).reshape(4, 4, 3).mean(1)


def expected_reward(one, two, score, rounds=4):
    """Mean reward a round of `one`, over every course an episode can take.

    After an illegal answer a player's last legal move stands for it, in the other's score too.
    """
    before = dict.fromkeys(itertools.product("CD", "CD"), 0.25)
    total = 0.0
    for _ in range(rounds):
        after = defaultdict(float)
        for (a, b), chance in before.items():
            row, other = "CD".index(a) * 2 + "CD".index(b), "CD".index(b) * 2 + "CD".index(a)
            for (i, mine), (j, theirs) in itertools.product(enumerate("CDx"), enumerate("CDx")):
                odds = chance * one[row, i] * two[other, j]
                played = b if theirs == "x" else theirs
                total += odds * (-6 if mine == "x" else score(mine + played))
                after[a if mine == "x" else mine, played] += odds
        before = after
    return total / rounds


SCORES = {
    "game": lambda cell: POINTS[cell][0],
    "utilitarian": lambda cell: sum(POINTS[cell]),
}


@pytest.fixture
def saved(monkeypatch):
    """Every checkpoint's parameters and rewards by its update, as they were saved."""
    found = {}
    save = Checkpoints.save

    def spy(self, update, state, *, members, rewards):
        found[update] = np.array(state.players.trainable["logits"]), list(rewards)
        return save(self, update, state, members=members, rewards=rewards)

    monkeypatch.setattr(Checkpoints, "save", spy)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "score"),
    [
        (["--reward.name", "game"], "game"),
        (["--reward.name", "utilitarian", "--reward.then", "game"], "game"),
        (
            [
                *("--reward.name", "game", "--reward.then", "utilitarian"),
                *("--reward.transition", "linear"),
            ],
            "utilitarian",
        ),
        (["--reward.name", "game", "--env.payoff_draws", "4"], "game"),
        (["--reward.name", "utilitarian", "--env.opponent", "learner"], "utilitarian"),
    ],
)
def test_the_reward_is_that_of_the_policy_in_the_checkpoint(flags, score, saved, tmp_path):
    fit_agent(configs.load(None, [*FLAGS, *flags]), tmp_path / "run", say=quiet)
    assert sorted(saved) == list(range(9))
    for logits, rewards in saved.values():
        players = [policy_of(own) for own in logits]
        other = players[1] if len(players) > 1 else TIT_FOR_TAT
        hand = expected_reward(players[0], other, SCORES[score])
        assert rewards == [pytest.approx(hand, abs=1e-5)]
    best = max(saved, key=lambda update: saved[update][1])
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.best() == best


def spoil(monkeypatch, ruined):
    """After update `ruined[i]` player or member i does what it would not have done."""

    def compile_update(members, met):
        state, step = training.compile_update.original(members, met)

        def spoiled(state, update):
            state, values = step(state, update)
            trainable = state.players.trainable
            logits = trainable["logits"]
            for index, when in ruined.items():
                if update + 1 == when:
                    logits = logits.at[index].multiply(-3.0)
            players = state.players._replace(trainable=trainable | {"logits": logits})
            return state._replace(players=players), values

        return state, spoiled

    compile_update.original = training.compile_update
    monkeypatch.setattr(training, "compile_update", compile_update)


@pytest.mark.slow
def test_an_update_that_ruins_a_policy_is_not_the_best(tmp_path, monkeypatch):
    spoil(monkeypatch, {0: 8})
    config = configs.load(None, [*FLAGS, "--reward.name", "utilitarian"])
    trained = fit_agent(config, tmp_path / "run", say=quiet)
    rewards = [record["reward_mean"] for record in trained.history]
    assert max(rewards) == rewards[-1]  # of the policy before the last update
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.best() == 7
    best = measure(tmp_path / "run", update=7)
    assert measure(tmp_path / "run", update="best") == best
    assert measure(tmp_path / "run") != best


@pytest.mark.slow
def test_each_member_has_its_own_best_and_it_is_kept(tmp_path, monkeypatch, saved):
    spoil(monkeypatch, {0: 3, 1: 5})
    flags = [*FLAGS, "--reward.name", "utilitarian", "--seed", "[0, 1]", "--ppo.clip", "0.01"]
    folder = tmp_path / "many"
    together = fit_population(configs.load_members(None, flags), folder, say=quiet)
    best = [max(saved, key=lambda update: saved[update][1][member]) for member in (0, 1)]
    assert best == [2, 4]  # older than the newest three
    kept = {int(path.name) for path in (folder / "checkpoints").iterdir()}
    assert kept == {2, 4, 6, 7, 8}
    everyone = dict(load_population(folder, "best"))
    for member, name in enumerate(together):
        logits = saved[best[member]][0][member]
        trainable = load_trained(folder / name, "best").trainable
        np.testing.assert_array_equal(trainable["logits"], logits[0])
        np.testing.assert_array_equal(everyone[folder / name].trainable["logits"], logits[0])
    newest = dict(load_population(folder))
    for member, name in enumerate(together):
        found = newest[folder / name].trainable["logits"]
        np.testing.assert_array_equal(found, saved[8][0][member][0])


@pytest.mark.slow
def test_a_member_that_is_lost_has_no_best(tmp_path):
    flags = [*FLAGS, "--ppo.value_coef", "[0.1, 3e38]", "--ppo.max_grad_norm", ".inf"]
    fit_population(configs.load_members(None, flags), tmp_path / "many", say=quiet)
    with Checkpoints(tmp_path / "many") as checkpoints:
        assert checkpoints.best(0) > 1
        assert checkpoints.best(1) <= 1  # the last one with numbers in it


@pytest.mark.slow
def test_a_member_that_is_lost_takes_nobody_with_it(tmp_path, monkeypatch, capsys):
    """Though it meets its own past, and the evaluation has nothing to say of it."""
    flags = [*FLAGS, "--ppo.value_coef", "[3e38, 0.1]", "--ppo.max_grad_norm", ".inf"]
    flags += ["--mixture.opponents", "{past(2): 1, random: 1}", "--checkpoint_every", "2"]
    together = fit_population(configs.load_members(None, flags), tmp_path / "many", say=quiet)
    lost, kept = together
    alone = fit_agent(configs.load(None, [*flags, "--ppo.value_coef", "0.1"]), say=quiet)
    np.testing.assert_allclose(together[kept].trainable["logits"], alone.trainable["logits"])
    given = ["--run", str(tmp_path / "many"), "--games", "ipd", "--protocols", "exact"]
    monkeypatch.setattr("sys.argv", ["evaluate", *given])
    evaluate.main()
    assert f"{lost}: left out; its training diverged" in capsys.readouterr().out
    assert not (tmp_path / "many" / lost / "evaluation.json").exists()
    assert (tmp_path / "many" / kept / "evaluation.json").exists()


@pytest.mark.slow
def test_checkpoints_of_earlier_versions_load_and_have_no_best(tmp_path):
    folder = tmp_path / "run"
    config = configs.load(None, [*FLAGS, "--updates", "3"])
    trained = fit_agent(config, folder, say=quiet)
    for path in (folder / "checkpoints").iterdir():  # what was there before
        about = json.loads((path / "about" / "metadata").read_text())
        old = {"version": about["version"], "checksum": about["checksum"]}
        (path / "about" / "metadata").write_text(json.dumps(old))
        (path / "metrics").mkdir()
        (path / "metrics" / "metrics").write_text(json.dumps({"reward": 99.0}))
    with pytest.raises(UserError, match="says how good its policy is .* there are 1, 2, 3$"):
        evaluate_agent(folder, update="best")
    trainable = load_trained(folder).trainable
    chex.assert_trees_all_equal(trainable, trained.trainable)
    broken = next((folder / "checkpoints").glob("*/metrics")) / "metrics"
    whole = broken.read_text()
    broken.write_text(whole[:5])
    with pytest.raises(UserError, match=r"metrics/metrics in .* is damaged .*; delete it"):
        load_trained(folder)
    broken.write_text(whole)
    longer = configs.load(None, [*FLAGS, "--updates", "9"])
    fit_agent(longer, folder, resume=True, say=quiet, extend=True)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.best() > 3
