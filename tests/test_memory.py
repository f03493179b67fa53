"""The machine of histories against a plain Python list of the rounds played."""

import itertools

import numpy as np
import pytest

from jaxmoral.world import memory

C, D, ILLEGAL = 0, 1, 2
SIZES = [(num_rounds, num_moves) for num_rounds in range(4) for num_moves in (2, 4)]


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize(("num_rounds", "num_moves"), SIZES)
def test_a_walk_remembers_what_a_list_does(num_rounds, num_moves, blank):
    machine = memory.make_memory(num_rounds, num_moves, blank)
    random = np.random.default_rng(0)
    for _ in range(100):
        state, rounds = machine.start, []
        for step in range(12):
            # An answer can be illegal only once the remembered rounds are drawn.
            outcome = random.integers(2 if step < machine.opening else 3)
            other = random.integers(num_moves)
            last = rounds[-1][0] if rounds else C
            own = last if outcome == ILLEGAL else outcome
            assert machine.effective[state].tolist() == [C, D, last]
            rounds.append((own, other))
            state = machine.next_state[state, machine.effective[state, outcome], other]
            assert machine.previous[state] == own * num_moves + other
            if len(rounds) >= machine.opening:
                newest = rounds[max(len(rounds) - num_rounds, 0) :]
                assert machine.histories[machine.shown[state]] == tuple(newest)


@pytest.mark.parametrize(("num_rounds", "num_moves"), SIZES)
def test_a_prompt_can_show_every_history_once(num_rounds, num_moves):
    cells = 2 * num_moves
    full = memory.make_memory(num_rounds, num_moves).histories
    blank = memory.make_memory(num_rounds, num_moves, blank=True).histories
    assert len(full) == len(set(full)) == cells**num_rounds
    assert len(blank) == len(set(blank)) == (cells ** (num_rounds + 1) - 1) // (cells - 1)
    assert {*full} == {history for history in blank if len(history) == num_rounds}


@pytest.mark.parametrize(("num_rounds", "num_moves"), SIZES)
def test_an_opening_leads_from_nothing_into_each_full_history(num_rounds, num_moves):
    machine = memory.make_memory(num_rounds, num_moves)
    assert machine.opening == max(num_rounds, 1)
    cells = [*itertools.product((C, D), range(num_moves))]
    for number, rounds in enumerate(itertools.product(cells, repeat=machine.opening)):
        state = machine.start
        assert machine.previous[state] == 2 * num_moves  # none
        for own, other in rounds:
            state = machine.next_state[state, own, other]
        assert state == number  # whose digits are the cells, the newest last
    full = len(cells) ** machine.opening
    assert machine.next_state[:full].max() < full  # from where there is no way back


@pytest.mark.parametrize(("num_rounds", "num_moves"), SIZES)
def test_a_blank_start_remembers_nothing_and_has_a_prompt_for_that(num_rounds, num_moves):
    machine = memory.make_memory(num_rounds, num_moves, blank=True)
    assert machine.opening == 0
    assert machine.histories[machine.shown[machine.start]] == ()
    assert machine.previous[machine.start] == 2 * num_moves
    assert machine.effective[machine.start, ILLEGAL] == C


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize(("num_rounds", "num_moves"), SIZES)
def test_the_rule_of_a_round_is_what_the_tables_say(num_rounds, num_moves, blank):
    """In every state in which a round can be played, and from the start into it."""
    machine = memory.make_memory(num_rounds, num_moves, blank)
    state, outcome, other = np.indices((machine.num_playable, 3, num_moves)).astype(np.int32)
    own = machine.counted(state, outcome)
    np.testing.assert_array_equal(own, machine.effective[state, outcome])
    following = machine.after(state, own, other)
    np.testing.assert_array_equal(following, machine.next_state[state, np.asarray(own), other])
    assert np.max(following) < machine.num_playable
    np.testing.assert_array_equal(machine.newest(state), machine.previous[state])
    for order in range(memory.NUM_ORDERS):
        shown = machine.shown[state] * memory.NUM_ORDERS + order
        prompt = machine.prompt(state, np.full_like(state, order))
        np.testing.assert_array_equal(prompt, shown)
        assert np.max(prompt) < machine.num_prompts
    cells = [*itertools.product((C, D), range(num_moves))]
    for number, rounds in enumerate(itertools.product(cells, repeat=machine.opening)):
        state = np.int32(machine.start)
        for own, other in rounds:
            state = machine.after(state, np.int32(own), np.int32(other))
        assert state == (machine.start if blank else number)


def test_names_of_rounds_and_histories():
    names = {
        num_moves: [memory.history_name(((i, j),), num_moves) for i, j in np.ndindex(2, num_moves)]
        for num_moves in (2, 3)
    }
    assert names == {2: ["CC", "CD", "DC", "DD"], 3: ["C0", "C1", "C2", "D0", "D1", "D2"]}
    assert memory.history_name(((C, C), (C, D), (D, C)), 2) == "CC CD DC"
    assert memory.history_name(((D, 3),), 4) == "D3"
    assert memory.history_name((), 2) == "-"
    for num_moves in (2, 3):  # named in the order of the numbers
        machine = memory.make_memory(1, num_moves)
        named = [*names[num_moves], "-"]
        assert machine.num_previous == len(named)
        for history, kind in zip(machine.histories, machine.previous, strict=False):
            assert named[kind] == memory.history_name(history, num_moves)
