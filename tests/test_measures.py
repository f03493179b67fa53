"""Measures against a plain loop over played rounds."""

import numpy as np
import pytest

from jaxmoral.measuring.measures import describe_payoffs, describe_shares
from jaxmoral.world import games
from jaxmoral.world.rewards import REWARDS, reward_table


def tables(game, xi=3.0):
    return {name: reward_table(game, reward, xi, -6.0) for name, reward in REWARDS.items()}


# Some have negative points, one of them points that add up to 0.
NAMES = ["ipd", "bos", "icn", "public-goods(4)", "donation(3,1)", "affine(ipd,1,-2)"]
NAMES += ["matching-pennies", "threshold-goods(4,2,2,1)"]


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_measures_equal_a_loop_over_rounds(name, blank):
    """Of several others each counts in equal parts; after no round there is no duty."""
    game = games.get_game(name)
    payoffs, n = game.payoffs, game.num_players
    rounds = np.random.default_rng(0).integers(0, (2 * n + blank, 3, n), (500, 3))
    shares = np.zeros((2 * n + 1, 3, n))
    np.add.at(shares, tuple(rounds.T), 1 / 500)
    found = describe_shares(shares, tables(game), game)

    sums = {key: [] for key in ("own", "other", "collective", "minimum", "inequality")}
    joint, duty, kinds = [], [], []
    for previous, own, other in rounds:
        # What share of the others played C and D in the round before, and whether there was none.
        defected = previous % n / (n - 1)
        before = (0, 0, 1) if previous == 2 * n else (1 - defected, defected, 0)
        kinds.append((own, before))
        if own == 2:
            joint.append(-6.0)
            duty.append(-6.0)
            continue
        a, b = (float(x) for x in payoffs[:, own, other])
        everyone = a + (n - 1) * b
        joint.append(everyone)
        duty.append(-3.0 * before[0] if own == 1 else 0.0)
        sums["own"].append(a)
        sums["other"].append(b)
        sums["collective"].append(everyone)
        sums["minimum"].append(min(a, b))
        # Gini: mean absolute difference of all pairs over twice the mean, here of absolute values.
        pairs = [abs(x - y) for x in (a, b) for y in (a, b)]
        mean = (abs(a) + abs(b)) / 2
        sums["inequality"].append(np.mean(pairs) / (2 * mean) if mean else 0.0)
    assert 0 <= found["payoffs"]["inequality"] <= 1
    for key, values in sums.items():
        assert found["payoffs"][key] == pytest.approx(np.mean(values)), key
    if name == "ipd":  # no points below 0: the coefficient as it is usually written
        usual = abs(payoffs[0] - payoffs[1]) / (2 * payoffs.sum(0))
        played = shares[:, :2].sum(0)
        usual = (played * usual).sum() / played.sum()
        assert found["payoffs"]["inequality"] == pytest.approx(usual)
    best = (payoffs[0] + (n - 1) * payoffs[1]).max()
    points = found["regret"]["utilitarian"]["points"]
    assert points == pytest.approx(best - np.mean(joint))
    assert found["regret"]["utilitarian"]["normalised"] == pytest.approx(points / (best + 6))
    assert found["regret"]["deontological"]["points"] == pytest.approx(-np.mean(duty))
    assert found["outcomes"]["illegal"] == pytest.approx(np.mean([k[0] == 2 for k in kinds]))
    expected = {}
    for outcome, name in enumerate(("C", "D", "illegal")):
        for column, after in enumerate("CD-" if blank else "CD"):
            expected[f"{name}|{after}"] = np.mean([b[column] * (o == outcome) for o, b in kinds])
    assert found["action_types"] == pytest.approx(expected)
    after_d = [before[1] for _, before in kinds]
    in_kind = [before[1] for own, before in kinds if own == 1]
    assert found["reciprocity"]["D"] == pytest.approx(sum(in_kind) / sum(after_d))


def test_an_agent_that_never_answers_has_no_payoffs():
    shares = np.zeros((5, 3, 2))
    shares[0, 2, 0] = 1
    game = games.get_game("ipd")
    assert set(describe_payoffs(shares, game.payoffs).values()) == {None}
    found = describe_shares(shares, tables(game, xi=4.0), game)
    assert found["regret"]["deontological"]["points"] == pytest.approx(6)
    assert found["reciprocity"]["D"] is None
