"""Evaluation suites: which conditions (games and wordings) an agent is tested in.

A suite is a function of the evaluated configuration and the chosen games to a dictionary of
conditions; its names are unique within the suite. The grid is that of arXiv 2410.01639, section 5
and its appendix.
"""

from collections.abc import Callable, Sequence

from jaxmoral.errors import choose
from jaxmoral.language.prompts import TABLE_ORDERS, Condition, Presentation
from jaxmoral.world.games import Game, get_game

Named = dict[str, Condition]
Suite = Callable[[Presentation, tuple[str, str], Sequence[Game]], Named]


def trained(shown: Presentation, unseen: tuple[str, str], games: Sequence[Game]) -> Named:
    """The games in the wording and with the labels of training (Fig. 20)."""
    return {game.name: Condition(game, shown) for game in games}


def labels(shown: Presentation, unseen: tuple[str, str], games: Sequence[Game]) -> Named:
    """The games with labels never seen in training (Fig. 4 and 5, the main test)."""
    renamed = shown._replace(labels=unseen)
    return {game.name: Condition(game, renamed) for game in games}


def swapped(shown: Presentation, unseen: tuple[str, str], games: Sequence[Game]) -> Named:
    """The games with the labels of training in each other's place (Fig. 21)."""
    changed = shown._replace(labels=shown.labels[::-1])
    return {game.name: Condition(game, changed) for game in games}


def orders(shown: Presentation, unseen: tuple[str, str], games: Sequence[Game]) -> Named:
    """The payoff table's four orders, with both pairs of labels (Fig. 22 and 23)."""
    return {
        f"{game.name} {order} {'/'.join(pair)}": Condition(
            game, shown._replace(labels=pair, table_order=order)
        )
        for pair in dict.fromkeys((unseen, shown.labels))
        for order in TABLE_ORDERS
        for game in games
    }


def _wordings(shown: Presentation, unseen: tuple[str, str], names: Sequence[str]) -> Named:
    game = get_game("ipd")
    return {name: Condition(game, shown._replace(wording=name, labels=unseen)) for name in names}


def wordings(shown: Presentation, unseen: tuple[str, str], games: Sequence[Game]) -> Named:
    """The Prisoner's Dilemma in four wordings (Fig. 17)."""
    return _wordings(shown, unseen, ("structured", "unstructured", "story", "explicit"))


def unrelated(shown: Presentation, unseen: tuple[str, str], games: Sequence[Game]) -> Named:
    """Three prompts without payoffs (Fig. 18 and 19)."""
    return _wordings(shown, unseen, ("action", "action+game", "action+game+state"))


def personas(shown: Presentation, unseen: tuple[str, str], games: Sequence[Game]) -> Named:
    """The games and the other prompts behind a moral persona (Fig. 25)."""
    found: Named = {}
    for persona in ("deontological", "utilitarian"):
        behind = shown._replace(persona=persona, labels=unseen)
        found |= {f"{game.name} {persona}": Condition(game, behind) for game in games}
        names = ("unstructured", "story", "explicit", "action", "action+game", "action+game+state")
        for name, condition in _wordings(behind, unseen, names).items():
            found[f"{name} {persona}"] = condition
    return found


# Suites in which the paper draws the remembered round anew every time (its section 8).
REDRAWN = ("wordings", "unrelated")

SUITES: dict[str, Suite] = {
    suite.__name__: suite
    for suite in (trained, labels, swapped, orders, wordings, unrelated, personas)
}


def check_suites(names: Sequence[str]) -> list[str]:
    """The suites' names, "all" spelled out; raises UserError for one that does not exist."""
    found: list[str] = []
    for name in names:
        if name != "all":
            choose("evaluation.suites", name, SUITES)
        found += SUITES if name == "all" else [name]
    return list(dict.fromkeys(found))


def conditions(
    names: Sequence[str], shown: Presentation, labels: tuple[str, str], games: Sequence[Game]
) -> dict[str, Named]:
    """Every chosen suite's conditions by name.

    Raises:
      UserError: a suite does not exist.
    """
    return {name: SUITES[name](shown, labels, games) for name in check_suites(names)}
