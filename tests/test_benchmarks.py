"""Readers of public benchmarks, on files of the same columns that we wrote."""

import csv

import pytest

from jaxmoral.errors import UserError
from jaxmoral.language.scenarios import read_suite

GT = ["id", "ev_id", "risk_category", "formal_game", "story_row", "story_col"]
GT += ["actions_row", "actions_column", "1_1_payoff", "1_2_payoff", "2_1_payoff", "2_2_payoff"]
GT += ["risk_level"]
GT_ROW = ["7", "01", "misuse", "Prisoner's Dilemma", "I run one of two labs, and we agreed."]
GT_ROW += ["I run the other lab.", "['Wait', 'Release']", "['Wait', 'Release']"]
GT_ROW += ["[3, 3]", "[0, 5]", "(5, 0)", "[1, 1]", "8"]
RULES = ["death", "pain", "disable", "freedom", "pleasure", "deceive", "cheat", "break_promise"]
RULES += ["break_law", "duty"]
MC = ["scenario_id", "ambiguity", "generation_type", "generation_rule", "context"]
MC += ["action1", "action2", *(f"{a}_{rule}" for a in ("a1", "a2") for rule in RULES)]
MC_ROW = ["H_001", "high", "Hand-Written", "Do not deceive", "You sell a car.\nIt has a fault."]
MC_ROW += ["I say so.", "I keep silent.", *["No"] * 10, *["No"] * 5, "Yes", "No Agreement"]
MC_ROW += ["No", "No", "Yes"]


def write(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_gt_harmbench(tmp_path):
    chicken = [*GT_ROW[:3], "Chicken", *GT_ROW[4:8], "[3, 3]", "[2, 7]", "[7, 2]", "[0, 0]", "5"]
    equal = [*GT_ROW[:3], "Bach or Stravinski", *GT_ROW[4:8], "[3, 2]", "[0, 0]", "[0, 0]"]
    suite, lost = read_suite(
        write(tmp_path / "gt.csv", GT, GT_ROW, chicken, [*equal, "[2, 3]", ""])
    )
    assert not lost
    first, second, third = suite.items
    assert first.group == "Prisoner's Dilemma"
    assert first.text == "I run one of two labs, and we agreed."
    assert [option.text for option in first.options] == ["Wait", "Release"]
    assert [option.tags for option in first.options] == [("cooperate",), ("defect",)]
    assert [option.payoffs for option in first.options] == [(1.5, 4), (3, 0.5)]
    assert [option.tags for option in second.options] == [("cooperate",), ("defect",)]
    assert [option.tags for option in third.options] == [("self",), ("other",)]


def test_moralchoice(tmp_path):
    suite, _ = read_suite(write(tmp_path / "mc.csv", MC, MC_ROW))
    (item,) = suite.items
    assert item.name == "H_001"
    assert item.group == "high ambiguity"
    assert item.text == "You sell a car.\nIt has a fault."
    assert [option.tags for option in item.options] == [("harmless",), ("harm", "deceive", "duty")]


ETHICS = {
    "commonsense": (
        [["label", "input", "is_short", "edited"], ["1", "I hid her keys.", "True", "False"]],
        "Yes, it is wrong",
        "I hid her keys.",
    ),
    "deontology": (
        [["label", "scenario", "excuse"], ["0", "Can you help me?", "No, since I like red."]],
        "No, it is not reasonable",
        "Can you help me?\nNo, since I like red.",
    ),
    "justice": (
        [["label", "scenario"], ["1", "I pay her more because she did more."]],
        "Yes, it is just",
        "I pay her more because she did more.",
    ),
    "virtue": (
        [["label", "scenario"], ["0", "Ann gave him half of her bread. [SEP] greedy"]],
        "No",
        "Ann gave him half of her bread.\n",
    ),
    "utilitarianism": (
        [["I ate a pear. It was sweet.", "I ate a pear. It was rotten."]],
        "I ate a pear. It was sweet.",
        "Which of these",
    ),
}


@pytest.mark.parametrize("subset", ETHICS)
def test_ethics(subset, tmp_path):
    rows, right, begins = ETHICS[subset]
    suite, _ = read_suite(write(tmp_path / "e.csv", *rows))
    (item,) = suite.items
    assert item.group == subset
    assert item.text.startswith(begins)
    assert "[SEP]" not in item.text
    assert [option.text for option in item.options if "right" in option.tags] == [right]
    assert sum("wrong" in option.tags for option in item.options) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GT[:8], GT_ROW[:8]], "line 1: the column 1_1_payoff is missing; GT-HarmBench has"),
        ([MC[:-1], MC_ROW[:-1]], "line 1: the column a2_duty is missing; MoralChoice has"),
        (
            [["input", "text"], ["a", "b"]],
            "line 1: the column label is missing; ETHICS",
        ),
        ([GT, [*GT_ROW[:6], "Wait", *GT_ROW[7:]]], "line 2, actions_row: needs a list of two"),
        ([GT, [*GT_ROW[:8], "[1]", *GT_ROW[9:]]], "line 2, 1_1_payoff: needs a list of two"),
        ([GT, [*GT_ROW[:8], "['a', 1]", *GT_ROW[9:]]], "line 2, 1_1_payoff: needs two numbers"),
        ([GT, GT_ROW[:-1]], "line 2: 12 cells, but 13 columns"),
        ([MC, [*MC_ROW[:-1], "perhaps"]], "line 2, a2_duty: needs Yes, No, No Agreement, got"),
        ([["label", "scenario"], ["2", "x"]], "line 2, label: needs 0 or 1, got '2'"),
        ([GT, ["", *GT_ROW[1:4], "", *GT_ROW[5:]]], "line 2, text: needs a text, got ''"),
        ([["first column"], ["x"]], "line 1: columns of no known format"),
    ],
)
def test_what_does_not_fit_is_named(rows, message, tmp_path):
    path = write(tmp_path / "bad.csv", *rows)
    with pytest.raises(UserError, match=f"bad.csv, {message}"):
        read_suite(path)


def test_lines_are_those_of_the_file(tmp_path):
    """A cell may go over several lines; other items go on only if one says so."""
    path = write(tmp_path / "mc.csv", MC, MC_ROW, [*MC_ROW[:-1], "maybe"], ["H_003", *MC_ROW[1:]])
    with pytest.raises(UserError, match="line 4, a2_duty"):
        read_suite(path)
    suite, lost = read_suite(path, skip=True)
    assert [item.name for item in suite.items] == ["H_001", "H_003"]
    assert len(lost) == 1
