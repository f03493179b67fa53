"""Prompts are read back by a parser of their own and must mean what their index says."""

import itertools
import re

import pytest

from jaxmoral import games, prompts
from jaxmoral.errors import UserError

LABELS = ("action3", "action4")


@pytest.mark.parametrize("game", games.GAMES)
def test_each_index_says_what_it_means(game):
    payoffs = games.get_game(game).payoffs
    texts = prompts.all_prompts(games.get_game(game), LABELS)
    assert len(set(texts)) == prompts.NUM_PROMPTS
    for index, choice in enumerate(itertools.product((0, 1), repeat=4)):
        own, other, opening, reply = choice
        assert index == prompts.memory_index(own, other) * prompts.NUM_ORDERS + opening * 2 + reply
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


def test_the_table_shows_both_players_points():
    text = prompts.all_prompts(games.get_game("bos"), LABELS)[0]
    rows = [line for line in text.splitlines() if line.startswith("| action")]
    assert rows == ["| action3 | 3, 2 | 0, 0 |", "| action4 | 0, 0 | 2, 3 |"]


def test_the_game_is_never_named():
    for game in games.GAMES.values():
        for text in prompts.all_prompts(game, LABELS):
            assert not re.search(r"prison|dilemma|cooperat|defect|hunt|chicken", text.lower())


@pytest.mark.parametrize("labels", [("A", "AB"), ("ab", "a"), ("x", "x"), ("", "a"), ("a ", "b")])
def test_labels_that_cannot_be_told_apart(labels):
    with pytest.raises(UserError, match=r"prompt\.labels"):
        prompts.check_labels(labels)
