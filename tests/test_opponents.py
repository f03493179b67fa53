"""Moore machines against plain functions of the history."""

import jax
import numpy as np
import pytest

from jaxmoral import opponents
from jaxmoral.errors import UserError


def probability(opponent, remembered, history):
    """P(C) of a machine after the agent's and its own moves in `history`."""
    state = opponent.start_state[remembered]
    for own_move, agents_move in history:
        state = opponent.next_state[state, own_move, agents_move]
    return float(opponent.p_cooperate[state])


@pytest.mark.parametrize("seed", range(20))
def test_strategies_follow_their_definitions(seed):
    generator = np.random.default_rng(seed)
    remembered = tuple(generator.integers(0, 2, 2))
    history = [tuple(generator.integers(0, 2, 2)) for _ in range(generator.integers(0, 6))]
    agents_last = history[-1][1] if history else remembered[0]
    expected = {
        "tit-for-tat": 1.0 - agents_last,
        "random": 0.5,
        "always-cooperate": 1.0,
        "always-defect": 0.0,
    }
    for name, p_cooperate in expected.items():
        opponent = opponents.get_opponent(name)
        assert probability(opponent, remembered, history) == p_cooperate


def test_remembered_round_suits_the_strategy():
    remembered = {name: float(o.p_remembered_cooperate) for name, o in opponents.OPPONENTS.items()}
    assert remembered == {
        "tit-for-tat": 0.5,
        "random": 0.5,
        "always-cooperate": 1.0,
        "always-defect": 0.0,
    }


def test_stacked_machines_equal_single_ones():
    names = list(opponents.OPPONENTS)
    stacked = opponents.stack([opponents.get_opponent(name) for name in names])
    assert stacked.p_cooperate.shape == (4, 2)
    move = lambda opponent: opponent.p_cooperate[opponent.next_state[0, 0, 1]]
    together = jax.vmap(move)(jax.tree.map(jax.numpy.asarray, stacked))
    alone = [move(opponents.get_opponent(name)) for name in names]
    np.testing.assert_array_equal(together, alone)


def test_an_unknown_opponent_lists_the_opponents():
    with pytest.raises(UserError, match="did you mean 'random'"):
        opponents.get_opponent("randm")
