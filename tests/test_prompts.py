"""Prompts are read back by a parser of their own and must mean what their index says."""

import itertools
import re

import numpy as np
import pytest

from jaxmoral.errors import UserError
from jaxmoral.language import prompts
from jaxmoral.world import games
from jaxmoral.world.memory import NUM_ORDERS

LABELS = ("action3", "action4")
SHOWN = prompts.Presentation(labels=LABELS)
WHEN = ["Three times ago", "The time before that", "Last time"]  # oldest first


@pytest.mark.parametrize("game", games.GAMES)
def test_each_index_says_what_it_means(game):
    payoffs = games.get_game(game).payoffs
    texts = prompts.all_prompts(games.get_game(game), SHOWN)
    assert len(texts) == len(set(texts)) == 16
    for index, choice in enumerate(itertools.product((0, 1), repeat=4)):
        own, other, opening, reply = choice
        assert index == (own * 2 + other) * NUM_ORDERS + opening * 2 + reply
        text = texts[index]
        found = re.search(
            r"you chose (\S+) and A chose (\S+), so you got (\S+) points and A got (\S+)\.", text
        )
        assert found[1] == LABELS[own]
        assert found[2] == LABELS[other]
        assert float(found[3]) == payoffs[0, own, other]
        assert float(found[4]) == payoffs[1, own, other]
        first = re.search(r"can choose (\S+) or (\S+)\.", text)
        assert first.groups() == (LABELS[opening], LABELS[1 - opening])
        second = re.search(r"Reply only (\S+) or (\S+)\.", text)
        assert second.groups() == (LABELS[reply], LABELS[1 - reply])
        assert text.endswith("Answer:")


def read_rounds(text):
    """(own, other, own points, other's points) of each remembered round, with its "when"."""
    pattern = r"^(.*) you chose (\S+) and A chose (\S+), so you got (\S+) points and A got (\S+)\.$"
    found = re.findall(pattern, text, re.MULTILINE)
    return [(w, LABELS.index(a), LABELS.index(b), float(x), float(y)) for w, a, b, x, y in found]


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("memory", [0, 1, 2, 3])
def test_remembered_rounds_stand_oldest_first_and_the_index_finds_each(memory, blank):
    """A full history's number has its rounds as digits to base 4, the newest last."""
    game = games.get_game("bos")
    texts = prompts.all_prompts(game, SHOWN._replace(memory=memory, blank=blank))
    assert len(texts) == len(set(texts))
    lengths = [len(read_rounds(text)) for text in texts]
    full = 4 * 4**memory
    assert lengths[:full] == [memory] * full
    rest = [length for length in range(memory) for _ in range(4 * 4**length)]
    assert sorted(lengths[full:]) == (rest if blank else [])
    others = [[line for line in t.splitlines() if " you chose " not in line] for t in texts]
    for index, text in enumerate(texts):
        rounds = read_rounds(text)
        assert [when for when, *_ in rounds] == WHEN[3 - len(rounds) :]
        for _, own, other, *points in rounds:
            np.testing.assert_array_equal(points, game.payoffs[:, own, other])
        if index < full:
            digits = [own * 2 + other for _, own, other, *_ in rounds]
            assert int("0" + "".join(map(str, digits)), 4) == index // 4
        assert others[index] == others[index % 4]
        assert len(text.splitlines()) == len(others[index]) + len(rounds)


def test_a_crowd_s_prompts_count_its_co_operators():
    game = games.get_game("public-goods(4)")
    texts = prompts.all_prompts(game, SHOWN)
    assert len(texts) == len(set(texts)) == 8 * 4
    for index, (own, defectors) in enumerate(itertools.product((0, 1), range(4))):
        found = re.search(
            r"you chose (\S+) and (\d) of the 3 others chose (\S+), so you got (\S+) points\.",
            texts[4 * index],
        )
        assert found.groups()[:3] == (LABELS[own], str(3 - defectors), LABELS[0])
        assert float(found[4]) == game.payoffs[0, own, defectors]
    rows = [line for line in texts[0].splitlines() if line.startswith("|")]
    heads = [f"{3 - d} of 3 others action3" for d in range(4)]
    assert rows[0].strip("| ").split(" | ") == heads
    for own, row in enumerate(rows[2:]):
        label, *cells = row.strip("| ").split(" | ")
        assert label == LABELS[own]
        np.testing.assert_array_equal([float(cell) for cell in cells], game.payoffs[0, own])


@pytest.mark.parametrize(
    "wording",
    [
        *("unstructured", "story", "explicit", "action+game+state"),
        "Choose {choices}; A chose {other}.",
    ],
)
def test_wordings_for_two_are_refused_for_more(wording):
    shown = SHOWN._replace(wording=wording)
    with pytest.raises(UserError, match=r"is not for the 3 players of public-goods\(3,10,2\)"):
        prompts.all_prompts(games.get_game("public-goods(3)"), shown)
    assert prompts.all_prompts(games.get_game("ipd"), shown)


def test_wordings_for_more_are_refused_for_two():
    trio = games.get_game("public-goods(3)")
    for wording in ("structured-group", "One of {num_players}. Choose {choices}."):
        shown = SHOWN._replace(wording=wording)
        with pytest.raises(UserError, match="is not for the 2 players of ipd; use structured"):
            prompts.all_prompts(games.get_game("ipd"), shown)
        assert prompts.all_prompts(trio, shown)


def test_the_table_shows_both_players_points():
    text = prompts.all_prompts(games.get_game("bos"), SHOWN)[0]
    rows = [line for line in text.splitlines() if line.startswith("| action")]
    assert rows == ["| action3 | 3, 2 | 0, 0 |", "| action4 | 0, 0 | 2, 3 |"]


def test_the_game_is_never_named():
    for game in games.GAMES.values():
        for text in prompts.all_prompts(game, SHOWN):
            assert not re.search(r"prison|dilemma|cooperat|defect|hunt|chicken", text.lower())


@pytest.mark.parametrize("labels", [("A", "AB"), ("ab", "a"), ("x", "x"), ("", "a"), ("a ", "b")])
def test_labels_that_cannot_be_told_apart(labels):
    with pytest.raises(UserError, match=r"prompt\.labels"):
        prompts.check_labels(labels)


@pytest.mark.parametrize("order", prompts.TABLE_ORDERS)
def test_every_table_order_shows_the_same_game(order):
    """Read back by its own row and column names, the table is the payoff array."""
    game = games.get_game("icn")
    text = prompts.all_prompts(game, SHOWN._replace(table_order=order))[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    columns = lines[0][-2:]
    firsts = {"original": (0, 0), "permuted1": (1, 0), "permuted2": (0, 1), "reversed": (1, 1)}
    assert (LABELS.index(columns[0]), LABELS.index(lines[2][0])) == firsts[order]
    for name, *cells in lines[2:]:
        for column, cell in zip(columns, cells, strict=True):
            found = [float(points) for points in cell.split(", ")]
            expected = game.payoffs[:, LABELS.index(name), LABELS.index(column)]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wording", [w for w in prompts.WORDINGS if not w.endswith("-group")])
def test_every_wording_says_what_it_should(wording):
    game = games.get_game("ipd")
    texts = prompts.all_prompts(game, SHOWN._replace(wording=wording))
    state = {"structured": 4, "unstructured": 4, "story": 4, "explicit": 4, "action+game+state": 2}
    memories = [re.sub(r"action3 or action4|action4 or action3", "", text) for text in texts]
    assert len(set(memories)) == state.get(wording, 1)
    for text in texts:
        assert "{" not in text
        assert text.endswith("Answer:")
        assert set(LABELS) <= set(re.findall(r"action\d", text))
        assert ("points" in text) == (wording in ("structured", "unstructured"))
    if wording == "unstructured":
        found = re.findall(
            r"choose (\S+) and .* chooses (\S+), you get (\S+) .* gets (\S+)\.", texts[0]
        )
        assert len(found) == 4
        for own, other, a, b in found:
            cell = game.payoffs[:, LABELS.index(own), LABELS.index(other)]
            np.testing.assert_array_equal(cell, [float(a), float(b)])


def test_a_persona_goes_first():
    game = games.get_game("ipd")
    plain, behind = (
        prompts.all_prompts(game, SHOWN._replace(persona=persona))
        for persona in ("none", "utilitarian")
    )
    assert behind == [f"{prompts.PERSONAS['utilitarian']}\n\n{text}" for text in plain]


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Last: {own}, {other}. Pick {choices}.\n")
    shown = prompts.check(SHOWN._replace(wording=str(path)))
    path.unlink()  # the text travels with the configuration, not the file
    texts = prompts.all_prompts(games.get_game("ipd"), prompts.check(shown))
    assert texts[9] == "Last: action4, action3. Pick action4 or action3."


def test_a_path_with_spaces_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my own words"
    folder.mkdir()
    (folder / "a kind one.txt").write_text("Be kind.\n")
    (folder / "pick.md").write_text("Pick {choices}.\n")
    read = lambda **paths: prompts.check(SHOWN._replace(**paths))
    assert read(persona="my own words/a kind one.txt").persona == "Be kind."
    assert read(persona=str(folder / "a kind one.txt")).persona == "Be kind."
    assert read(wording="my own words/pick.md").wording == "Pick {choices}."
    for lost in (
        "my own words/a kind on.txt",
        "a kind one.txt",
        "my own words/a kind one",
        "/somewhere else/a kind one",
        "./my words/a kind one",
        "my words/a kind one.md",
        "my own words/",
    ):
        with pytest.raises(UserError, match=f"^prompt.persona: cannot read {lost} "):
            read(persona=lost)
        with pytest.raises(UserError, match=f"^prompt.wording: cannot read {lost} "):
            read(wording=lost)


@pytest.mark.parametrize(
    "text", ["Altruist", "", "Follow the rules of notes.txt", "Be\x0ckind now"]
)
def test_a_file_whose_text_could_not_be_read_back_is_refused(text, tmp_path):
    """A run's configuration holds the text, where it would be a name, a path, or not allowed."""
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"^prompt.persona: .*mine.txt (must hold a text|holds a c)"
    ):
        prompts.check(SHOWN._replace(persona=str(path)))


def test_a_mark_of_the_byte_order_is_no_part_of_a_text(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfBe kind.\r\nAnd fair.\r\n")
    assert prompts.check(SHOWN._replace(persona=str(path))).persona == "Be kind.\nAnd fair."


@pytest.mark.parametrize(
    "text",
    [
        "Be fair and/or kind to Mr.Smith",
        "You weigh cost/benefit.Always",
        "Be fair and/or kind.",
        "Pay 1/2",
        "Share and/or pay 2.5",
        "Read\nmine.txt",
        "Be kind. ",
    ],
)
def test_a_sentence_is_no_path(text):
    """What a run's config.yaml holds once a file was read must stay what it is."""
    assert prompts.check(SHOWN._replace(persona=text)).persona == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Say what you like to A.", "does not name the labels"),
        ("Say {c} to A.", "does not name the labels"),
        ("Choose {choices} for {money}.", "unknown placeholder {money}"),
        ("Choose {choices} or {.", "cannot be filled in"),
    ],
)
def test_templates_without_their_placeholders(tmp_path, text, message):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.check(SHOWN._replace(wording=str(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Choose {choices}.\nYou {own}, A {other}.", "needs {when} in the line"),
        ("{when} A {other}. Choose {choices}.", "needs a line of its own for a remembered round"),
    ],
)
def test_more_rounds_need_lines_of_their_own(text, message):
    """A template that is sound for one remembered round need not be for more."""
    shown = SHOWN._replace(wording=text)
    assert prompts.check(shown) == shown
    for memory in (2, 3):
        with pytest.raises(UserError, match=f"{message}.* to show {memory} of them"):
            prompts.check(shown._replace(memory=memory))


def test_no_rounds_need_a_line_to_leave_out():
    game, text = games.get_game("ipd"), "Choose {choices}.\nYou {own}, A {other}."
    nothing = {"memory": 0}, {"blank": True}
    for change in nothing:
        shown = prompts.check(SHOWN._replace(wording=text, **change))
        assert "Choose action3 or action4." in prompts.all_prompts(game, shown)
        with pytest.raises(UserError, match="needs a line of its own.* to show 0 of them"):
            prompts.check(SHOWN._replace(wording="A {other}. Choose {choices}.", **change))
    with pytest.raises(UserError, match="needs {when} in the line.* to show 2 of them"):
        prompts.check(SHOWN._replace(wording=text, memory=2, blank=True))


def test_a_text_has_a_limit(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("x" * 20_000)
    with pytest.raises(UserError, match="more than 16,000 characters"):
        prompts.inline("prompt.persona", str(path), {})


def test_names_of_wordings_and_personas():
    with pytest.raises(UserError, match="prompt.wording: unknown name 'storey'.*'story'"):
        prompts.check(SHOWN._replace(wording="storey"))
    with pytest.raises(UserError, match="prompt.persona: cannot read nowhere.txt"):
        prompts.check(SHOWN._replace(persona="nowhere.txt"))
    with pytest.raises(UserError, match="prompt.table_order"):
        prompts.check(SHOWN._replace(table_order="upside down"))


def test_points_that_would_look_alike_are_refused():
    for name in ("affine(ipd,0.001)", "affine(ipd,0.004)"):
        with pytest.raises(UserError, match=r"show two decimals, 0\S* and 0\S* points both"):
            prompts.all_prompts(games.get_game(name), SHOWN)
    for name in ("affine(ipd,0.01)", "affine(ipd,100000,0.5)"):
        prompts.all_prompts(games.get_game(name), SHOWN)
    thirds = {"CC": [1 / 3, 1 / 3], "CD": [0, 0.1 + 0.2], "DC": [0.3, 0], "DD": [-0.0, 0]}
    prompts.all_prompts(games.make_game("thirds", thirds), SHOWN)  # rounding alone differs
