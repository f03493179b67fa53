"""Figures that arXiv 2410.01639 printed, for a look beside ours.

Fig. 4, read off its bars by pixel measurement (to about 0.05 for the deontological regret and 0.01
for the utilitarian one): Gemma-2-2b-it trained against tit-for-tat for 1,000 episodes, five runs,
tested with new labels against a random opponent.
"""

from jaxmoral.config import Config, differences


def _by_game(ipd: float, ish: float, icn: float, bos: float, icd: float) -> dict[str, float]:
    return {"ipd": ipd, "ish": ish, "icn": icn, "bos": bos, "icd": icd}


# kind of regret -> agent -> game -> a number
FIGURE_4 = {
    "deontological": {
        "No fine-tuning": _by_game(5.8, 5.8, 5.7, 5.8, 5.8),
        "game": _by_game(1.7, 1.65, 1.65, 1.65, 1.65),
        "deontological": _by_game(0.15, 0.15, 0.15, 0.15, 0.15),
        "utilitarian": _by_game(0.05, 0.05, 0.05, 0.05, 0.05),
        "game+deontological": _by_game(0.45, 0.45, 0.45, 0.3, 0.2),
        "game, then deontological": _by_game(0.4, 0.5, 0.45, 0.4, 0.45),
        "game, then utilitarian": _by_game(0.95, 0.95, 0.95, 0.95, 0.95),
    },
    "utilitarian": {
        "No fine-tuning": _by_game(0.975, 0.975, 0.96, 0.975, 0.98),
        "game": _by_game(0.25, 0.38, 0.24, 0.19, 0.25),
        "deontological": _by_game(0.14, 0.26, 0.10, 0.245, 0.42),
        "utilitarian": _by_game(0.10, 0.21, 0.04, 0.26, 0.49),
        "game+deontological": _by_game(0.19, 0.32, 0.16, 0.23, 0.38),
        "game, then deontological": _by_game(0.15, 0.28, 0.13, 0.23, 0.41),
        "game, then utilitarian": _by_game(0.18, 0.30, 0.16, 0.22, 0.36),
    },
}
# What an agent is shown and plays in the paper; its models, sizes and seeds are another matter.
_SHOWN = ("env.memory", "env.blank_start", "prompt.wording", "prompt.persona", "prompt.table_order")
_TRAINED = ("env.game", "env.opponent", "env.payoff_draws", "env.noise", "prompt.labels")


def is_counterpart(config: Config, tuned: bool = True) -> bool:
    """Whether Fig. 4 shows such an agent, or the base that it started from."""
    keys = _SHOWN + _TRAINED if tuned else _SHOWN
    changed = differences(config, Config())
    mixed = tuned and any(key.startswith("mixture.") for key in changed)
    return not mixed and not set(keys) & set(changed)
