"""What a report averages, scales, names, colours and replaces, on runs made up from records."""

import itertools
import json
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from run_files import SHARES, config, evaluated, make_run, write_run

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.learning import training
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.mixture import player_games
from jaxmoral.learning.summary import summary
from jaxmoral.measuring.measures import fingerprint
from jaxmoral.measuring.runs import find_runs
from jaxmoral.measuring.tournaments import RATES, hold, strategy
from jaxmoral.reporting import figures, page_tables
from jaxmoral.reporting import page as report
from jaxmoral.reporting.beyond import beyond_sections, beyond_tables, checkpoints
from jaxmoral.reporting.meetings import (
    WHY_THEY_DIFFER,
    fingerprints,
    map_sections,
    short_names,
    tournament_rows,
    tournament_sections,
)
from jaxmoral.reporting.published import FIGURE_4
from jaxmoral.reporting.sections import evaluation_sections, tables, training_sections, with_agents
from jaxmoral.reporting.series import group_runs, normalised_rewards, reward_bounds, tell_apart
from jaxmoral.reporting.styles import (
    BASE,
    COLOURS,
    GAME_COLOURS,
    game_styles,
    line_styles,
    reward_colour,
)
from jaxmoral.reporting.thoughts import Studied, draw_thoughts
from jaxmoral.world.games import ASYMMETRIC, choose_games, get_game, make_games
from jaxmoral.world.memory import make_memory
from jaxmoral.world.pairs import agent_player


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# The paper's numbers.


def test_the_papers_numbers_are_beside_their_own_games(tmp_path):
    """In another order, with games the paper does not have, and one it has left out."""
    values = {"icd": 1.0, "stag-hunt": 2.0, "ivd": 3.0, "ipd": 4.0}
    run = make_run(tmp_path, "a", evaluation=evaluated("labels", values))
    series, _ = group_runs([run])
    table = tables(series)
    sections = evaluation_sections(table, series, (table.iloc[:0], []), "random")
    _, tips = next(s for s in sections if s.name.endswith("4-5-labels-tit-for-tat-regret")).draw()
    for title, agent in ((run.title, run.title), (BASE, BASE)):
        for game in ("icd", "ipd"):
            want = f"the paper: {FIGURE_4['utilitarian'][title][game]:.2f}"
            start = f"{agent}, {game.upper()}: {values[game] / 10 + (title != run.title) / 10:.3f}"
            assert any(tip.startswith(start) and want in tip for tip in tips.values()), (
                agent,
                game,
            )
    assert not any("the paper" in tip for tip in tips.values() if "IVD" in tip or "stag" in tip)

    header, rows = page_tables.regret_table(table, series)
    assert header == ["agent", "regret", "ICD", "stag-hunt", "IVD", "IPD"]
    tuned = next(row for row in rows if row[:2] == ["deontological", "deontological"])
    assert tuned[2:] == [
        f"1.00 / [{FIGURE_4['deontological']['deontological']['icd']:.2f}]",
        "2.00",
        "3.00",
        f"4.00 / [{FIGURE_4['deontological']['deontological']['ipd']:.2f}]",
    ]
    # Of other tests, and of who was trained against others, there is no number.
    for flags, opponent in (([], "bully"), (["--env.opponent", "random"], "random")):
        evaluation = evaluated("labels", values, opponent)
        others, _ = group_runs([make_run(tmp_path, "b", *flags, evaluation=evaluation)])
        assert page_tables.regret_table(tables(others), others) == ([], [])


@pytest.mark.parametrize(
    "flags", [["--prompt.labels", "[action2, action1]"], ["--env.game", "ish"]]
)
def test_agents_the_paper_does_not_have_get_none_of_its_numbers(tmp_path, flags):
    run = make_run(tmp_path, "a", *flags, evaluation=evaluated("labels", {"ipd": 1.0}))
    series, _ = group_runs([run])
    _, rows = page_tables.regret_table(tables(series), series)
    assert "[" in rows[0][2]  # the base
    assert not any("[" in row[2] for row in rows if row[0] == "deontological")


# The run's own bounds.


def slowest_bounds(config, update):
    """By a loop over every round, from the payoffs and the rewards' definitions."""
    reward, blended = config.reward, []
    share = update / (config.updates - 1) if reward.transition == "linear" else 0.0
    game = player_games(config, update)[0][0]
    first = [None] if config.env.blank_start else []
    cells = itertools.product([*first, 0, 1], (0, 1), (0, 1))
    for before, own, other in cells:
        a, b = (float(x) for x in game.payoffs[:, own, other])
        values = {
            "game": a,
            "utilitarian": a + b,
            "deontological": -reward.xi if own == 1 and before == 0 else 0.0,
        }
        values["game+deontological"] = values["game"] + values["deontological"]
        later = values.get(reward.then, 0.0)
        blended.append((1 - share) * values[reward.name] + share * later)
    return min(*blended, reward.illegal), max(*blended, reward.illegal)


@pytest.mark.parametrize(
    ("flags", "update"),
    [
        ("--reward.name deontological --reward.xi 9", 0),
        ("--reward.name utilitarian --env.game icd", 0),
        ("--reward.name game --reward.illegal -1", 0),
        ("--reward.name game+deontological --env.game ish --reward.xi 5", 0),
        ("--reward.name deontological --env.blank_start true", 0),
        ("--reward.name game --env.payoff_draws 1", 3),
        ("--reward.name game --env.opponent learner", 0),
        ("--reward.name game --reward.then utilitarian --reward.transition linear", 2),
    ],
)
def test_rewards_are_scaled_by_the_runs_own_bounds(tmp_path, flags, update):
    low, high = slowest_bounds(config(*flags.split()), update)
    assert reward_bounds(config(*flags.split()), update) == pytest.approx((low, high))
    for value, wanted in ((low, 0.0), (high, 1.0)):
        run = make_run(tmp_path, "a", *flags.split(), reward=value)
        assert normalised_rewards(run)[update] == pytest.approx(wanted, abs=1e-6)


def test_the_papers_setting_has_the_papers_span():
    """What its Fig. 12 scales rewards by."""
    spans = {"game": (-6, 4), "deontological": (-6, 0), "utilitarian": (-6, 6)}
    for name, span in (spans | {"game+deontological": (-6, 4)}).items():
        assert reward_bounds(config("--reward.name", name), 0) == span


def test_a_reward_that_is_not_known_is_left_out_with_a_word(tmp_path):
    known = make_run(tmp_path, "a")
    tree = configs.to_dict(known.config)
    tree["reward"]["name"] = "envy"
    unknown = known._replace(folder=tmp_path / "b", config=configs.parse(tree))
    series, _ = group_runs([known, unknown])
    section = next(s for s in training_sections(series, []) if s.name == "fig12-reward")
    assert "Left out: envy (reward.name: unknown name 'envy'" in section.caption
    assert len(section.draw()[1]) == 1
    assert page_tables.reward_rows(series)[1][1].startswith("a reward of the run's own")


# A report and its folder.


def put_files(folder, names):
    scratch = folder / "scratch"
    for name in names:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_text("new")
    report.put(scratch, folder / "out")


def test_a_report_replaces_its_own_files_and_no_others(tmp_path):
    out = tmp_path / "out"
    put_files(tmp_path, ["index.html", "figures/a.png", "figures/b.png"])
    (out / "thesis.tex").write_text("mine")
    (out / "figures" / "photo.png").write_text("mine")
    (out / "index.html").write_text("old")
    put_files(tmp_path, ["index.html", "figures/b.png", "figures/c.png"])
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    own = {"index.html", "report.json", "figures/b.png", "figures/c.png"}
    assert files == own | {"thesis.tex", "figures/photo.png"}
    assert (out / "index.html").read_text() == "new"
    assert (out / "thesis.tex").read_text() == (out / "figures" / "photo.png").read_text() == "mine"
    assert report.own_files(out) == own
    with pytest.raises(UserError, match=r"photo.png was written by no report"):
        put_files(tmp_path, ["index.html", "figures/photo.png"])
    assert (out / "figures" / "photo.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"index.html": "a blog"}, "no report, or one of an older version .* no report.json in it"),
        ({"thesis.tex": "mine"}, "no report, or one of an older version"),
        ({"report.json": '{"files": ["../runs.tex"]}'}, "is damaged: it must list files beside it"),
        ({"report.json": '{"files": ["/etc/hosts"]}'}, "is damaged"),
        ({"report.json": '{"files": ["."]}'}, "is damaged"),
        ({"report.json": "{"}, "is damaged"),
        ({"report.json": "[1]"}, "is damaged"),
    ],
)
def test_a_folder_that_is_no_report_is_refused_before_anything_is_read(tmp_path, files, message):
    (tmp_path / "out").mkdir()
    for name, text in files.items():
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        report.write_report([tmp_path / "nowhere"], tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == files


def test_a_report_that_is_cut_off_leaves_the_old_page_and_can_be_made_again(tmp_path, monkeypatch):
    put_files(tmp_path, ["index.html", "figures/a.png"])
    out = tmp_path / "out"
    (out / "index.html").write_text("old")
    replace, done = os.replace, []

    def dies(source, target):
        if str(target).endswith("b.png"):
            raise KeyboardInterrupt
        replace(source, target)
        done.append(target)

    monkeypatch.setattr(report.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        put_files(tmp_path, ["index.html", "figures/b.png"])
    assert (out / "index.html").read_text() == "old"
    monkeypatch.undo()
    put_files(tmp_path, ["index.html", "figures/b.png"])
    assert report.own_files(out) == {"index.html", "report.json", "figures/b.png"}
    assert not (out / "figures" / "a.png").exists()


def test_a_report_that_fails_leaves_nothing(tmp_path, monkeypatch):
    write_run(make_run(tmp_path, "runs/a"))
    monkeypatch.setattr(report, "training_sections", lambda *_: [])

    def fails(*_):
        raise RuntimeError

    monkeypatch.setattr(report, "number_parts", fails)
    with pytest.raises(RuntimeError):
        report.write_report([tmp_path / "runs"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


# What is averaged.


def test_only_runs_equal_but_for_the_seed_are_one_series(tmp_path):
    two = ["--seed", "2"]
    runs = [
        make_run(tmp_path, "a1"),
        # What was computed where, and what is tested, is beside the point.
        make_run(tmp_path, "a2", *two, "--checkpoint_every", "1", "--mesh.data", "1"),
        make_run(tmp_path, "a3", "--seed", "3", "--evaluation.games", "[ipd]"),
        make_run(tmp_path, "twin", *two),
        make_run(tmp_path, "story", "--prompt.wording", "story"),
        make_run(tmp_path, "labels", "--prompt.labels", "[x, y]"),
        make_run(tmp_path, "long", "--updates", "8"),
        make_run(tmp_path, "cut", *two, made=3),
        make_run(tmp_path, "game", "--reward.name", "game"),
        make_run(tmp_path, "lonely", "--env.opponent", "random"),
        make_run(tmp_path, "xi", "--evaluation.xi", "4"),
    ]
    series, skipped = group_runs(runs)
    assert [one.runs for one in series if len(one.runs) > 1] == [runs[:3]]
    assert skipped == [f"{tmp_path}/twin is the same experiment and seed as {tmp_path}/a2"]
    by_folder = {one.runs[0].folder.name: one.name for one in series}
    assert "wording story" in by_folder["story"]
    assert "labels x/y" in by_folder["labels"]
    assert "updates 8" in by_folder["long"]
    assert "updates 3 of 4" in by_folder["cut"]
    assert "xi 4" in by_folder["xi"]
    assert by_folder["game"] == "game"  # nothing to tell it from
    families = [(one.opponent, one.name) for one in series]
    assert len(set(families)) == len(series) == 8


def test_runs_that_were_tested_otherwise_are_apart(tmp_path):
    """Whatever their own configurations say of tests."""

    def tested(name, seed, top=(), **settings):
        found = evaluated("trained", {"ipd": 1.0}) | dict(top)
        found |= {"config": {"evaluation": settings}} if settings else {}
        return make_run(tmp_path, name, "--seed", seed, evaluation=found)

    runs = [
        tested("a", "1", xi=None, rounds=5, labels=["action3", "action4"], episodes=10),
        tested("b", "2", xi=3.0, rounds=5, labels=["action3", "action4"], episodes=20),
        tested("c", "3", {"xi": 3.0, "rounds": 5}),  # of an earlier version
        tested("d", "4", xi=4.0, rounds=5, labels=["action3", "action4"], episodes=10),
        tested("e", "5", {"xi": 4.0, "rounds": 5}),
        tested("f", "6", xi=None, rounds=9, labels=["action3", "action4"], episodes=10),
        tested("g", "7", xi=None, rounds=5, labels=["action5", "action6"], episodes=10),
    ]
    series, _ = group_runs(runs)
    grouped = {"".join(run.folder.name for run in one.runs): one.name for one in series}
    assert set(grouped) == {"abc", "de", "f", "g"}
    assert "evaluation.xi 4" in grouped["de"] or ", xi 4" in grouped["de"]
    assert "rounds 9" in grouped["f"]
    assert "labels action5/action6" in grouped["g"]


@pytest.mark.slow
def test_an_evaluation_of_another_checkpoint_is_not_drawn_as_the_runs(tmp_path, capsys):
    for name, seed, update in (("old", "1", 2), ("new", "2", 4), ("base", "3", None)):
        found = evaluated("trained", {"ipd": 1.0}) | {"update": update}
        write_run(make_run(tmp_path, f"runs/{name}", "--seed", seed, evaluation=found))
    found = evaluated("trained", {"ipd": 1.0})  # an earlier version does not say
    write_run(make_run(tmp_path, "runs/unsaid", "--seed", "4", evaluation=found))
    report.write_report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    for name, of in (("old", "update 2"), ("base", "an untrained model")):
        assert f"runs/{name}/evaluation.json is of {of}, the run has made 4 updates." in page
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(rows["run"]) == {"new", "unsaid"}
    assert set(rows["update"].dropna()) == {4}


def test_bases_that_play_two_games_of_one_name_or_think_are_two(tmp_path):
    own = "{{mine: {{CC: [3, 3], CD: [0, {0}], DC: [{0}, 0], DD: [1, 1]}}}}"
    runs = [
        make_run(
            tmp_path,
            f"a{points}",
            *("--games", own.format(points), "--reward.xi", "3"),
            evaluation=evaluated("labels", {"mine": float(points)}),
        )
        for points in (4, 5)
    ]
    more = "{other: {CC: [3, 3], CD: [0, 4], DC: [4, 0], DD: [1, 1]}}"
    evaluation = evaluated("labels", {"ipd": 1.0})
    runs += [make_run(tmp_path, "b", "--games", more, evaluation=evaluation)]
    runs += [make_run(tmp_path, "c", evaluation=evaluation)]
    ways = {"plain": "0", "thinks": "8", "also": "8"}
    for value, (name, tokens) in enumerate(ways.items(), start=2):
        evaluation = evaluated("labels", {"ipd": float(value)})
        source = "gemma3-270m"
        flags = ["--model.source", source, "--thinking.tokens", tokens]
        flags += ["--thinking.baseline", "group" if name == "thinks" else "value"]
        runs += [make_run(tmp_path, name, *flags, evaluation=evaluation, source=source)]

    def bases(*chosen):
        series, _ = group_runs(chosen)
        rows = with_agents(tables(series), series)
        rows = rows[(rows["kind"] == BASE) & (rows["metric"] == "outcomes/C")]
        return dict(zip(rows["agent"], rows["value"], strict=True))

    assert sorted(bases(*runs[:2]).values()) == [5.0, 6.0]
    assert bases(*runs[2:4]) == {BASE: 2.0}  # what one alone has is no difference
    assert sorted(bases(*runs[4:]).values()) == [3.0, 4.0]  # one that thinks is another one


def test_the_papers_crosses_are_of_tests_against_random(tmp_path):
    run = make_run(tmp_path, "a", evaluation=evaluated("labels", {"ipd": 1.0}, "joss"))
    series, _ = group_runs([run])
    for tested, crosses in (("random", True), ("joss", False)):
        table = tables(series)
        sections = evaluation_sections(table, series, (table.iloc[:0], []), tested)
        assert any("the paper" in tip for tip in sections[0].draw()[1].values()) == crosses


def test_names_say_what_differs_and_are_never_alike():
    long = "text " * 40
    settings = [{"a.x": 1.0, "b.x": None, "c": [1, 2]}, {"a.x": 2.0, "b.x": True, "c": [1, 2]}]
    assert tell_apart("t", settings) == ["t, a.x 1, b.x none", "t, a.x 2, b.x true"]
    assert tell_apart("t", settings[:1]) == ["t"]
    assert len(set(tell_apart("t", [{"w": long}, {"w": long + "end"}]))) == 2
    own = [{"env.game": "ipd"}, {"env.game": "mine", "games.mine.CC": [1, 2]}]
    assert tell_apart("t", own) == ["t, game ipd", "t, game mine"]


def test_curves_of_unlike_runs_are_lines_of_their_own_and_whole(tmp_path):
    runs = [make_run(tmp_path, f"a{n}", "--seed", str(n), source="m") for n in (1, 2)]
    runs += [make_run(tmp_path, "long", "--updates", "8", "--seed", "3", source="m")]
    runs += [make_run(tmp_path, "cut", "--seed", "3", made=2, source="m")]
    table = [make_run(tmp_path, "t1"), make_run(tmp_path, "t2", "--reward.xi", "4", reward=-1)]
    series, _ = group_runs(runs)
    tabular, _ = group_runs(table)
    sections = {section.name: section for section in training_sections(series, tabular)}
    figure, tips = sections["fig12-reward"].draw()
    lengths = sorted(len(line.get_xdata()) for line in figure.axes[0].lines)
    assert lengths == [2, 4, 4, 4, 8]  # two of them tables
    assert len({(line.get_color(), str(line._dash_pattern)) for line in figure.axes[0].lines}) == 5
    assert sum("2 runs" in tip for tip in tips.values()) == 1
    assert sum("xi 4" in tip for tip in tips.values()) == 1
    _, tips = sections["fig2a-training-tit-for-tat"].draw()
    last = {one.name: one.runs[0].history[-1]["update"] for one in series}
    assert sorted(last.values()) == [2, 4, 8]
    for name, update in last.items():
        assert any(tip.startswith(f"{name}, update {update}: ") for tip in tips.values())
    with pytest.raises(ValueError, match="equally many updates"):
        figures.mean_types(runs)


def test_unlike_tables_are_dotted_lines_of_their_own(tmp_path):
    values = {"ipd": 1.0}
    run = make_run(tmp_path, "a", evaluation=evaluated("labels", values), source="m")
    dotted = [
        make_run(tmp_path, "t1", evaluation=evaluated("trained", {"ipd": 2.0})),
        make_run(tmp_path, "t2", "--reward.xi", "4", evaluation=evaluated("trained", {"ipd": 3.0})),
    ]
    (series, _), (tabular, _) = group_runs([run]), group_runs(dotted)
    beside = tables(tabular), tabular
    sections = evaluation_sections(tables(series), series, beside, "random")
    _, tips = sections[0].draw()
    (tip,) = (t for t in tips.values() if t.startswith("deontological, IPD: 1.000"))
    assert "tabular policy, deontological, xi 3: 2.000" in tip
    assert "tabular policy, deontological, xi 4: 3.000" in tip


def test_agents_and_bases_in_tests_are_those_of_equal_runs(tmp_path):
    runs = [
        make_run(tmp_path, "x/s1", "--seed", "1", evaluation=evaluated("labels", {"ipd": 1.0})),
        make_run(tmp_path, "x/s2", "--seed", "2", evaluation=evaluated("labels", {"ipd": 2.0})),
        # Of the same name, in another folder.
        make_run(
            tmp_path, "y/s1", "--reward.xi", "4", evaluation=evaluated("labels", {"ipd": 5.0})
        ),
    ]
    series, _ = group_runs(runs)
    rows = with_agents(tables(series), series)
    points = rows[rows["metric"] == "regret/deontological/points"]
    means = points.groupby("agent")["value"].agg(["mean", "count"])
    assert means.loc["deontological, xi 3"].tolist() == [1.5, 2]
    assert means.loc["deontological, xi 4"].tolist() == [5.0, 1]
    assert means.loc[f"{BASE}, xi 3"].tolist() == [2.0, 1]  # once, not once a seed
    assert means.loc[f"{BASE}, xi 4"].tolist() == [6.0, 1]


def all_suites():
    """An evaluation with conditions of every suite."""
    suites = {}
    for suite, names in {
        "trained": ["ipd"],
        "labels": ["ipd", "icd"],
        "swapped": ["ipd"],
        "orders": ["ipd original new", "icd original new", "ipd reversed new", "ipd reversed old"],
        "wordings": ["structured", "story"],
        "unrelated": ["action", "action+game+state"],
        "personas": ["ipd deontological", "story deontological"],
    }.items():
        suites[suite] = evaluated(suite, dict.fromkeys(names, 1.0))["suites"][suite]
    for name, found in suites["orders"].items():
        _, order, labels = name.split()
        found["labels"] = {"new": ["n1", "n2"], "old": ["action1", "action2"]}[labels]
        found["table_order"] = order
    for name, found in suites["personas"].items():
        found["game"], found["persona"] = "ipd", "deontological"
        found["wording"] = "story" if "story" in name else "structured"
    return {"suites": suites}


@pytest.mark.slow
def test_every_suite_has_its_figures_and_every_opponent_a_place(tmp_path):
    runs = [
        make_run(tmp_path, "a", evaluation=all_suites(), source="m"),
        make_run(tmp_path, "b", "--seed", "1", evaluation=all_suites(), source="m"),
        make_run(tmp_path, "c", "--env.opponent", "random", evaluation=all_suites(), source="m"),
        make_run(tmp_path, "d", "--env.opponent", "learner", evaluation=all_suites(), source="m"),
    ]
    series, _ = group_runs(runs)
    table = tables(series)
    sections = evaluation_sections(table, series, (table.iloc[:0], []), "random")
    drawn = {}
    for section in sections:
        drawn[section.name] = section.draw()[1].values()
        plt.close("all")
    pairs = ["fig4-5-labels-tit-for-tat", "fig15-16-labels-learner", "fig20-trained-tit-for-tat"]
    pairs += ["fig21-swapped-tit-for-tat", "labels-others", "trained-others", "swapped-others"]
    pairs += ["fig22-23-orders", "fig25-personas"]
    both = {f"{name}-{kind}" for name in pairs for kind in ("regret", "actions")}
    assert set(drawn) == both | {"fig17-wordings", "fig18-unrelated", "fig19-reciprocity"}
    assert "deontological, IPD: 1.000 ± 0.000 (1 run)" in drawn["labels-others-regret"]
    assert any("vs learner, IPD" in tip for tip in drawn["trained-others-regret"])
    start = "deontological vs tit-for-tat, reversed: 1.000 ± 0.000 (2 runs)"
    assert start in drawn["fig22-23-orders-regret"]
    persona = f"{BASE}, deontological persona, IPD: 2.000"
    assert any(tip.startswith(persona) for tip in drawn["fig25-personas-regret"])
    assert any(tip.startswith("deontological vs random: C|C") for tip in drawn["fig19-reciprocity"])


def test_a_mixture_is_no_control_with_swapped_labels(tmp_path):
    """Its prompt names the first of many pairs, here the usual one exchanged."""
    swapped = ["--prompt.labels", "[action2, action1]"]
    mixed = ["--mixture.labels", "[[action2, action1], [left, right]]"]
    runs = [make_run(tmp_path, f"a{seed}", "--seed", str(seed)) for seed in range(2)]
    runs += [make_run(tmp_path, "b", *swapped), make_run(tmp_path, "c", *mixed)]
    series, _ = group_runs(runs)
    shown = {
        section.name: {run.folder.name for panel in section.draw.args[0].values() for run in panel}
        for section in training_sections(series, [])
        if section.name in ("fig2a-training-tit-for-tat", "fig13-swapped")
    }
    assert shown["fig2a-training-tit-for-tat"] == {"a0", "a1", "c"}
    assert shown["fig13-swapped"] == {"a0", "a1", "b"}  # beside the usual ones


def test_what_was_not_tested_is_no_bar(tmp_path):
    runs = [
        make_run(tmp_path, "a", evaluation=evaluated("trained", {"ipd": 1.0})),
        make_run(
            tmp_path, "b", "--reward.name", "game", evaluation=evaluated("trained", {"icd": 1.0})
        ),
    ]
    series, _ = group_runs(runs)
    table = tables(series)
    sections = evaluation_sections(table, series, (table.iloc[:0], []), "random")
    _, tips = next(s for s in sections if s.name.endswith("-actions")).draw()
    assert any(tip.startswith("deontological, ipd") for tip in tips.values())
    assert not any(tip.startswith("deontological, icd") for tip in tips.values())


def test_the_page_says_what_was_grouped_and_left_out(tmp_path, monkeypatch):
    for run in (
        make_run(tmp_path, "runs/a1", "--seed", "1"),
        make_run(tmp_path, "runs/a2", "--seed", "2", evaluation=evaluated("trained", {"ipd": 1.0})),
        make_run(tmp_path, "runs/twin", "--seed", "2"),
        make_run(tmp_path, "runs/xi", "--reward.xi", "4"),
        make_run(tmp_path, "runs/n", evaluation=evaluated("trained", {"ipd": 1.0}, "joss")),
    ):
        write_run(run)
    (tmp_path / "runs" / "meet").mkdir()
    (tmp_path / "runs" / "meet" / "tournament.json").write_text("{")
    monkeypatch.setattr(report, "training_sections", lambda *_: [])
    monkeypatch.setattr(report, "_test_sections", lambda *_: [])
    twice = [tmp_path / "runs", tmp_path / "runs"]
    skipped = report.write_report(twice, tmp_path / "out")
    assert len(skipped) == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert "4 runs, in 2 series" in page
    assert "Left out: " in page
    assert "twin is the same experiment and seed as" in page
    assert "tournament.json is damaged" in page
    assert "Not evaluated: deontological, xi 4" in page
    assert "In results.csv only: tests against joss" in page
    assert "<td>deontological, xi 3</td>" in page
    assert "<td>0 1 2</td>" in page or "<td>1 2 0</td>" in page


def test_runs_of_populations_inside_a_folder_are_found(tmp_path):
    write_run(make_run(tmp_path, "runs/one"))
    write_run(make_run(tmp_path, "runs/many/seed=0"))
    (tmp_path / "runs" / "many" / "members.yaml").write_text("- seed=0\n")
    record = json.dumps({"update": 1, "reward_mean": [0.5], "action_types": {}})
    (tmp_path / "runs" / "many" / "metrics.jsonl").write_text(record + "\n")
    found, skipped = find_runs([tmp_path / "runs", tmp_path / "runs" / "many"])
    assert [run.folder.name for run in found] == ["one", "seed=0"]
    assert skipped == []


# Headers.


def test_headers_tell_the_whole_of_a_population():
    members = [
        config("--reward.name", "game", "--reward.then", "utilitarian", "--env.noise", "0.05"),
        config("--env.game", "ish", "--env.opponent", "joss", "--env.memory", "2"),
        config("--ppo.estimator", "exact", "--prompt.labels", "[qX, vR]", "--seed", "7"),
        config("--reward.xi", "4", "--env.payoff_draws", "4", "--prompt.wording", "story"),
    ]
    told = summary(members)
    assert told["reward"] == "game, then utilitarian (after update 2); deontological"
    assert told["game"].startswith("ipd, ish, ipd (4 draws of payoffs from 1 to 9 an update)")
    assert "against tit-for-tat, joss" in told["game"]
    assert "trembles in 5% of moves" in told["game"]
    assert told["points"] == "xi 3, illegal -6; xi 4, illegal -6"
    assert told["shown"].startswith("1 remembered round, 2 remembered rounds; labels")
    assert "qX/vR" in told["shown"]
    assert "wording structured, story" in told["shown"]
    assert "sampled, exact" in told["training"]
    assert told["seeds"] == "0, 7"


def test_training_begins_with_that_header(monkeypatch):
    class Ready(Exception):
        pass

    def stop(*_):
        raise Ready

    monkeypatch.setattr(training, "compile_update", stop)
    lines = []
    tree = [config("--reward.name", "game", "--reward.then", "maximin"), config("--seed", "5")]
    with pytest.raises(Ready):
        training.fit_population(dict(zip("ab", tree, strict=True)), say=lines.append)
    said = "\n".join(lines)
    assert "reward     game, then maximin (after update 2); deontological" in said
    assert "seeds      0, 5" in said


# Pictures.


def test_no_two_games_look_alike():
    games = [game.name for game in choose_games(["all", "ordinal-symmetric", "ordinal-all"])]
    assert len(set(game_styles(games[:20]))) == 20
    colours = {colour for colour, _ in game_styles(games[:20])}
    assert len(colours) == 20  # hatches come after that
    assert len(set(game_styles(games[:150]))) == 150


def test_one_reward_has_one_colour_in_neighbouring_figures(tmp_path):
    names = ["utilitarian", "game", "maximin", "altruism(0.3)"]
    runs = [
        make_run(
            tmp_path, name, "--reward.name", name, evaluation=evaluated("trained", {"ipd": 1.0})
        )
        for name in names
    ]
    colours = []
    for chosen in (runs, runs[1:], runs[::-1]):
        series, _ = group_runs(chosen)
        section = next(s for s in training_sections(series, []) if s.name == "fig12-reward")
        axes = section.draw()[0].axes[0]
        lines = zip([one.name for one in series], axes.lines, strict=True)
        colours.append({name: to_hex(line.get_color()).upper() for name, line in lines})
        rows = tables(series)
        prints = map_sections(with_agents(rows, series), False)[0].draw()[0].axes[0]
        colours.append(
            {line.get_label(): to_hex(line.get_color()).upper() for line in prints.lines}
        )
    for found in colours:
        for name, colour in found.items():
            assert colour == reward_colour(name).upper(), name
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert len(set(line_styles(["game", "game", "game", "maximin"]))) == 4


def test_figures_mark_chance_and_the_optimum_in_colours_that_all_can_tell_apart(tmp_path):
    run = make_run(tmp_path, "run", evaluation=evaluated("trained", {"ipd": 1.0}))
    series, _ = group_runs([run])
    rows = with_agents(tables(series), series)
    agents = list(dict.fromkeys(rows["agent"]))
    curves = {"a": [figures.Curve("a", "game", np.zeros((1, 3)))]}
    drawn = {
        "optimum: no regret": (0, figures.regrets(rows, agents, ["ipd"])[0]),
        "chance: 1/4": (0.25, figures.reciprocity({"ipd": rows}, agents)[0]),
        "the most of a round": (1, figures.reward_curves(curves)[0]),
    }
    for label, (height, figure) in drawn.items():
        names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert names.count(label) == 1
        for axes in figure.axes:
            dashed = [each for each in axes.collections if each.get_linestyle()[0][1]]
            assert [each.get_segments()[0][:, 1].tolist() for each in dashed] == [[height] * 2]
            assert axes.get_ylabel()
    uneven, _ = figures.reciprocity({"ipd": rows}, agents, even=False)
    texts = [text.get_text() for legend in uneven.legends for text in legend.get_texts()]
    assert texts
    assert "chance: 1/4" not in texts
    safe = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"}
    assert set(GAME_COLOURS.values()) == safe


def test_the_figure_of_thoughts_is_of_who_was_trained():
    after = lambda share: {"after": {"own": {"CC": {"C": share, "error": 0.0}}}}
    study = {"policies": {"base": after(0.25), "tuned": after(0.75)}}
    _, tips = draw_thoughts([Studied("a", study)])
    assert list(tips.values()) == ["own thoughts after CC: 75.0% ± 0.0%"]


def test_a_run_of_one_update_is_an_area(tmp_path):
    figure, tips = figures.training_types({"one": [make_run(tmp_path, "a", made=1)]})
    (axes,) = (axes for axes in figure.axes if axes.get_visible())
    assert axes.get_xlim() == (0.5, 1.5)
    areas = [path.get_extents() for band in axes.collections for path in band.get_paths()]
    assert sum(area.width * area.height for area in areas) == pytest.approx(1)
    assert all(", update 1: " in tip for tip in tips.values())


def test_rounds_without_one_before_are_named_where_they_are_left_white(tmp_path):
    flags = ["--env.blank_start", "true"]
    runs = [make_run(tmp_path, "a"), make_run(tmp_path, "b", *flags)]
    for run, named in zip(runs, (False, True), strict=True):
        series, _ = group_runs([run])
        assert any("White" in one.caption for one in training_sections(series, [])) == named
        history = run.history
        if named:  # a fifth of the rounds
            shares = {kind: 0.8 * share for kind, share in SHARES.items()}
            history = [record | {"action_types": shares} for record in history]
        figure, _ = figures.training_types({"one": [run._replace(history=history)]})
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert ("no round before" in texts) == named


def test_exact_tests_are_shown_though_the_papers_protocol_has_another_opponent():
    rows = pd.DataFrame({"opponent": ["", "bully", "random"], "protocol": ["", "exact", "paper"]})
    assert report.tested_against(rows) == "bully"
    assert report.tested_against(rows[rows["protocol"] != "exact"]) == "random"


def test_members_in_tournaments_have_short_names():
    members = ["reward.name=game,seed=0,env.opponent=joss", "seed=0,reward.name=game+maximin"]
    assert short_names([*members, "tit-for-tat"]) == [
        "game, opponent joss",
        "game+maximin",
        "tit-for-tat",
    ]
    pairs = [f"reward.name=inequity-aversion(5,0.05),seed={n}" for n in (0, 1)]
    assert short_names(pairs) == ["seed 0", "seed 1"]
    assert short_names(["seed=0", "joss"]) == ["seed 0", "joss"]
    assert short_names(["a.name=x", "b.name=x", "a.name=x"]) == ["a.name=x", "b.name=x", "a.name=x"]
    games = choose_games(["ipd"])
    entrants = [strategy(name, games, 0.0) for name in ("joss", "bully")]
    entrants = [one._replace(name=f"reward.name={one.name},seed=0") for one in entrants]
    result = hold(entrants, games, [], 4, 3.0, -6.0)
    assert [row[0] for row in tournament_rows(result)[1]] == ["joss", "bully"]
    sections = tournament_sections([result])
    labels = [text.get_text() for text in sections[0].draw()[0].axes[0].get_yticklabels()]
    assert labels == ["joss", "bully"]
    spread = next(section for section in sections if section.name == "tournament-evolution")
    assert WHY_THEY_DIFFER in spread.caption


def test_games_whose_sides_differ_are_named():
    games = choose_games(["ipd", "bos"])
    result = hold([strategy("joss", games, 0.0)], games, [], 4, 3.0, -6.0)
    section, *_ = tournament_sections([result])
    assert section.caption.endswith(" Means over both sides of BOS.")


def test_a_jump_of_a_fingerprint_is_drawn_as_one():
    """Grim trigger co-operates for ever with always-C, and in the long run with nobody else."""
    games = choose_games(["ipd"])
    names = ["grim-trigger", "tit-for-tat", "joss"]
    result = hold([strategy(name, games, 0.0) for name in names], games, [], 4, 3.0, -6.0)
    section = next(s for s in tournament_sections([result]) if s.name.endswith("fingerprints"))
    axes = section.draw()[0].axes[0]
    found = {line.get_label(): line for line in axes.lines}
    grim = found["grim-trigger"]
    assert grim.get_xdata()[-1] < 1
    assert max(grim.get_ydata()) < 0.01
    (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (1, pytest.approx(1))
    for smooth in ("tit-for-tat", "joss"):
        assert found[smooth].get_xdata()[-1] == 1
    # What is steep is no jump: P(C) = 0.999 after CC, 0 otherwise.
    policy = np.array([[0.999, 0.001, 0], *[[0.01, 0.99, 0]] * 3])
    (steep,) = fingerprint([agent_player(make_memory(), policy)], RATES)
    figure, _ = fingerprints({"a": steep}, {"a": ("k", "-")})
    assert len(figure.axes[0].lines) == 1


def test_tournaments_of_before_are_drawn_too():
    games = choose_games(["ipd"])
    result = hold([strategy("joss", games, 0.0)], games, [], 4, 3.0, -6.0)
    del result["rates"]
    result["games"]["ipd"]["fingerprint"] = [np.linspace(0, 0.9, 21).tolist()]
    section = next(s for s in tournament_sections([result]) if s.name.endswith("fingerprints"))
    figure, tips = section.draw()
    assert len(figure.axes[0].lines) == 1
    assert "0.45 at 0.5" in tips["tip0"]


def test_tables_list_the_runs_rewards_and_games(tmp_path):
    own = "{mine: {CC: [1, 2], CD: [3, 4], DC: [5, 6], DD: [7, 8]}}"
    runs = [
        make_run(tmp_path, "a", "--reward.name", "game+0.5*altruism(0.3)", "--reward.xi", "5"),
        make_run(tmp_path, "b", "--games", own, "--env.game", "mine", "--reward.then", "maximin"),
        make_run(
            tmp_path,
            "c",
            "--env.game",
            "public-goods(4)",
            "--env.opponent",
            "conditional",
            "--evaluation.opponents",
            "[conditional]",
        ),
        make_run(tmp_path, "d", evaluation=evaluated("trained", {"icd": 1.0, "plane(2,4)": 2.0})),
    ]
    series, _ = group_runs(runs)
    rewards = {row[0]: row[1:] for row in page_tables.reward_rows(series)}
    assert set(rewards) == {"game+0.5*altruism(0.3)", "deontological", "maximin"}
    assert rewards["game+0.5*altruism(0.3)"][1:3] == ["5", "-6"]
    assert "the agent's own points" in rewards["game+0.5*altruism(0.3)"][0]
    assert "spite" in rewards["game+0.5*altruism(0.3)"][0]
    mixed = make_run(tmp_path, "e", "--mixture.games", "[asymmetric, ish]")
    names = [game.name for game in page_tables.played_games(group_runs([mixed])[0], [])[0]]
    assert names == [*ASYMMETRIC, "ish"]
    games, unknown = page_tables.played_games(series, [])
    assert unknown == []
    pairs = {row[1]: row[2:] for row in page_tables.payoff_rows(games)}
    assert pairs == {
        "ipd": ["3, 3", "0, 4", "4, 0", "1, 1"],
        "mine": ["1, 2", "3, 4", "5, 6", "7, 8"],
        "icd": ["1, 1", "0, 0", "0, 0", "4, 4"],
    }
    (group,) = page_tables.group_rows(games)
    assert group[1:] == ["public-goods(4,10,2)", "5, 10, 15, 20", "10, 15, 20, 25"]
    assert training_game(runs[2].config).num_players == 4


def test_table_3_has_the_games_of_tables_and_tournaments_and_says_what_is_unknown(tmp_path):
    own = "{mine: {CC: [1, 2], CD: [3, 4], DC: [5, 6], DD: [7, 8]}}"
    text = make_run(tmp_path, "a", evaluation=evaluated("trained", {"lost": 1.0}), source="m")
    table = make_run(tmp_path, "b", "--games", own, "--env.game", "mine")
    games = make_games({"ours": {"CC": [9, 8], "CD": [7, 6], "DC": [5, 4], "DD": [3, 2]}})
    games = [games["ours"], get_game("bos")]
    result = hold([strategy("joss", games, 0.0)], games, [], 4, 3.0, -6.0)
    before = {"games": {"theirs": {}, "ish": {}}}  # an earlier version wrote no payoffs
    (series, _), (tabular, _) = group_runs([text]), group_runs([table])
    found, unknown = page_tables.played_games([*series, *tabular], [result, before])
    pairs = {row[1]: row for row in page_tables.payoff_rows(found)}
    assert set(pairs) == {"ipd", "mine", "ours", "bos", "ish"}
    assert pairs["ours"][2:] == ["9, 8", "7, 6", "5, 4", "3, 2"]
    assert pairs["bos"][0] == get_game("bos").title
    assert unknown == ["lost", "theirs"]
    body = "".join(page_tables.number_parts(series, tabular, pd.DataFrame(), [result]))
    assert "<td>mine</td>" in body
    assert "Not in Table 3, as this command does not know their payoffs: lost." in body


def test_a_tables_map_says_that_it_is_one_colour(tmp_path):
    points = {f"plane({s},{t})": 1.0 for s in (-2, 2) for t in (8, 12)}
    series, _ = group_runs([make_run(tmp_path, "a", evaluation=evaluated("trained", points))])
    rows = with_agents(tables(series), series)
    captions = [map_sections(rows, tabular)[-1].caption for tabular in (True, False)]
    assert ["one colour by construction" in caption for caption in captions] == [True, False]


def test_agents_tested_on_a_line_of_the_plane_have_no_map(tmp_path):
    grid = {f"plane({s},{t})": 1.0 for s in (-2, 2) for t in (8, 12)}
    runs = [
        make_run(tmp_path, "a", evaluation=evaluated("trained", grid)),
        make_run(
            tmp_path,
            "b",
            *("--reward.name", "game"),
            evaluation=evaluated("trained", {"plane(-5,15)": 1.0, "plane(-5,12)": 1.0}),
        ),
    ]
    series, _ = group_runs(runs)
    section = map_sections(with_agents(tables(series), series), False)[-1]
    assert section.name == "plane"
    assert section.caption.endswith("tested on a line of it only: game.")
    tips = section.draw()[1].values()
    assert any(tip.startswith("deontological, S=-2 T=8") for tip in tips)
    assert not any(tip.startswith("game, ") for tip in tips)


def test_heads_of_tables_wrap():
    style = (report.Path(report.__file__).parent / "page.html").read_text()
    assert "overflow-wrap" in style
    assert "<th>a</th>" in page_tables.html_table(["a"], [["b"]], "c")


# Beyond games.


def with_scenarios(change):
    """An evaluation with a suite of two items, one of which changed by so much."""
    interval = lambda mean: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    options = [{"text": "Call him", "tags": ["keep"], "payoffs": None}]
    options += [{"text": "Sleep", "tags": ["break"], "payoffs": None}]

    def item(moved):
        shares = {"base": [0.5, 0.5], "tuned": [0.5 + moved, 0.5 - moved]}
        found = {
            policy: {"options": row, "of_legal": row, "illegal": 0.0, "spread": 0.0}
            for policy, row in shares.items()
        }
        text = f"Story of {moved}" + " and more" * 50
        return {"group": "g", "text": text, "options": options, "policies": found}

    measures = {
        name: {"items": 2, "base": interval(0.5), "tuned": interval(0.6), "change": interval(0.1)}
        for name in ("keep", "keep of legal", "illegal")
    }
    suite = {
        "persona": "none",
        "label_sets": ["letters"],
        "policies": ["base", "tuned"],
        "tags": ["keep"],
        "items": {"still": item(0.0), "moved": item(change)},
        "measures": {"all": measures},
    }
    return {"suites": {}, "scenarios": {"tales": suite}}


def test_a_report_shows_scenarios_and_the_items_that_changed_most(tmp_path):
    runs = [
        make_run(tmp_path, f"a-{seed}", "--seed", str(seed), evaluation=with_scenarios(0.3))
        for seed in (0, 1)
    ]
    runs.append(make_run(tmp_path, "b", "--seed", "2"))  # not evaluated
    series, _ = group_runs(runs)
    (section,) = beyond_sections(series)
    figure, tips = section.draw()
    assert "tales" in section.heading
    assert len(tips) == 4  # base and tuned, a tag and illegal
    assert any("tuned, keep of legal: 60.0%" in tip for tip in tips.values())
    (means, changed) = beyond_tables(series)
    assert [row[1:4] for row in means[2]][:3] == [
        ["all", "keep", "2"],
        ["all", "keep of legal", "2"],
        ["all", "illegal", "2"],
    ]
    assert means[2][0][-1] == "+10.0% [+0.0, +20.0]"
    assert [row[1] for row in changed[2]] == ["moved", "still"] * 2
    assert changed[2][0][3:] == ["Call him", "keep", "50.0%", "80.0%"]
    assert len(changed[2][0][2]) < 200
    assert not beyond_sections(group_runs([runs[-1]])[0])


def test_retention_is_drawn_over_checkpoints(tmp_path):
    """Each checkpoint's own file, and the newest's; one not evaluated so is left out."""
    kept = lambda kl: {"all": {"tokens": 9, "kl": kl, "perplexity": {"base": 10.0, "tuned": 12.0}}}
    row = lambda c: {"C": c, "D": 0.5 - c, "illegal": 0.5}

    def answers(*shares):
        """Of a base that answers C and D alike often."""
        told = {"tuned": shares, "base": (0.25, 0.25)}
        rows = {
            name: {"remembered": dict(zip(("CC", "DD"), map(row, own), strict=True))}
            for name, own in told.items()
        }
        met = {who: own | {"opponents": {}} for who, own in rows.items()}
        shown = {"game": "ipd", "wording": "structured", "persona": "none", "labels": ["X", "Y"]}
        return {"trained": {"ipd": shown | {"table_order": "original", "policies": met}}}

    heads = {"policies": ["base", "tuned"], "opponents": [], "protocols": [], "largest_gap": None}
    evaluation = heads | {
        "update": 4,
        "suites": answers(0.5, 0.0),
        "retention": {"builtin": kept(0.4)},
    }
    run = make_run(tmp_path, "a", evaluation=evaluation)
    write_run(run)
    earlier = evaluation | {"update": 2, "retention": {"builtin": kept(0.2)}}
    earlier["suites"] = answers(0.5, 0.25)
    (run.folder / "evaluation-2.json").write_text(json.dumps(earlier))
    (run.folder / "evaluation-3.json").write_text(json.dumps(heads | {"update": 3, "suites": {}}))
    (found,) = checkpoints(run).values()
    assert [(one.update, one.task_kl, one.retention["kl"]) for one in found] == [
        (2, pytest.approx(np.log(2) / 4), 0.2),
        (4, pytest.approx(np.log(2) / 2), 0.4),
    ]
    (section,) = beyond_sections(group_runs([run])[0])
    _, tips = section.draw()
    assert [tip.rpartition(", ")[2] for tip in tips.values()] == [
        "update 2: 0.2000",
        "update 4: 0.4000",
        "update 2: 1.2000",
        "update 4: 1.2000",
    ]


def test_other_texts_have_a_figure_of_their_own(tmp_path):
    """Texts are told apart by their name, and of one name by their number of tokens."""

    def kept(tokens, kl):
        found = {"tokens": tokens, "kl": kl, "perplexity": {"base": 10.0, "tuned": 12.0}}
        return {"all": found}

    row = {"C": 0.25, "D": 0.25, "illegal": 0.5}
    suites = {
        "trained": {
            "ipd": {"policies": {p: {"remembered": {"CC": row}} for p in ("base", "tuned")}}
        }
    }
    runs = [
        make_run(
            *(tmp_path, f"seed{seed}", "--seed", str(seed)),
            evaluation={"update": 4, "suites": suites, "retention": texts},
        )
        for seed, texts in enumerate(
            [
                {"builtin": kept(9, 0.1), "my.txt": kept(5, 0.2)},
                {"builtin": kept(9, 0.3), "my.txt": kept(7, 0.4)},
            ]
        )
    ]
    sections = beyond_sections(group_runs(runs)[0])
    assert [section.heading.partition(" (")[0] for section in sections] == [
        "Language kept: builtin, 9 tokens",
        "Language kept: my.txt, 5 tokens",
        "Language kept: my.txt, 7 tokens",
    ]
    told = [{tip.rpartition(": ")[2] for tip in section.draw()[1].values()} for section in sections]
    assert told == [{"0.1000", "0.3000", "1.2000"}, {"0.2000", "1.2000"}, {"0.4000", "1.2000"}]
    assert len({section.name for section in sections}) == 3
