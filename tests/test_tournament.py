"""Tournaments against matches played by hand, and their page."""

import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from processes import command
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral import tournament
from jaxmoral.errors import UserError
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.measuring import tournaments
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.tournaments import entrant, hold, read_entrants, strategy, together
from jaxmoral.reporting.meetings import find_tournaments
from jaxmoral.reporting.page import write_report
from jaxmoral.world.games import choose_games, get_game, make_games

NAMES = ["tit-for-tat", "always-defect", "always-cooperate", "grim-trigger", "alternator"]


def tabular(*flags):
    base = ["--model.source", "tabular", "--updates", "2", "--env.episodes", "64"]
    return configs.load_members(None, [*base, *flags])


@pytest.fixture(scope="module")
def classic():
    games = choose_games(["ipd", "bos"])
    entrants = [strategy(name, games, 0.0) for name in NAMES]
    return hold(entrants, games, ["deontological"], 10, 3.0, -6.0)


PLAIN = {
    "tit-for-tat": lambda mine, theirs: theirs[-1] if theirs else 0,
    "always-defect": lambda mine, theirs: 1,
    "always-cooperate": lambda mine, theirs: 0,
    "grim-trigger": lambda mine, theirs: int(1 in theirs),
    "alternator": lambda mine, theirs: len(mine) % 2,
}


@pytest.mark.parametrize("game", ["ipd", "bos"])
def test_matches_are_those_of_plain_loops(classic, game):
    payoffs = get_game(game).payoffs
    found = classic["games"][game]["episode"]
    for i, one in enumerate(NAMES):
        for j, two in enumerate(NAMES):
            points, duty, cooperation = [], [], []
            for side in (0, 1):  # of an asymmetric game everyone plays both
                mine, theirs = [], []
                for _ in range(10):
                    a, b = PLAIN[one](mine, theirs), PLAIN[two](theirs, mine)
                    cell = (a, b) if side == 0 else (b, a)
                    points.append(payoffs[(side, *cell)])
                    duty.append(-3.0 if a == 1 and theirs and theirs[-1] == 0 else 0.0)
                    cooperation.append(a == 0)
                    mine.append(a)
                    theirs.append(b)
            assert found["game"][i][j] == pytest.approx(np.mean(points)), (one, two)
            assert found["deontological"][i][j] == pytest.approx(np.mean(duty)), (one, two)
            assert found["cooperation"][i][j] == pytest.approx(np.mean(cooperation)), (one, two)


def test_a_trained_agent_plays_as_its_policy_says(tmp_path):
    """An agent whose table is set to tit-for-tat gets what tit-for-tat gets, after its coin."""
    (trained,) = [fit_agent(config, say=quiet) for config in tabular().values()]
    logits = jnp.full((4, 4, 3), -40.0)
    for own in (0, 1):
        for other in (0, 1):
            logits = logits.at[own * 2 + other, :, other].set(0.0)
    table = {"logits": logits.reshape(16, 3), "values": jnp.zeros(16)}
    games = choose_games(["ipd"])
    agent = entrant("copy", trained.agent, table, games, 0.0)
    others = [strategy(name, games, 0.0) for name in ("always-defect", "always-cooperate")]
    found = hold([agent, *others], games, [], 10, 3.0, -6.0)["games"]["ipd"]
    # The remembered move of always-defect is D, so the agent never co-operates with it.
    assert found["episode"]["game"][0][1:] == pytest.approx([1, 3])
    assert found["episode"]["game"][1][0] == pytest.approx(1)
    # Two copies remember two coins: CC, DD, or turns of CD and DC.
    assert found["long_run"]["game"][0][0] == pytest.approx((3 + 1 + 2 + 2) / 4, abs=1e-6)


def test_illegal_answers_cost_their_giver_only():
    (trained,) = [fit_agent(config, say=quiet) for config in tabular().values()]
    silent = jnp.tile(jnp.array([-40.0, -40.0, 0.0]), (16, 1))
    table = {"logits": silent, "values": jnp.zeros(16)}
    games = choose_games(["ipd"])
    agent = entrant("silent", trained.agent, table, games, 0.0)
    found = hold([agent, strategy("always-cooperate", games, 0.0)], games, [], 4, 3.0, -6.0)
    points = found["games"]["ipd"]["episode"]["game"]
    assert points[0][1] == pytest.approx(-6)
    # It repeats its remembered coin: C or D for ever.
    assert points[1][0] == pytest.approx((3 + 0) / 2)


UNEVEN = {"CC": [3, 6], "CD": [0, 8], "DC": [5, 0], "DD": [1, 2]}  # a dilemma for both sides


def test_a_strategy_that_knows_the_payoffs_knows_its_side():
    """Three times the other's surplus over mutual defection, whoever it is."""
    games = [make_games({"uneven": UNEVEN})["uneven"]]
    names = ["extortionate(3)", "random(0.2)", "random(0.9)"]
    found = hold([strategy(name, games, 0.0) for name in names], games, [], 4, 3.0, -6.0)
    surplus = np.array(found["games"]["uneven"]["long_run"]["game"]) - (1 + 2) / 2
    assert surplus[0, 1:] == pytest.approx(3 * surplus[1:, 0], abs=1e-4)


@pytest.mark.parametrize("game", ["trust", "bos", "inspection"])
def test_both_sides_are_exploited(game):
    game = get_game(game)
    entrants = [strategy(name, [game], 0.0) for name in ("always-cooperate", "always-defect")]
    found = hold(entrants, [game], [], 4, 3.0, -6.0)["games"][game.name]["exploitability"]
    first, second = game.payoffs.astype(float)
    for move, most in enumerate(found):
        assert most == pytest.approx((first[:, move].max() + second[move].max()) / 2)


def test_who_acts_by_its_side_has_a_fingerprint_of_both():
    game = get_game("trust")
    sides = [strategy(name, [game], 0.0) for name in ("always-cooperate", "always-defect")]
    players = {(game.name, second): sides[second].players[game.name, second] for second in (0, 1)}
    found = hold([tournaments.Entrant("two-faced", players)], [game], [], 4, 3.0, -6.0)
    assert found["games"]["trust"]["fingerprint"] == [[pytest.approx(0.5)] * len(found["rates"])]


@pytest.mark.slow
def test_populations_runs_and_names_take_part(tmp_path):
    fit_population(tabular("--seed", "[0, 1]"), tmp_path / "many", say=quiet)
    fit_agent(tabular()[""], tmp_path / "one", say=quiet)
    games = choose_games(["ipd"])
    found = [
        one.name
        for name in (str(tmp_path / "many"), str(tmp_path / "one"), "joss")
        for one in read_entrants(name, games, 0.0)
    ]
    assert found == ["seed=0", "seed=1", "one", "joss"]
    with pytest.raises(UserError, match="agents: opponent: unknown name 'jos'.*'joss'"):
        read_entrants("jos", games, 0.0)
    with pytest.raises(UserError, match="holds no run, population or adapter"):
        read_entrants(str(tmp_path), games, 0.0)


@pytest.mark.slow
def test_the_command_and_its_page(tmp_path):
    fit_population(
        tabular("--seed", "[0, 1]", "--evaluation.games", "[ipd, plane]"),
        tmp_path / "many",
        say=quiet,
    )
    flags = ["--output-dir", tmp_path / "meet", "--games", "ipd,ish", "--noise", "0.01"]
    done = command("tournament", tmp_path / "many", *NAMES, *flags)
    assert done.returncode == 0, done.stderr
    assert "tit-for-tat" in done.stdout
    result = json.loads((tmp_path / "meet" / "tournament.json").read_text())
    assert len(result["agents"]) == 7
    write_report([tmp_path / "meet"], tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    value = result["games"]["ipd"]["long_run"]["game"][2][3]
    assert f"IPD: tit-for-tat against always-defect: {value:.3f}" in page
    assert "Tournament: who spreads" in page
    assert (tmp_path / "page" / "figures" / "tournament-game.png").is_file()

    exact = ("--protocols", "exact")
    assert command("evaluate", "--run", tmp_path / "many", *exact).returncode == 0
    write_report([tmp_path / "many", tmp_path / "meet"], tmp_path / "both")
    page = (tmp_path / "both" / "index.html").read_text()
    assert "Fingerprints" in page
    assert "S=-10 T=20: C 33" in page  # of the base, which is uniform


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tit-for-tat", "tit-for-tat"], "takes part twice"),
        (["nobody"], "unknown name 'nobody'"),
        (["joss", "--games", "public-goods"], "more than two players"),
        (["joss", "--games", "ipdd"], "did you mean 'ipd'"),
        (["joss", "--noise", "2"], "--noise: needs a finite number from 0 to 1"),
        (["joss", "--rounds", "0"], "--rounds: needs a whole number"),
        (["joss", "--rounds", "1000000000000"], "--rounds: needs a whole number"),
        (["joss", "--xi", "nan"], "--xi: needs a finite number"),
        (["joss", "--illegal", "nan"], "--illegal: needs a finite number"),
        (["joss", "--rewards", "nonsense"], "--rewards: unknown name 'nonsense'"),
        (["joss", "--games", ","], "--games: names no game"),
        (["extortionate(3)", "--games", "harmony"], "no zero-determinant strategy"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--output-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        tournament.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_write_to(tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["x", "joss", "--output-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        tournament.main()
    assert f"--output-dir: {tmp_path / 'out'} is no folder" in capsys.readouterr().err


def test_a_tournament_replaces_only_itself(tmp_path, monkeypatch, capsys):
    def held(*arguments):
        output = ["--output-dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--rounds", "3", *output])
        tournament.main()
        return (tmp_path / "out" / "tournament.json").read_text()

    first = held("joss", "bully", "--games", "ipd,ish")
    assert "replaced" not in capsys.readouterr().out
    assert held("joss", "bully", "--games", "ipd,ish") == first
    assert "replaced the same tournament in" in capsys.readouterr().out
    for other, what in (
        (["joss", "prober", "--games", "ipd,ish"], "agents"),
        (["joss", "bully", "--games", "ipd"], "games"),
        (["joss", "bully", "--games", "ipd,ish", "--noise", "0.1"], "noise"),
        (["joss", "bully", "--games", "ipd,ish", "--rewards", "maximin"], "rewards"),
        (["joss", "bully", "--games", "ipd,ish", "--xi", "4"], "xi"),
    ):
        with pytest.raises(SystemExit):
            held(*other)
        assert f"holds a tournament with other {what}; choose" in capsys.readouterr().err
        assert (tmp_path / "out" / "tournament.json").read_text() == first
    more = json.loads(held("joss", "bully", "--games", "ipd,ish,bos"))
    assert more["games"].keys() == {"ipd", "ish", "bos"}


def named(monkeypatch, capsys, *arguments):
    """The command's code, 0 if it ran, and its last line."""
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments), "--games", "ipd", "--rounds", "3"])
    try:
        tournament.main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, said.err or said.out


@pytest.mark.slow
def test_agents_of_one_name_are_told_by_their_folders_and_checkpoints(
    tmp_path, monkeypatch, capsys
):
    flags = ("--seed", "[0, 1]", "--checkpoint_every", "1")
    fit_population(tabular(*flags), tmp_path / "many", say=quiet)
    shutil.copytree(tmp_path / "many", tmp_path / "many2")
    output = ("--output-dir", tmp_path / "out")
    meet = lambda home: named(monkeypatch, capsys, tmp_path / home, *output)
    assert meet("many")[0] == 0
    file = tmp_path / "out" / "tournament.json"
    first = json.loads(file.read_text())
    path = str((tmp_path / "many" / "seed=1").resolve())
    assert first["sources"]["seed=1"] == {"path": path, "update": 2}
    assert "replaced the same" in meet("many")[1]
    monkeypatch.setattr(tournaments, "read_entrants", None)  # known before a model is loaded
    assert meet("many2")[0] == 2
    assert "with other sources; choose" in meet("many2")[1]
    assert "takes part twice" in named(monkeypatch, capsys, *[tmp_path / "many"] * 2, *output)[1]
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "many" / "checkpoints" / "2")
    assert "with other sources; choose" in meet("many")[1]
    assert json.loads(file.read_text()) == first


def test_other_payoffs_make_another_tournament(tmp_path, monkeypatch, capsys):
    meet = lambda: named(monkeypatch, capsys, "joss", "--output-dir", tmp_path)
    file = tmp_path / "tournament.json"
    assert meet()[0] == 0
    found = json.loads(file.read_text())
    assert found["games"]["ipd"]["payoffs"] == get_game("ipd").payoffs.tolist()
    found["games"]["ipd"]["payoffs"][0][0][0] = 2.5
    file.write_text(json.dumps(found))
    assert "with other payoffs of ipd; choose" in meet()[1]
    assert json.loads(file.read_text()) == found


def test_what_an_earlier_version_did_not_write_is_said(tmp_path, monkeypatch, capsys):
    meet = lambda: named(monkeypatch, capsys, "joss", "--output-dir", tmp_path)
    file = tmp_path / "tournament.json"
    assert meet()[0] == 0
    found = json.loads(file.read_text())
    for key in ("sources", "rewards", "noise"):
        del found[key]
    del found["games"]["ipd"]["payoffs"]
    for content, message in (
        (found, "an earlier version, which did not say its sources, rewards, noise, payoffs, so"),
        (found | {"rounds": 4}, "with other rounds; choose"),
        ([1], "holds no tournament"),
        ({"games": {"ipd": 3}}, "holds no tournament"),
    ):
        file.write_text(json.dumps(content))
        code, said = meet()
        assert code == 2
        assert message in said
        assert said.count("\n") == 1
        assert json.loads(file.read_text()) == content


@pytest.mark.slow
def test_a_report_of_a_single_point_of_the_plane(tmp_path):
    flags = ["--evaluation.games", "['plane(-5,15)']"]
    folder = tmp_path / "one"
    trained = fit_agent(tabular(*flags)[""], folder, say=quiet)
    (folder / "evaluation.json").write_text(json.dumps(evaluate_agent(trained)))
    write_report([folder], tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Cooperation over the S-T plane" not in page
    assert "plane(-5,15)" in page


@pytest.mark.slow
def test_an_agent_for_four_players_has_a_test_of_its_own(tmp_path):
    flags = ["--env.game", "public-goods(4)", "--env.opponent", "conditional"]
    flags += ["--evaluation.opponents", "[conditional]"]
    trained = fit_agent(tabular(*flags)[""], tmp_path / "four", say=quiet)
    found = evaluate_agent(trained)
    assert list(found["suites"]["trained"]) == ["public-goods(4,10,2)"]
    with pytest.raises(
        UserError, match="four learned public-goods.* of 4 players; a tournament has"
    ):
        read_entrants(str(tmp_path / "four"), choose_games(["ipd"]), 0.0)


@pytest.mark.parametrize(
    "text",
    ["{", "[[1]]", '{"agents": ["a"], "games": {}, "rounds": 3}'],
)
def test_a_damaged_tournament_is_left_out(tmp_path, text):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tournament.json").write_text(text)
    found, skipped = find_tournaments([tmp_path])
    assert not found
    assert "is damaged" in skipped[0]
    with pytest.raises(UserError, match="no run in"):
        write_report([tmp_path], tmp_path / "page")


def test_a_game_that_two_runs_define_is_found_within_others():
    points = {"CC": [3, 3], "CD": [0, 4], "DC": [4, 0], "DD": [1, 1]}
    each = {
        Path("a"): make_games({"my(game)": points}),
        Path("b"): make_games({"my(game)": points | {"CC": [2, 2]}}),
    }
    for asked in ("my(game)", "affine(my(game),2)", "group( my(game), 3)", "all"):
        with pytest.raises(UserError, match=r"games.my\(game\): a and b define it differently"):
            together("games", each, ["ipd", asked])
    assert list(together("games", each, ["ipd", "affine(ipd,2)"])) == ["my(game)"]
