"""Opponents as data: Moore machines with random moves that play a game against the agent.

A machine in state s plays move j with probability `moves[s, j]`, then goes to
`next_state[s, j, agent's move]`. With two players move 0 is C and 1 is D; with N the machine is all
the others together and its move is how many of them defect. When the agent's answer is illegal, its
last legal move stands in for it, as in arXiv 2410.01639.

Most episodes begin with *remembered rounds* that were never played but that the prompt shows. The
machine goes through them as if it had played them, against an agent that tosses coins. Its own
first remembered move is `opening`, the move it really begins with (for tit-for-tat a fair coin, as
in the paper).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import comb
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.errors import UserError, build, check_number, check_whole
from jaxmoral.world.games import Game, get_game


class Opponent(NamedTuple):
    """A Moore machine against which one game is played.

    Attributes:
      moves: `[num_states, num_moves]` float32 probabilities.
      next_state: `[num_states, num_moves (its own move), 2 (agent's move)]` int32.
      start: `[]` int32, the state before any round.
      opening: `[num_moves]` float32 probabilities of the first remembered move.

    >>> jaxmoral.OPPONENTS["tit-for-tat"].moves[:, 0]  # P(C) in its two states
    array([1., 0.], dtype=float32)
    """

    moves: np.ndarray | jax.Array
    next_state: np.ndarray | jax.Array
    start: np.ndarray | jax.Array
    opening: np.ndarray | jax.Array


def machine(
    cooperate: Sequence[float], transitions: Sequence[Sequence[int]], start: int = 0
) -> Opponent:
    """A machine for two players.

    Args:
      cooperate: each state's probability of C.
      transitions: per state, where it goes after (its own move, the agent's) = CC, CD, DC, DD.
      start: the first state.

    Raises:
      UserError: a probability is none, a transition is missing or leads to no state.

    >>> grim = jaxmoral.machine([1, 0], [[0, 1, 0, 1], [1, 1, 1, 1]])
    >>> int(grim.next_state[0, 0, 1])  # after its own C and the agent's D
    1
    """
    p = [check_number("cooperate", value, 0.0, 1.0) for value in cooperate]
    if len(transitions) != len(p) or any(len(row) != 4 for row in transitions):
        raise UserError(
            f"transitions: needs {len(p)} rows (one a state) of 4 states, for CC, CD, DC, DD"
        )
    for row in transitions:
        for state in row:
            check_whole("transitions", state, 0, len(p) - 1)
    first = check_whole("start", start, 0, len(p) - 1)
    moves = np.stack([p, 1 - np.array(p)], axis=-1).astype(np.float32)
    next_state = np.array(transitions, np.int32).reshape(-1, 2, 2)
    return Opponent(moves, next_state, np.array(first, np.int32), moves[first])


def watcher(states: Mapping[str, tuple[str, str, str]]) -> Opponent:
    """A machine for two players that goes by the agent's moves alone.

    Args:
      states: by name, its first one first; of each what it plays, "C" or "D", and the names of the
        states it goes to after the agent's C and after the agent's D.
    """
    numbers = {name: number for number, name in enumerate(states)}
    cooperate = [float(move == "C") for move, _, _ in states.values()]
    after = [[numbers[after_c], numbers[after_d]] for _, after_c, after_d in states.values()]
    return machine(cooperate, [row * 2 for row in after])  # the same after its own C and D


def memoryless(p_cooperate: float) -> Opponent:
    """Plays C with one probability, whatever happened.

    >>> jaxmoral.memoryless(0.75).moves
    array([[0.75, 0.25]], dtype=float32)
    """
    return machine([p_cooperate], [[0, 0, 0, 0]])


def memory_one(cc: float, cd: float, dc: float, dd: float, first: float = 1.0) -> Opponent:
    """Plays C with a probability that depends on the last round, its own move named first.

    Args:
      cc, cd, dc, dd: the four probabilities.
      first: the probability of C in the first round.

    >>> jaxmoral.memory_one(1, 0, 1, 0.25).moves[:, 0]
    array([1.  , 0.  , 1.  , 0.25, 1.  ], dtype=float32)
    """
    last_round = [[0, 1, 2, 3]] * 5
    return machine([cc, cd, dc, dd, first], last_round, start=4)


def noisy(opponent: Opponent, noise: float) -> Opponent:
    """A trembling hand: each move comes out as the other one with probability `noise`."""
    noise = check_number("noise", noise, 0.0, 1.0)
    moves, opening = (
        ((1 - noise) * chances + noise * chances[..., ::-1]).astype(np.float32)
        for chances in (opponent.moves, opponent.opening)
    )
    return opponent._replace(moves=moves, opening=opening)


# Of machines with a state for each move that they play next.
_C, _D = 0, 1


def next_move(after: Sequence[int], first: int = _C) -> Opponent:
    """A machine whose state is the move that it plays next.

    Args:
      after: what it plays after (its own move, the agent's) = CC, CD, DC, DD.
      first: what it plays first.
    """
    return machine([1, 0], [after, after], first)


def tit_for_tat() -> Opponent:
    """Repeats the agent's last legal move; it begins with C, but remembers a coin."""
    coin = np.array([0.5, 0.5], np.float32)
    return next_move([_C, _D, _C, _D])._replace(opening=coin)


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
    "suspicious-tit-for-tat": next_move([_C, _D, _C, _D], first=_D),
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
    "win-stay-lose-shift": next_move([_C, _D, _D, _C]),
    # C, D, C, D, ... from its own last move.
    "alternator": next_move([_D, _D, _C, _C]),
    # The opposite of the agent's last move (Axelrod library's AntiTitForTat).
    "anti-tit-for-tat": next_move([_D, _C, _D, _C]),
    # Begins with D, then the opposite of the agent's last move (Nachbar 1992).
    "bully": next_move([_D, _C, _D, _C], first=_D),
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


class Contributor(NamedTuple):
    """One of several others in a game of N players; all of them are alike.

    Attributes:
      cooperate: `[2 (its own last move), N (co-operators among the rest)]` probability of C.
      first: of C in the first round.
    """

    cooperate: np.ndarray
    first: float


def steady(num_players: int, p_cooperate: float) -> Contributor:
    """Contributes with one probability, whatever happened."""
    p = check_number("p_cooperate", p_cooperate, 0.0, 1.0)
    return Contributor(np.full((2, num_players), p), p)


def conditional(num_players: int, threshold: float | None = None) -> Contributor:
    """Contributes first, and then if at least `threshold` of the rest did (by default, half)."""
    needed = num_players // 2 if threshold is None else threshold
    needed = check_whole("threshold", needed, 0, num_players - 1)
    cooperates = (np.arange(num_players) >= needed) * 1.0
    return Contributor(np.tile(cooperates, (2, 1)), 1.0)


def noisy_contributor(num_players: int, name: str, noise: float) -> Contributor:
    """Another kind of contributor with a trembling hand."""
    plain = _get_contributor(num_players, name)
    noise = check_number("noise", noise, 0.0, 1.0)
    turned = Contributor(1 - plain.cooperate, 1 - plain.first)
    return Contributor(
        cooperate=(1 - noise) * plain.cooperate + noise * turned.cooperate,
        first=(1 - noise) * plain.first + noise * turned.first,
    )


# What the others do in a game of more than two players (after Fischbacher et al. 2001).
CONTRIBUTORS: dict[str, Callable[..., Contributor]] = {
    "always-cooperate": partial(steady, p_cooperate=1.0),
    "always-defect": partial(steady, p_cooperate=0.0),
    "random": lambda num_players, p_cooperate=0.5: steady(num_players, p_cooperate),
    "conditional": conditional,
    "noisy": noisy_contributor,
}


def _get_contributor(num_players: int, name: str) -> Contributor:
    return build("opponent", name, {}, CONTRIBUTORS, (num_players,))


def crowd(contributor: Contributor, num_players: int) -> Opponent:
    """All the other players of a game together, exactly.

    They are alike, so the state is what they saw last: the agent's move, and how many of them
    defected. Those who co-operated saw one co-operator less than those who did not.
    """
    others = num_players - 1
    moves = [_binomial_sum([(others, contributor.first)])]
    for agent in (0, 1):
        for defectors in range(num_players):
            cooperators = others - defectors
            seen = cooperators + (agent == 0)
            kept = contributor.cooperate[0, max(seen - 1, 0)]
            left = contributor.cooperate[1, min(seen, others)]
            moves.append(_binomial_sum([(cooperators, kept), (defectors, left)]))
    step = 1 + np.arange(2) * num_players + np.arange(num_players)[:, None]  # [defectors, agent]
    table = np.array(moves, np.float32)
    next_state = np.broadcast_to(step, (len(table), num_players, 2)).astype(np.int32)
    return Opponent(table, next_state, np.array(0, np.int32), table[0])


def _binomial_sum(parts: Sequence[tuple[int, float]]) -> np.ndarray:
    """Distribution of the number of D among groups of `size` who each play C with probability p."""
    total = np.ones(1)
    for size, p in parts:
        k = np.arange(size + 1)
        ways = np.array([comb(size, int(j)) for j in k], float)
        total = np.convolve(total, ways * (1 - p) ** k * p ** (size - k))
    return total


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
        return crowd(_get_contributor(game.num_players, name), game.num_players)
    families = FAMILIES | {"noisy": partial(noisy_named, own)}
    return build("opponent", name, {**OPPONENTS, **own}, families, (game,))


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


def stack(opponents: Sequence[Opponent]) -> Opponent:
    """Stacks machines on a new leading axis, padded to one number of states for `vmap`.

    Padding states are never entered: no real state leads to one.
    """
    size = max(opponent.moves.shape[-2] for opponent in opponents)

    def pad(opponent: Opponent) -> Opponent:
        missing = (0, size - opponent.moves.shape[-2])
        lead = [(0, 0)] * np.ndim(opponent.start)  # machines that are stacks themselves
        return opponent._replace(
            moves=np.pad(opponent.moves, (*lead, missing, (0, 0)), mode="edge"),
            next_state=np.pad(opponent.next_state, (*lead, missing, (0, 0), (0, 0))),
        )

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(pad, opponents))


def side_by_side(opponent: Opponent) -> Opponent:
    """A stack of machines as one whose states are all of theirs.

    Its `start` `[num_machines]` and `opening` `[num_machines, num_moves]` are each machine's. A
    machine that is no stack counts as a stack of one.
    """
    if jnp.ndim(opponent.start) == 0:
        opponent = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], opponent)
    num_machines, num_states, num_moves = opponent.moves.shape
    first = jnp.arange(num_machines) * num_states
    return Opponent(
        moves=jnp.reshape(opponent.moves, (-1, num_moves)),
        next_state=jnp.reshape(
            opponent.next_state + first[:, None, None, None], (-1, num_moves, 2)
        ),
        start=opponent.start + first,
        opening=jnp.asarray(opponent.opening),
    )
