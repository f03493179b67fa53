"""What an agent's rounds amount to: measures of the shares of each kind of round.

Shares are `[2N + 1 (previous round, none last), 3 (outcome), N (other's action)]`, from
`chain.visits`, from sampled episodes, or from `pairs.meet`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmoral.learning.metrics import named_action_types
from jaxmoral.world.games import Game
from jaxmoral.world.machines import memoryless
from jaxmoral.world.memory import ILLEGAL, OUTCOMES, after_matrix
from jaxmoral.world.pairs import Player, group_players, machine_player, meet
from jaxmoral.world.rewards import bounds

REGRETS = {"deontological": "points", "utilitarian": "normalised"}  # and what each is told in
REGRET_METRICS = {kind: f"regret/{kind}/{unit}" for kind, unit in REGRETS.items()}
ERROR = "error"  # the protocol under which standard errors of "exact" stand


def describe_shares(
    shares: np.ndarray, tables: Mapping[str, np.ndarray], game: Game
) -> dict[str, Any]:
    """All measures of one agent against one opponent.

    Args:
      shares: of the rounds.
      tables: reward tables by the reward's name, of the game that was played.
      game: that game.

    Returns:
      `{"outcomes", "action_types", "reciprocity", "rewards", "regret", "payoffs"}`. Rewards and
      regret count illegal answers; regret is the largest reward of any round of the game minus the
      mean (arXiv 2410.01639, section 5), normalised by the span of the rewards (0 when they are all
      alike). Payoffs are those of `describe_payoffs`.
    """
    shares = np.asarray(shares, np.float64)
    by_previous = shares.sum(-1)
    types = np.einsum("po,pc->oc", by_previous, after_matrix(game.num_players))
    rewards = {name: float((shares * table).sum()) for name, table in tables.items()}
    regret = {}
    for name in REGRETS:
        low, high = bounds(tables[name])
        points, span = high - rewards[name], high - low
        regret[name] = {"points": points, "normalised": points / span if span else 0.0}
    outcomes = dict(zip(OUTCOMES, map(float, by_previous.sum(0)), strict=True))
    return {
        "outcomes": outcomes,
        "action_types": named_action_types(types if by_previous[-1].sum() else types[:, :2]),
        "reciprocity": _reciprocity(types),
        "rewards": rewards,
        "regret": regret,
        "payoffs": describe_payoffs(shares, game.payoffs),
    }


def standard_errors(without: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The jackknife's standard errors of nested measures, of which each left one sample out.

    Where a measure is None with any sample left out, so is its error.
    """
    first, size = without[0], len(without)
    found: dict[str, Any] = {}
    for name, value in first.items():
        each = [one[name] for one in without]
        if isinstance(value, dict):
            found[name] = standard_errors(each)
        else:
            spread = None if None in each else float(np.std(each))
            found[name] = None if spread is None else spread * (size - 1) ** 0.5
    return found


def _reciprocity(types: np.ndarray) -> dict[str, float | None]:
    """How often the agent answers in kind: P(C after a C), P(D after a D)."""
    seen = types.sum(0)
    return {
        name: float(types[move, move] / seen[move]) if seen[move] > 0 else None
        for move, name in enumerate("CD")
    }


def describe_payoffs(shares: np.ndarray, payoffs: np.ndarray) -> dict[str, float | None]:
    """Means over the rounds with a legal answer; None if there is none.

    "own", "other", "collective" (the sum over all players) and "minimum" (of own and other) are
    points; of several others "other" is the mean. "inequality" is a round's Gini coefficient of the
    two payoffs, |a - b| / (2 (|a| + |b|)), 0 when both are 0; the absolute values keep it in
    [0, 1/2] where points are negative.
    """
    played = np.asarray(shares)[:, :ILLEGAL].sum(0)
    own, other = np.asarray(payoffs, np.float64)
    total = np.abs(own) + np.abs(other)
    gini = np.abs(own - other) / (2 * np.where(total == 0, 1, total))
    kinds = {
        "own": own,
        "other": other,
        "collective": own + (own.shape[1] - 1) * other,
        "minimum": np.minimum(own, other),
        "inequality": gini,
    }
    legal = played.sum()
    if legal < 1e-12:
        return dict.fromkeys(kinds)
    return {name: float((played * values).sum() / legal) for name, values in kinds.items()}


def fingerprint(players: Sequence[Player], rates: np.ndarray) -> np.ndarray:
    """Cooperation in the long run against opponents that play C at given rates.

    Returns:
      `[num_players, num_rates]` shares of rounds with C.
    """
    machines = [machine_player(memoryless(float(rate))) for rate in rates]
    found = np.zeros((len(players), len(rates)))
    for rows in group_players(players):
        meeting = meet([players[row] for row in rows], machines, num_rounds=1)
        found[rows] = meeting.long_run[..., 0, :].sum((-1, -2))
    return found
