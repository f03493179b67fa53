"""A configuration's own games and opponents belong to it alone, in one process with others."""

import dataclasses
import json
import sys
from functools import partial

import numpy as np
import pytest
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral import sweep as sweeps
from jaxmoral import tournament
from jaxmoral.errors import UserError
from jaxmoral.learning.lookup import find_games, find_opponent, training_game
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.reporting.series import reward_bounds
from jaxmoral.world import games, opponents

TABULAR = ["--model.source", "tabular", "--updates", "1", "--env.episodes", "64"]
TABULAR += ["--evaluation.protocols", "[exact]"]
GAME = "games: {{mine: {{CC: [{0}, {0}], CD: [0, 4], DC: [4, 0], DD: [1, 1]}}}}\n"
MACHINE = "opponents: {{own: {{cooperate: [{0}], transitions: [[0, 0, 0, 0]]}}}}\n"
ENV = "env: {game: mine, opponent: own}\n"


@pytest.fixture
def two(tmp_path):
    """Two files that mean different things by the same names, and one that has neither."""
    texts = {
        "kind": GAME.format(3) + MACHINE.format(1) + ENV,
        "rich": GAME.format(30) + MACHINE.format(0) + ENV,
        "plain": "seed: 0\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return [tmp_path / f"{name}.yaml" for name in texts]


measure = partial(evaluate_agent, protocols=["exact"])


def points(evaluation, game="mine", opponent="own"):
    found = evaluation["suites"]["trained"][game]["policies"]["base"]["opponents"]
    return found[opponent]["exact"]["rewards"]["utilitarian"]


def by_hand(reward, p_cooperate):
    """Of a uniform policy over C, D and illegal, whatever is remembered."""
    other = np.array([p_cooperate, 1 - p_cooperate])
    return (np.array([[2 * reward, 4], [4, 2]]) @ other).sum() / 3 - 6 / 3


@pytest.mark.slow
def test_two_files_mean_different_things_by_a_name(two):
    before = list(games.GAMES), list(opponents.OPPONENTS)
    kind, rich, plain = (configs.load(path, TABULAR) for path in two)
    trained = [fit_agent(config, say=quiet) for config in (kind, rich)]
    found = [measure(one, ["all"], ["own"]) for one in trained]
    assert list(found[0]["suites"]["trained"]) == [*before[0], "mine"]
    assert points(found[0]) == pytest.approx(by_hand(3, 1), abs=1e-4)
    assert points(found[1]) == pytest.approx(by_hand(30, 0), abs=1e-4)
    assert list(measure(plain, ["all"])["suites"]["trained"]) == before[0]
    assert (list(games.GAMES), list(opponents.OPPONENTS)) == before
    with pytest.raises(UserError, match="opponents: unknown name 'own'"):
        evaluate_agent(plain, ["ipd"], ["own"])


def test_names_inside_brackets_are_the_configuration_s_own(two):
    rich = configs.load(two[1])
    (scaled,) = find_games(rich, ["affine(mine,2)"])
    assert scaled.payoffs[0].tolist() == [[60, 0], [8, 2]]
    (group,) = find_games(rich, ["group(mine,3)"])
    assert group.payoffs[0].tolist() == [[30, 15, 0], [4, 2.5, 1]]
    assert find_opponent(rich, "noisy(own,0.25)", scaled).moves.tolist() == [[0.25, 0.75]]
    with pytest.raises(UserError, match="unknown name 'mine'"):
        games.get_game("affine(mine,2)")


def test_a_run_read_back_has_its_own(two, tmp_path):
    """Also where the name was registered from Python as something else."""
    folder = tmp_path / "run"
    fit_agent(configs.load(two[1], TABULAR), folder, say=quiet)
    games.register(games.make_game("mine", dict.fromkeys(games.CELLS, (0, 0))))
    try:
        config = load_trained(folder).config
        assert training_game(config).payoffs.max() == 30
        assert points(measure(folder, ["mine"], ["own"])) == pytest.approx(by_hand(30, 0), abs=1e-4)
        reward = dataclasses.replace(config.reward, name="utilitarian")
        assert reward_bounds(dataclasses.replace(config, reward=reward), 0)[1] == 60
    finally:
        del games.GAMES["mine"]


@pytest.mark.slow
def test_a_sweep_keeps_its_files_apart(two, tmp_path):
    flags = [*TABULAR, "--evaluation.opponents", "[random]"]
    assert sweeps.sweep(two, [1], tmp_path / "out", flags) == {}
    found = {
        name: json.loads((tmp_path / "out" / f"{name}-seed1" / "evaluation.json").read_text())
        for name in ("kind", "rich", "plain")
    }
    assert points(found["kind"], "mine", "random") == pytest.approx(by_hand(3, 0.5), abs=1e-4)
    assert points(found["rich"], "mine", "random") == pytest.approx(by_hand(30, 0.5), abs=1e-4)
    assert "mine" not in found["plain"]["suites"]["trained"]


def test_a_tournament_of_runs_that_disagree(two, tmp_path, monkeypatch, capsys):
    for path in two[:2]:
        fit_agent(configs.load(path, TABULAR), tmp_path / path.stem, say=quiet)
    folders = [str(tmp_path / path.stem) for path in two[:2]]

    def hold(*arguments):
        output = ["--output-dir", str(tmp_path / "out"), "--rounds", "2"]
        monkeypatch.setattr(sys, "argv", ["x", *arguments, *output])
        tournament.main()

    for asked, named in (
        ([*folders], "games.mine"),
        ([*folders, "--games", "ipd,affine(mine,2)"], "games.mine"),
        ([*folders, "noisy(own,0.1)", "--games", "ipd"], "opponents.own"),
    ):
        with pytest.raises(SystemExit):
            hold(*asked)
        error = capsys.readouterr().err
        assert f"error: {named}: {folders[0]} and {folders[1]} define it differently" in error
    assert not (tmp_path / "out").exists()
    hold(*folders, "joss", "--games", "ipd")
    (tmp_path / "out" / "tournament.json").unlink()
    hold(folders[1], "own", "--games", "mine")
    found = json.loads((tmp_path / "out" / "tournament.json").read_text())
    assert found["games"]["mine"]["episode"]["game"][1][1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--games.chicken", "{CC: [1, 1], CD: [0, 4], DC: [4, 0], DD: [1, 1]}"], "other payoffs"),
        (["--games.plane", "{CC: [1, 1], CD: [0, 4], DC: [4, 0], DD: [1, 1]}"], "several games"),
        (["--opponents.bully", "{cooperate: [1], transitions: [[0, 0, 0, 0]]}"], "by another"),
        (["--opponents.noisy", "{cooperate: [1], transitions: [[0, 0, 0, 0]]}"], "several"),
        (["--opponents.learner", "{cooperate: [1], transitions: [[0, 0, 0, 0]]}"], "that learns"),
    ],
)
def test_built_in_names_keep_their_meaning(flags, message):
    with pytest.raises(UserError, match=message):
        resolve(configs.load(None, flags))
