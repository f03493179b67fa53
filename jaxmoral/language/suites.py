"""Evaluation suites: which conditions (games and wordings) an agent is tested in.

A suite is a function of who is tested on what (`Subject`) to a dictionary of conditions; its names
are unique within the suite. The grid is that of arXiv 2410.01639, section 5 and its appendix.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxmoral.errors import choose
from jaxmoral.language import novelty
from jaxmoral.language.novelty import Seen
from jaxmoral.language.prompts import TABLE_ORDERS, Condition, Presentation
from jaxmoral.world.games import Game, get_game

Named = dict[str, Condition]


class Subject(NamedTuple):
    """Who is tested, on what.

    Attributes:
      shown: how the agent was shown games.
      unseen: labels that are new to it.
      games: of the suites that play several.
      seen: all that training drew from.
    """

    shown: Presentation
    unseen: tuple[str, str]
    games: Sequence[Game]
    seen: Seen


Suite = Callable[[Subject], Named]


def _every_game(subject: Subject, **changes: Any) -> Named:
    """The games with another presentation."""
    shown = subject.shown._replace(**changes)
    return {game.name: Condition(game, shown) for game in subject.games}


def trained(subject: Subject) -> Named:
    """The games in the wording and with the labels of training (Fig. 20)."""
    return _every_game(subject)


def labels(subject: Subject) -> Named:
    """The games with labels never seen in training (Fig. 4 and 5, the main test)."""
    return _every_game(subject, labels=subject.unseen)


def swapped(subject: Subject) -> Named:
    """The games with the labels of training in each other's place (Fig. 21)."""
    return _every_game(subject, labels=subject.shown.labels[::-1])


def orders(subject: Subject) -> Named:
    """The payoff table's four orders, with both pairs of labels (Fig. 22 and 23)."""
    return {
        f"{game.name} {order} {'/'.join(pair)}": Condition(
            game, subject.shown._replace(labels=pair, table_order=order)
        )
        for pair in dict.fromkeys((subject.unseen, subject.shown.labels))
        for order in TABLE_ORDERS
        for game in subject.games
    }


def _wordings(subject: Subject, names: Sequence[str], persona: str | None = None) -> Named:
    game, base = get_game("ipd"), subject.shown._replace(labels=subject.unseen)
    if persona is not None:
        base = base._replace(persona=persona)
    return {name: Condition(game, base._replace(wording=name)) for name in names}


def wordings(subject: Subject) -> Named:
    """The Prisoner's Dilemma in four wordings (Fig. 17)."""
    return _wordings(subject, ("structured", "unstructured", "story", "explicit"))


def unrelated(subject: Subject) -> Named:
    """Three prompts without payoffs (Fig. 18 and 19)."""
    return _wordings(subject, ("action", "action+game", "action+game+state"))


def personas(subject: Subject) -> Named:
    """The games and the other prompts behind a moral persona (Fig. 25)."""
    found: Named = {}
    for persona in ("deontological", "utilitarian"):
        behind = subject.shown._replace(persona=persona, labels=subject.unseen)
        found |= {f"{game.name} {persona}": Condition(game, behind) for game in subject.games}
        names = ("unstructured", "story", "explicit", "action", "action+game", "action+game+state")
        for name, condition in _wordings(subject, names, persona).items():
            found[f"{name} {persona}"] = condition
    return found


def generalisation(subject: Subject) -> Named:
    """What was trained on, each axis new alone, and all together; no figure of the paper."""
    return novelty.generalisation(subject.shown, subject.games, subject.seen)


def thoughts(subject: Subject) -> Named:
    """The training game, in which thoughts are exchanged; no figure of the paper."""
    game = subject.seen.games[0]
    return {game.name: Condition(game, subject.shown)}


SUITES: dict[str, Suite] = {
    suite.__name__: suite
    for suite in (
        *(trained, labels, swapped, orders, wordings, unrelated, personas),
        *(generalisation, thoughts),
    )
}
PAPERS = [name for name in SUITES if name not in ("generalisation", "thoughts")]


def is_redrawn(suite: str, condition: Condition, trained: Presentation) -> bool:
    """Whether the paper draws the remembered round of these prompts anew every time (section 8).

    It does where it changes what is said of the dilemma, behind a persona too.
    """
    other = condition.presentation.wording != trained.wording
    return suite in ("wordings", "unrelated") or (suite == "personas" and other)


def check_suites(names: Sequence[str]) -> list[str]:
    """The suites' names, "all" standing for the paper's; raises UserError for an unknown one."""
    found: list[str] = []
    for name in names:
        if name != "all":
            choose("evaluation.suites", name, SUITES)
        found += PAPERS if name == "all" else [name]
    return list(dict.fromkeys(found))


def conditions(names: Sequence[str], subject: Subject) -> dict[str, Named]:
    """Every chosen suite's conditions by name.

    Raises:
      UserError: a suite does not exist.
    """
    return {name: SUITES[name](subject) for name in check_suites(names)}
