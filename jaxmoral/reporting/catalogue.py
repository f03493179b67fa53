"""What there is to choose from, a line each: for `--list`, and for the tables of docs/games.md.

A name in brackets is an example of its family.
"""

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

from jaxmoral.world.games import BUILT_IN

WIDTH = 100  # of a line in the terminal

# In games of two players and of more.
GAME_FAMILIES = {
    "ordinal(17)": (
        "one of the 144 strict ordinal games, 1 to 144; C is what lets the other reach its best"
    ),
    "donation(3,1)": "benefit, cost: C pays the cost so that the other gets the benefit",
    "plane(-5,15)": "S, T: sucker's payoff and temptation in tenths, beside R = 10 and P = 0",
    "affine(ipd,10,5)": "another game with its points times a positive number, plus a number",
    "group(ipd,4)": (
        "a symmetric game played with each of the others at once, N players: the mean of the points"
    ),
    "public-goods(4,10,2)": (
        "players, endowment, multiplier: what is contributed is multiplied and shared by all"
    ),
    "threshold-goods(5,3)": (
        "players, threshold, then benefit (10) and cost (4): all gain once enough contribute"
    ),
    "volunteers-dilemma(4)": (
        "players, then benefit (10) and cost (4): one volunteer is enough (Diekmann 1985)"
    ),
}
# Wherever a list of games is asked for.
GAME_SETS = {
    "all": "the paper's six, your own, that of training; those with as many players",
    "ordinal-symmetric": "the twelve symmetric ordinal games",
    "ordinal-all": "all 144",
    "asymmetric": "the four with different roles",
    "plane": "a grid over sucker's payoff and temptation; the report draws it as a map",
}
# Of two-player games.
OPPONENTS = {
    "tit-for-tat": "repeats the agent's last legal move (Rapoport; Axelrod 1980)",
    "random": "a fair coin",
    "always-cooperate": "C",
    "always-defect": "D",
    "learner": (
        "a second agent that learns too, on the same base, with an adapter, optimiser, value head "
        "and KL weight of its own"
    ),
    "suspicious-tit-for-tat": "tit-for-tat that begins with D",
    "tit-for-two-tats": "D only after two D in a row",
    "two-tits-for-tat": "two D for each D",
    "grim-trigger": "D for ever after one D",
    "win-stay-lose-shift": "Pavlov: repeats its move if the agent played C, else changes it",
    "alternator": "C, D, C, D, ...",
    "anti-tit-for-tat": "the opposite of the agent's last move",
    "bully": "begins with D, then the opposite of the agent's last move",
    "joss": "tit-for-tat that takes advantage one time in ten",
    "firm-but-fair": "D after its C met D; C again two times in three after both played D",
    "handshake": "opens with C, D; plays C for ever with whoever did the same, D with others",
    "prober": "D, C, C, then D for ever if the agent's last two moves are C, else tit-for-tat",
    "random(0.3)": "C with that probability",
    "memory-one(1,0,1,0.3)": (
        "probability of C after CC, CD, DC, DD, its own move first, then perhaps of the first move"
    ),
    "generous-tit-for-tat(0.3)": (
        "tit-for-tat that forgives a D with a probability, one third by default"
    ),
    "extortionate(3)": (
        "takes that many times the agent's surplus over P in the long run (Press & Dyson 2012)"
    ),
    "generous-zero-determinant(2)": (
        "bears that many times the agent's loss against R (Stewart & Plotkin 2013)"
    ),
    "noisy(joss,0.05)": (
        "any other one whose hand trembles: a move comes out as the other with that probability"
    ),
}
# All the others in a game of more players.
CONTRIBUTORS = {
    "always-cooperate": "C",
    "always-defect": "D",
    "random(0.3)": "C with that probability, one half by default",
    "conditional": (
        "C first, then C if at least half of the rest did; `conditional(2)` sets how many"
    ),
    "noisy(conditional,0.1)": "any other one with a trembling hand",
}
# a is the agent's points, b the other's, xi reward.xi; an illegal answer gets reward.illegal.
REWARDS = {
    "game": "a: the selfish reward",
    "deontological": (
        "-xi for a D after the other's C, else 0; of several others, in proportion to how many"
        " played C"
    ),
    "utilitarian": "the sum of all players' points",
    "virtue-equality": "1 - |a - b| / (|a| + |b|)",
    "virtue-kindness": "xi for C, whatever comes of it",
    "maximin": "the smaller of a and b (Rawls 1971)",
    "harm-avoidance": "minus what the other lost against the best the agent could have left it",
    "virtue-mixed(0.5)": "that share of virtue-equality, the rest for C",
    "inequity-aversion(5,0.05)": "a - 5 max(b - a, 0) - 0.05 max(a - b, 0) (Fehr & Schmidt 1999)",
    "social-value-orientation(45)": (
        "a cos + b sin of an angle: 0 selfish, 45 prosocial, 90 altruistic, -45 competitive"
    ),
    "svo-distance(45,0.2)": "a - 0.2 x the distance in radians from that angle (McKee et al. 2020)",
    "altruism(0.3)": "0.7 a + 0.3 b; a negative number is spite",
    "norm(0,-3,0,0,0,-3,0,0)": (
        "points for C and for D after each of CC, CD, DC, DD; this one is `deontological`"
    ),
}


def _games() -> dict[str, str]:
    cells = lambda game: "; ".join(
        f"{cell} {own:g}, {other:g}"
        for cell, own, other in zip(
            ("CC", "CD", "DC", "DD"), *game.payoffs.reshape(2, 4).tolist(), strict=True
        )
    )
    single = {name: f"{game.title}: {cells(game)}" for name, game in BUILT_IN.items()}
    return single | GAME_FAMILIES | GAME_SETS


def _suites() -> dict[str, str]:
    from jaxmoral.language.suites import SUITES  # slow to import

    return {name: (suite.__doc__ or "").strip() for name, suite in SUITES.items()}


def _wordings() -> dict[str, str]:
    from jaxmoral.language.prompts import WORDINGS  # slow to import

    return {name: " ".join(text.split()) for name, text in WORDINGS.items()}


LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "games": _games,
    "opponents": lambda: OPPONENTS,
    "contributors": lambda: CONTRIBUTORS,
    "rewards": lambda: REWARDS,
    "suites": _suites,
    "wordings": _wordings,
}


def listing(kind: str) -> str:
    """Names with one line each, of a kind in `LISTS`."""
    lines = LISTS[kind]()
    longest = max(map(len, lines))
    return "\n".join(
        f"{name:{longest}}  {textwrap.shorten(text, WIDTH - longest - 2, placeholder=' ...')}"
        for name, text in lines.items()
    )


class List(argparse.Action):
    """The flag `--list KIND`: prints what there is and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, kind: Any, *_: Any) -> None:
        print(listing(kind))
        parser.exit()


def add_list(parser: argparse.ArgumentParser) -> None:
    """Lets a command list names."""
    parser.add_argument(
        "--list", choices=LISTS, action=List, help="print the names there are, a line each, and end"
    )
