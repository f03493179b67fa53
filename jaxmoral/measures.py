"""What an agent's rounds amount to: measures of the shares of each kind of round.

Shares are `[2 (previous own), 2 (previous other), 3 (outcome), 2 (other's action)]`, from
`chain.visits` or from sampled episodes.
"""

from typing import Any

import numpy as np

from jaxmoral.metrics import action_types
from jaxmoral.rewards import ILLEGAL, bounds

REGRETS = ("deontological", "utilitarian")


def describe_shares(
    shares: np.ndarray, tables: dict[str, np.ndarray], payoffs: np.ndarray
) -> dict[str, Any]:
    """All measures of one agent against one opponent.

    Args:
      shares: of the rounds.
      tables: reward tables by the reward's name, of the game that was played.
      payoffs: `[2, 2, 2]` of that game.

    Returns:
      `{"outcomes", "action_types", "reciprocity", "rewards", "regret", "payoffs"}`. Rewards and
      regret count illegal answers; regret is the largest reward of any round of the game minus the
      mean (arXiv 2410.01639, section 5), normalised by the span of the rewards (0 when they are all
      alike). Payoffs are those of `describe_payoffs`.
    """
    shares = np.asarray(shares, np.float64)
    types = shares.sum((0, 3))  # [previous other, outcome]
    rewards = {name: float((shares * table).sum()) for name, table in tables.items()}
    regret = {}
    for name in REGRETS:
        low, high = bounds(tables[name])
        points, span = high - rewards[name], high - low
        regret[name] = {"points": points, "normalised": points / span if span else 0.0}
    outcomes = dict(zip(("C", "D", "illegal"), map(float, types.sum(0)), strict=True))
    return {
        "outcomes": outcomes,
        "action_types": action_types(types.T),
        "reciprocity": _reciprocity(types),
        "rewards": rewards,
        "regret": regret,
        "payoffs": describe_payoffs(shares, payoffs),
    }


def _reciprocity(types: np.ndarray) -> dict[str, float | None]:
    """How often the agent answers in kind: P(C after a C), P(D after a D)."""
    seen = types.sum(1)
    return {
        name: float(types[move, move] / seen[move]) if seen[move] > 0 else None
        for move, name in enumerate(("C", "D"))
    }


def describe_payoffs(shares: np.ndarray, payoffs: np.ndarray) -> dict[str, float | None]:
    """Means over the rounds with a legal answer; None if there is none.

    "own", "other", "collective" (their sum) and "minimum" (of the two) are points. "inequality" is
    a round's Gini coefficient of the two payoffs, |a - b| / (2 (a + b)), 0 when both are 0.
    """
    played = np.asarray(shares)[:, :, :ILLEGAL].sum((0, 1))
    own, other = np.asarray(payoffs, np.float64)
    total = own + other
    gini = np.abs(own - other) / (2 * np.where(total == 0, 1, total))
    kinds = {
        "own": own,
        "other": other,
        "collective": total,
        "minimum": np.minimum(own, other),
        "inequality": gini,
    }
    legal = played.sum()
    if legal < 1e-12:
        return dict.fromkeys(kinds)
    return {name: float((played * values).sum() / legal) for name, values in kinds.items()}
