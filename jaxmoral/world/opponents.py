"""Opponents by name: the strategies of the literature, families of them, a configuration's own."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxmoral.errors import UserError, build, check_number
from jaxmoral.world.crowds import crowd, get_contributor
from jaxmoral.world.games import Game, get_game
from jaxmoral.world.machines import (
    C,
    D,
    Opponent,
    machine,
    memory_one,
    memoryless,
    next_move,
    noisy,
    watcher,
)


def tit_for_tat() -> Opponent:
    """Repeats the agent's last legal move; it begins with C, but remembers a coin."""
    coin = np.array([0.5, 0.5], np.float32)
    return next_move([C, D, C, D])._replace(opening=coin)


def generous_tit_for_tat(generosity: float = 1 / 3) -> Opponent:
    """Tit-for-tat that forgives a D with a probability (Nowak & Sigmund 1992)."""
    return memory_one(1, generosity, 1, generosity)


def _zero_determinant(
    game: Game, factor: float, cell: tuple[int, int], scale: float | None
) -> Opponent:
    """A zero-determinant strategy (Press & Dyson 2012), for a symmetric game Hilbe et al.'s (2013).

    It enforces own points - baseline = factor * (the agent's points - baseline) between the means
    of a long game, where a player's baseline is what it gets in `cell`. `scale` sets how fast; half
    of the largest possible one by default.
    """
    factor = check_number("factor", factor, 1.0, 1e6)
    theirs, own = game.payoffs.astype(float).transpose(0, 2, 1)  # [its own move, the agent's]
    drift = (own - own[cell]) / factor - (theirs - theirs[cell])
    room = np.abs(drift).max()
    scale = 0.5 / max(room, 1e-9) if scale is None else check_number("scale", scale)
    probabilities = np.array([[1.0], [0.0]]) + scale * drift  # after its own C and after its own D
    possible = probabilities.min() > -1e-9 and probabilities.max() < 1 + 1e-9
    if room == 0 or scale <= 0 or not possible:
        raise UserError(
            f"opponent: {game.name} has no zero-determinant strategy of factor {factor:g} and scale"
            f" {scale:g}; choose a Prisoner's Dilemma or a smaller scale above 0"
        )
    return memory_one(*np.clip(probabilities, 0, 1).ravel())


def extortionate(game: Game, factor: float = 3.0, scale: float | None = None) -> Opponent:
    """Takes `factor` times the agent's surplus over P in the long run (Press & Dyson 2012)."""
    return _zero_determinant(game, factor, (1, 1), scale)


def generous_zero_determinant(
    game: Game, factor: float = 2.0, scale: float | None = None
) -> Opponent:
    """Bears `factor` times the agent's loss against R in the long run (Stewart & Plotkin 2013)."""
    return _zero_determinant(game, factor, (0, 0), scale)


OPPONENTS: dict[str, Opponent] = {
    # Rapoport's winner of Axelrod's tournaments (1980).
    "tit-for-tat": tit_for_tat(),
    "random": memoryless(0.5),
    "always-cooperate": memoryless(1.0),
    "always-defect": memoryless(0.0),
    # Tit-for-tat that begins with D (Boyd & Lorberbaum 1987).
    "suspicious-tit-for-tat": next_move([C, D, C, D], first=D),
    # D only after two D in a row (Axelrod 1984).
    "tit-for-two-tats": watcher(
        {
            "content": ("C", "content", "warned"),
            "warned": ("C", "content", "hit twice"),
            "hit twice": ("D", "content", "hit twice"),
        }
    ),
    # Two D for each D (Axelrod 1984).
    "two-tits-for-tat": watcher(
        {
            "content": ("C", "content", "first tit"),
            "second tit": ("D", "content", "first tit"),
            "first tit": ("D", "second tit", "first tit"),
        }
    ),
    # D for ever after one D (Friedman 1971).
    "grim-trigger": watcher(
        {"trusts": ("C", "trusts", "triggered"), "triggered": ("D", "triggered", "triggered")}
    ),
    # Pavlov: repeats its move if the agent played C, else changes it (Nowak & Sigmund 1993).
    "win-stay-lose-shift": next_move([C, D, D, C]),
    # C, D, C, D, ... from its own last move.
    "alternator": next_move([D, D, C, C]),
    # The opposite of the agent's last move (Axelrod library's AntiTitForTat).
    "anti-tit-for-tat": next_move([D, C, D, C]),
    # Begins with D, then the opposite of the agent's last move (Nachbar 1992).
    "bully": next_move([D, C, D, C], first=D),
    # Tit-for-tat that takes advantage one time in ten (Joss in Axelrod 1980).
    "joss": memory_one(0.9, 0, 0.9, 0),
    # D after C met D; C again, two times in three, after both played D (Frean 1994).
    "firm-but-fair": memory_one(1, 0, 1, 2 / 3),
    # C, D opens a handshake; who played the same meets C for ever, others D (Robson 1990).
    "handshake": watcher(
        {
            "offers": ("C", "shakes", "offended"),
            "shakes": ("D", "foe", "friend"),
            "offended": ("D", "foe", "foe"),
            "friend": ("C", "friend", "friend"),
            "foe": ("D", "foe", "foe"),
        }
    ),
    # D, C, C, then D for ever if the agent's last two moves are C, else tit-for-tat (Li 2011).
    "prober": watcher(
        {
            "probes": ("D", "waits", "waits"),
            "waits": ("C", "saw C", "saw D"),
            "saw C": ("C", "exploits", "answers D"),
            "saw D": ("C", "answers C", "answers D"),
            "exploits": ("D", "exploits", "exploits"),
            "answers C": ("C", "answers C", "answers D"),
            "answers D": ("D", "answers C", "answers D"),
        }
    ),
}


def noisy_named(own: Mapping[str, Opponent], game: Game, name: str, noise: float) -> Opponent:
    """Another opponent with a trembling hand: "noisy(tit-for-tat, 0.1)"."""
    return noisy(get_opponent(name, game, own), noise)


BUILT_IN: Mapping[str, Opponent] = MappingProxyType({**OPPONENTS})
NONE: Mapping[str, Opponent] = MappingProxyType({})
# All get the game first.
FAMILIES: dict[str, Callable[..., Opponent]] = {
    "random": lambda game, p_cooperate: memoryless(p_cooperate),
    "memory-one": lambda game, cc, cd, dc, dd, first=1.0: memory_one(cc, cd, dc, dd, first),
    "generous-tit-for-tat": lambda game, generosity=1 / 3: generous_tit_for_tat(generosity),
    "extortionate": extortionate,
    "generous-zero-determinant": generous_zero_determinant,
    "noisy": partial(noisy_named, {}),
}


def get_opponent(
    name: str, game: Game | None = None, own: Mapping[str, Opponent] = NONE
) -> Opponent:
    """An opponent by name, or of a family, e.g. "random(0.3)" or "noisy(joss, 0.05)".

    Args:
      name: in `OPPONENTS` or `FAMILIES`; in a game of more than two players in `CONTRIBUTORS`.
      game: that is played; the Prisoner's Dilemma by default.
      own: machines that are looked up first, e.g. those of a configuration (`make_opponents`).

    Raises:
      UserError: there is none of that name (the names are listed), or its arguments do not fit.
    """
    game = get_game("ipd") if game is None else game
    if game.num_players > 2:
        return crowd(get_contributor(game.num_players, name), game.num_players)
    families = FAMILIES | {"noisy": partial(noisy_named, own)}
    found = build("opponent", name, {**OPPONENTS, **own}, families, (game,))
    if not isinstance(found, Opponent):
        raise UserError(f"opponent: {name} is registered as {found!r}; register what machine makes")
    return found


def make_opponent(name: str, described: Mapping[str, Any]) -> Opponent:
    """A machine from a configuration: `{cooperate, transitions, start}`; see `machine`.

    Raises:
      UserError: a key is missing or unknown, or `machine` refuses its value.
    """
    wanted = {"cooperate", "transitions", "start"}
    missing = sorted(wanted - {"start"} - set(described))
    if missing or set(described) - wanted:
        raise UserError(f"opponents.{name}: needs cooperate, transitions and perhaps start")
    try:
        return machine(**described)
    except UserError as error:
        raise UserError(f"opponents.{name}.{error}") from None
    except (TypeError, ValueError):
        raise UserError(
            f"opponents.{name}: needs a list of numbers (cooperate) and one of lists of states"
            " (transitions)"
        ) from None


def make_opponents(described: Mapping[str, Mapping[str, Any]]) -> dict[str, Opponent]:
    """A configuration's own machines by name, which no other configuration sees.

    Args:
      described: a name to what `make_opponent` needs.

    Raises:
      UserError: as `make_opponent`, or a name is taken by a built-in opponent.
    """
    found = {name: make_opponent(name, about) for name, about in described.items()}
    for name, opponent in found.items():
        if name in FAMILIES and name not in BUILT_IN:
            raise UserError(f"opponents.{name}: the name already stands for several opponents")
        pairs = zip(BUILT_IN.get(name, opponent), opponent, strict=True)
        if not all(np.array_equal(a, b) for a, b in pairs):
            raise UserError(f"opponents.{name}: the name is taken by another opponent")
    return found
