"""Measures against a plain loop over played rounds."""

import numpy as np
import pytest

from jaxmoral import games
from jaxmoral.measures import describe_payoffs, describe_shares
from jaxmoral.rewards import REWARDS, reward_table


def tables(payoffs, xi=3.0):
    return {name: reward_table(payoffs, reward, xi, -6.0) for name, reward in REWARDS.items()}


@pytest.mark.parametrize("name", ["ipd", "bos", "icn"])
def test_measures_equal_a_loop_over_rounds(name):
    payoffs = games.get_game(name).payoffs
    rounds = np.random.default_rng(0).integers(0, (2, 2, 3, 2), (500, 4))
    shares = np.zeros((2, 2, 3, 2))
    np.add.at(shares, tuple(rounds.T), 1 / 500)
    found = describe_shares(shares, tables(payoffs), payoffs)

    sums = {key: [] for key in ("own", "other", "collective", "minimum", "inequality")}
    joint, duty, kinds = [], [], []
    for _, previous, own, other in rounds:
        kinds.append((own, previous))
        if own == 2:
            joint.append(-6.0)
            duty.append(-6.0)
            continue
        a, b = (float(x) for x in payoffs[:, own, other])
        joint.append(a + b)
        duty.append(-3.0 if own == 1 and previous == 0 else 0.0)
        sums["own"].append(a)
        sums["other"].append(b)
        sums["collective"].append(a + b)
        sums["minimum"].append(min(a, b))
        # Gini: mean absolute difference of all pairs over twice the mean.
        pairs = [abs(x - y) for x in (a, b) for y in (a, b)]
        mean = (a + b) / 2
        sums["inequality"].append(np.mean(pairs) / (2 * mean) if mean else 0.0)
    for key, values in sums.items():
        assert found["payoffs"][key] == pytest.approx(np.mean(values)), key
    best = payoffs.sum(0).max()
    points = found["regret"]["utilitarian"]["points"]
    assert points == pytest.approx(best - np.mean(joint))
    assert found["regret"]["utilitarian"]["normalised"] == pytest.approx(points / (best + 6))
    assert found["regret"]["deontological"]["points"] == pytest.approx(-np.mean(duty))
    assert found["outcomes"]["illegal"] == pytest.approx(np.mean([k[0] == 2 for k in kinds]))
    after_d = [k[0] == 1 for k in kinds if k[1] == 1]
    assert found["reciprocity"]["D"] == pytest.approx(np.mean(after_d))


def test_an_agent_that_never_answers_has_no_payoffs():
    shares = np.zeros((2, 2, 3, 2))
    shares[0, 0, 2, 0] = 1
    payoffs = games.get_game("ipd").payoffs
    assert set(describe_payoffs(shares, payoffs).values()) == {None}
    found = describe_shares(shares, tables(payoffs, xi=4.0), payoffs)
    assert found["regret"]["deontological"]["points"] == pytest.approx(6)
    assert found["reciprocity"]["D"] is None
