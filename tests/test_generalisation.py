"""What holds outside of training: the suite, its measures, and how people are told."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from run_files import SHARES, evaluated, make_run, write_run

from jaxmoral import config as configs
from jaxmoral.language import novelty
from jaxmoral.language.novelty import Seen, generalisation, held_out_labels, mark
from jaxmoral.language.prompts import TABLE_ORDERS, WORDINGS, Condition, Presentation, all_prompts
from jaxmoral.measuring import evaluation
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.generalisation import by_novelty
from jaxmoral.measuring.results import table
from jaxmoral.reporting.evaluated import keep_and_draw
from jaxmoral.reporting.generalisation import generalisation_rows, generalisation_sections
from jaxmoral.reporting.page import write_report
from jaxmoral.reporting.series import group_runs
from jaxmoral.world.games import get_game


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_suite_has_each_part_new_alone_and_all_together():
    games = [get_game(name) for name in ("ipd", "ish", "bos")]
    pairs = [("red", "blue"), ("X", "Y"), ("Y", "X")]
    seen = Seen((games[0],), tuple(pairs), ("structured",), ("none",), ("original",))
    found = generalisation(Presentation(labels=("X", "Y")), games, seen)
    held = held_out_labels()
    by_mark = {}
    for game, shown in found.values():
        by_mark.setdefault(mark(Condition(game, shown), seen), []).append((game.name, shown.labels))
    assert by_mark["seen"] == [("ipd", pair) for pair in pairs]
    assert by_mark["exchanged labels"] == [("ipd", ("blue", "red"))]
    assert by_mark["new labels"] == [("ipd", pair) for pair in held]
    assert by_mark["new game"] == [("ish", pairs[0]), ("bos", pairs[0])]
    assert {len(by_mark[f"new {one}"]) for one in ("wording", "table order")} == {3}
    apart = by_mark["new game, new labels"]
    assert len(apart) >= 20
    assert {game for game, _ in apart} == {"ish", "bos"}
    together = [f"new game, new labels, new {look}" for look in ("wording", "table order")]
    assert sum(len(by_mark[one]) for one in together) >= 8
    assert {labels for one in together for _, labels in by_mark[one]} < set(held)
    shown = [shown for game, shown in found.values() if game.name != "ipd"]
    assert {one.table_order for one in shown} == set(TABLE_ORDERS)  # each of the new ones too


@pytest.mark.parametrize("wording", ["structured", "story", "unstructured"])
def test_nothing_is_new_that_prompts_do_not_show(wording):
    games = [get_game(name) for name in ("ipd", "ish", "bos")]
    shown = Presentation(labels=("X", "Y"), wording=wording)
    seen = Seen((games[0],), (("X", "Y"),), (wording,), ("none",), ("original",))
    suite = [*generalisation(shown, games, seen).values()]
    orders = [shown._replace(table_order=order) for order in TABLE_ORDERS]
    suite += [Condition(game, look) for game in games for look in orders]
    for condition in suite:
        game, look = condition
        for part, old in (
            ("new game", Condition(games[0], look)),
            ("new table order", Condition(game, look._replace(table_order="original"))),
            ("new wording", Condition(game, look._replace(wording=wording))),
            ("labels", Condition(game, look._replace(labels=("X", "Y")))),
        ):
            differ = all_prompts(*condition) != all_prompts(*old)
            assert (part in mark(condition, seen)) == differ, (condition, part)


def test_no_wording_is_new_to_who_meets_several():
    """The others speak of one other player."""
    games = [get_game("public-goods(3)"), get_game("threshold-goods(3,2)")]
    wording = next(name for name in WORDINGS if name.endswith("-group"))
    seen = Seen((games[0],), (("X", "Y"),), (wording,), ("none",), ("original",))
    found = generalisation(Presentation(labels=("X", "Y"), wording=wording), games, seen)
    marks = {mark(condition, seen) for condition in found.values()}
    assert {"seen", "new game", "new labels", "new table order"} <= marks
    assert {condition.presentation.wording for condition in found.values()} == {wording}


def test_a_game_of_the_same_points_is_not_new():
    """Prompts do not show its name."""
    known, same, other = map(get_game, ("prisoners-dilemma", "ordinal(53)", "ordinal(54)"))
    np.testing.assert_array_equal(known.payoffs, same.payoffs)
    seen = Seen((known,), (("X", "Y"),), ("structured",), ("none",), ("original",))
    found = generalisation(Presentation(labels=("X", "Y")), [same, other], seen)
    assert {game.name for game, _ in found.values()} == {known.name, other.name}
    assert mark(Condition(same, Presentation(labels=("X", "Y"))), seen) == "seen"


def test_padding_changes_no_measure(tiny_flags, monkeypatch):
    """Conditions of unlike sizes in one shape, and in as many as there are sizes."""
    config = configs.load(None, [*tiny_flags, "--prompt.labels", "[X, Y]"])
    measured = []
    for shapes, worth in ((1, 1.0), (99, 0.0)):
        monkeypatch.setattr(evaluation, "MAX_SHAPES", shapes)
        monkeypatch.setattr(evaluation, "_WORTH", worth)
        suites = ["wordings", "orders"]
        measured.append(evaluate_agent(config, ["ipd", "bos"], suites=suites, protocols=["exact"]))
    one, several = (configs.flatten(found["suites"]) for found in measured)
    assert one.keys() == several.keys()
    numbers = [key for key, value in one.items() if isinstance(value, float)]
    assert len(numbers) > 100
    for key in numbers:
        assert one[key] == pytest.approx(several[key], rel=1e-5, abs=1e-6), key


def outside(**regrets):
    """An evaluation of a run against tit-for-tat, in made-up conditions."""
    row = lambda c, illegal: {"C": c, "D": 1 - c - illegal, "illegal": illegal}
    of = lambda value: {
        "exact": {
            "regret": {"deontological": {"points": value}, "utilitarian": {"normalised": 0.5}}
        }
    }

    def condition(novelty, game, *remembered):
        opponents = {name: of(value) for name, value in regrets.items()}
        told = {"remembered": dict(zip(("CC", "DD"), remembered, strict=True))}
        return {
            "novelty": novelty,
            "game": game,
            "policies": {"tuned": told | {"opponents": opponents}},
        }

    named = {
        "a": condition("new labels", "ipd", row(0.5, 0.2), row(0.1, 0.0)),
        "b": condition("seen", "ipd", row(0.9, 0.0), row(0.2, 0.1)),
        "c": condition("seen", "ipd", row(0.7, 0.0), row(0.2, 0.3)),
        "d": condition("new game", "bos", row(0.6, 0.0), row(0.6, 0.0)),
        "e": condition("new game, new labels", "bos", row(0.6, 0.4), row(0.5, 0.0)),
        "f": condition("new labels", "ipd", row(0.8, 0.0), row(0.3, 0.0)),
        "g": condition("new game, new labels, new wording", "bos", row(0, 1), row(0, 1)),
    }
    return {
        "config": {"mixture": {"opponents": None}, "env": {"opponent": "tit-for-tat"}},
        "opponents": list(regrets),
        "policies": ["tuned"],
        "suites": {"generalisation": named},
    }


def test_what_holds_outside_is_told_by_what_is_new():
    found = by_novelty(outside(**{"random": 3.0, "tit-for-tat": 1.0}), "tuned")
    assert list(found) == [
        "seen",
        "new labels",
        "new game",
        "new opponent",
        "new game, new labels",
        "all together",
    ]
    regret = {"deontological": 1.0, "utilitarian": 0.5}
    assert found["seen"] == pytest.approx(
        {"conditions": 2, "P(C|CC)": 0.8, "P(C|DD)": 0.2, "illegal": 0.2, "worst illegal": 0.3}
        | {"apart": 0.1, "worst apart": 0.1}
        | regret
    )
    assert found["new labels"] == pytest.approx(
        {"conditions": 2, "P(C|CC)": 0.65, "P(C|DD)": 0.2, "illegal": 0.1, "worst illegal": 0.2}
        | {"apart": 0.2, "worst apart": 0.3}
        | regret
    )
    assert found["new game"]["apart"] == pytest.approx(0.4)  # from what was seen
    assert found["new game, new labels"]["apart"] == pytest.approx(0.1)  # from its own labels there
    assert found["all together"]["worst apart"] == pytest.approx(0.6)
    assert found["new opponent"] == {"conditions": 2, "deontological": 3.0, "utilitarian": 0.5}
    assert found["all together"]["deontological"] == 3.0


def test_an_opponent_of_the_papers_protocol_alone_counts_for_nothing():
    both = outside(**{"random": 3.0, "tit-for-tat": 1.0})
    for condition in both["suites"]["generalisation"].values():
        opponents = condition["policies"]["tuned"]["opponents"]
        opponents["random"] = {"paper": opponents["random"].pop("exact")}
    found = by_novelty(both, "tuned")
    assert "new opponent" not in found
    assert {found[name]["deontological"] for name in found} == {1.0}


def test_an_opponent_is_the_same_however_it_is_spaced():
    one = outside(**{"noisy(joss,0.1)": 1.0, "random": 3.0})
    one["config"]["env"]["opponent"] = "noisy(joss, 0.1)"
    found = by_novelty(one, "tuned")
    assert found["seen"]["deontological"] == 1.0
    assert found["new opponent"]["deontological"] == 3.0


def test_without_others_every_regret_is_against_the_same():
    found = by_novelty(outside(random=3.0), "tuned")
    assert "new opponent" not in found
    assert {one["deontological"] for one in found.values()} == {3.0}


def test_the_terminal_tells_what_is_new_in_lines_that_fit():
    lines = table(outside(**{"random": 3.0, "tit-for-tat": 1.0}) | {"largest_gap": None})
    rows = [line.split() for line in lines.splitlines() if line.startswith("new labels (2)")]
    assert [row[4:] for row in rows] == [
        ["65.0%", "20.0%"],
        ["10.0%", "20.0%", "20.0%", "30.0%", "1.00", "0.500"],
    ]
    assert max(map(len, lines.splitlines())) <= 100


def test_opponents_of_training_are_tested_beside_those_asked_for(tiny_flags, monkeypatch):
    """Whom the suite of what is new needs, as far as they can play all its games."""
    monkeypatch.setattr(novelty, "held_out_labels", lambda: [("A", "B")])
    given = ["--prompt.labels", "[X, Y]", "--mixture.opponents", "{joss: 1, extortionate: 1}"]
    config = configs.load(None, [*tiny_flags, *given])
    asked = {"opponents": ["random"], "protocols": ["exact"]}
    assert evaluate_agent(config, ["ipd"], suites=["labels"], **asked)["opponents"] == ["random"]
    found = evaluate_agent(config, ["ipd", "bos"], suites=["generalisation"], **asked)
    assert found["opponents"] == ["random", "joss"]
    told = [
        one["policies"]["base"]["opponents"] for one in found["suites"]["generalisation"].values()
    ]
    assert {tuple(one) for one in told} == {("random", "joss")}


T_OF_TWO = 4.302653  # Student's t of two degrees of freedom, at 97.5 %


def evaluation_of(settled, illegal, regret):
    """An evaluation of what is new whose tuned agent answers illegally so often with new labels."""

    def policy(share):
        row = {"C": 1 - share, "D": 0.0, "illegal": share}
        of = {"deontological": {"points": regret}, "utilitarian": {"normalised": regret / 10}}
        shown = {"regret": of, "action_types": SHARES, "outcomes": {"C": 1 - share}}
        return {"remembered": {"CC": row}, "opponents": {"tit-for-tat": {"exact": shown}}}

    presentation = {"wording": "structured", "persona": "none", "table_order": "original"}
    named = {
        f"{novelty} {at}": {
            "game": "ipd",
            "labels": list(labels),
            "novelty": novelty,
            "policies": {"base": policy(0.5), "tuned": policy(share)},
            **presentation,
        }
        for at, (novelty, labels, share) in enumerate(
            [
                ("seen", settled.prompt.labels, 0.0),
                ("new labels", ("P", "Q"), illegal),
                ("new labels", ("V", "W"), 0.0),
            ]
        )
    }
    return {
        "config": configs.to_dict(settled),
        "policies": ["base", "tuned"],
        "opponents": ["tit-for-tat"],
        "protocols": ["exact"],
        "largest_gap": None,
        "suites": {"generalisation": named},
    }


def generalisation_runs(tmp_path):
    """Three seeds of one pair of labels and of a mixture."""
    found = []
    for name, flags in (
        ("single", ()),
        ("mixed", ("--mixture.labels", "words(3)", "--mixture.both_ways", "true")),
    ):
        for seed, illegal in enumerate((0.1, 0.2, 0.6)):
            given = ["--reward.name", "utilitarian", "--seed", str(seed), *flags]
            run = make_run(tmp_path, f"{name}-seed{seed}", *given)
            share = illegal if name == "single" else illegal / 10
            found.append(run._replace(evaluation=evaluation_of(run.config, share, 1.0 + seed)))
    return found


def test_mixtures_of_drawn_words_are_one_series(tmp_path):
    series, skipped = group_runs(generalisation_runs(tmp_path))
    assert [len(one.runs) for one in series] == [3, 3]
    assert [one.name for one in series] == [
        "utilitarian, labels action1/action2",
        "utilitarian, labels words(3), both ways",
    ]
    assert not skipped
    others = make_run(tmp_path, "listed", "--mixture.labels", "[[A, B], [X, Y], [P, Q]]")
    named = make_run(tmp_path, "named", "--mixture.labels", "words(3)")
    apart, _ = group_runs([others, named])
    assert [one.name for one in apart] == [
        "deontological, labels A/B X/Y P/Q",
        "deontological, labels words(3)",
    ]


def test_what_holds_outside_is_beside_each_other(tmp_path):
    series, _ = group_runs(generalisation_runs(tmp_path))
    (section,) = generalisation_sections(series)
    drawn, tips = section.draw()
    texts = list(tips.values())
    interval = T_OF_TWO * np.std([0.05, 0.1, 0.3], ddof=1) / 3**0.5
    told = f"{np.mean([0.05, 0.1, 0.3]):.3f} ± {interval:.3f} (3 runs); at worst 0.600"
    assert f"utilitarian, labels action1/action2, tuned, new labels: {told}" in texts
    mixed = "utilitarian, labels words(3), both ways"
    assert f"{mixed}, base, seen: 0.500 ± 0.000 (3 runs); at worst 0.500" in texts
    assert len(texts) == 2 * 2 * 2 * 4  # agents, policies, novelties, measures
    below = [axes.get_xlabel().replace("\n", " ") for axes in drawn.axes[-4:]]
    assert [text.split(",")[0] for text in below] == [
        "illegal answers",
        "P(C | history)",
        "deontological regret",
        "utilitarian regret",
    ]
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == [
        "seen (1)",
        "new labels (2)",
    ]
    header, rows = generalisation_rows(series)
    assert header == ["agent", "policy", "measure", "seen", "new labels"]
    assert len(rows) == 2 * 2 * 4
    row = ["utilitarian, labels action1/action2", "tuned", "illegal, %"]
    assert [*row, "0.0 ± 0.0 (0.0)", f"15.0 ± {100 * interval:.1f} (60.0)"] in rows
    regret = T_OF_TWO / 3**0.5  # of 1, 2 and 3
    assert [mixed, "tuned", "deontological regret", *[f"2.00 ± {regret:.2f}"] * 2] in rows


def marks_and_legend(series):
    """The colour of every tip's mark by the tip, and of every name of the legend."""
    (section,) = generalisation_sections(series)
    figure, tips = section.draw()
    marks = {tips[artist.get_gid()]: artist for artist in figure.findobj(lambda a: a.get_gid())}
    (legend,) = figure.legends
    names = (text.get_text().replace("\n", " ") for text in legend.get_texts())
    return (
        {tip: mark.get_color() for tip, mark in marks.items()},
        dict(zip(names, (line.get_color() for line in legend.get_lines()), strict=True)),
    )


def test_an_agent_of_a_mixture_looks_the_same_beside_whatever_else(tmp_path):
    mixed, listed = ("--mixture.labels", "words(3)"), ("--mixture.labels", "[[A, B], [X, Y]]")
    found = []
    for reward, kinds in {"utilitarian": (listed, mixed), "game": (mixed, ())}.items():
        for flags in kinds:
            name = f"{reward}{len(found)}"
            run = make_run(tmp_path, name, "--reward.name", reward, *flags)
            found.append(run._replace(evaluation=evaluation_of(run.config, 0.1, 1.0)))
    marks, legend = marks_and_legend(group_runs(found)[0])
    for name in ("labels words(3)", "labels A/B X/Y", "labels action1/action2"):
        drawn = {colour for tip, colour in marks.items() if name in tip}
        assert drawn == {legend[name]}
    assert len(set(legend.values())) == len(legend) == 4  # and the base's


def test_rewards_of_one_agent_each_have_one_name(tmp_path):
    found = [make_run(tmp_path, "not tested", "--reward.name", "game")]  # so that labels tell apart
    for reward in ("utilitarian", "game"):
        run = make_run(tmp_path, reward, "--reward.name", reward, "--mixture.labels", "words(3)")
        found.append(run._replace(evaluation=evaluation_of(run.config, 0.1, 1.0)))
    _, legend = marks_and_legend(group_runs(found)[0])
    assert list(legend) == ["trained", "hollow: the base beside it"]


def test_runs_that_were_not_tested_outside_have_no_place_there(tmp_path):
    series, _ = group_runs([make_run(tmp_path, "a", evaluation=evaluated("labels", {"ipd": 1.0}))])
    assert generalisation_sections(series) == []
    assert generalisation_rows(series) == ([], [])


@pytest.mark.slow
def test_the_page_and_its_table_tell_of_mixtures(tmp_path):
    for run in generalisation_runs(tmp_path):
        write_run(run._replace(folder=tmp_path / "runs" / run.folder.name))
    write_report([tmp_path / "runs"], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'id="generalisation"' in page
    assert "What holds outside of training, in numbers" in page
    assert (tmp_path / "report" / "figures" / "generalisation.png").is_file()
    rows = pd.read_csv(tmp_path / "report" / "results.csv")
    found = rows.groupby("experiment")["trained_labels"].unique().map(list).to_dict()
    assert found == {"mixed": ["3 pairs, both ways"], "single": ["action1/action2"]}
    assert set(rows["novelty"]) == {"seen", "new labels"}


def test_an_evaluation_of_what_is_new_has_its_own_picture(tmp_path):
    found = generalisation_runs(tmp_path)[0].evaluation | {"update": 4, "protocols": ["exact"]}
    drawn = keep_and_draw(found, tmp_path / "evaluation.json")
    assert drawn == [tmp_path / "generalisation.png"]
    both = {"trained": found["suites"]["generalisation"], **found["suites"]}
    beside = keep_and_draw(found | {"suites": both}, tmp_path / "evaluation-4.json")
    assert [path.name for path in beside] == [
        "evaluation-4-regret.png",
        "evaluation-4-generalisation.png",
    ]
    assert all(path.is_file() for path in drawn + beside)
