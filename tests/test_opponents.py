"""Opponents against the Axelrod library, and against plain definitions of what they are."""

import itertools
import json
from collections import defaultdict
from math import prod
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmoral.config import load, load_members
from jaxmoral.errors import UserError
from jaxmoral.learning.environments import environment
from jaxmoral.learning.mixture import player_games
from jaxmoral.learning.population import stack_environments
from jaxmoral.learning.resolve import resolve
from jaxmoral.world import crowds, games, machines, opponents
from jaxmoral.world.opponents import get_opponent

GOLDEN = json.loads((Path(__file__).parent / "golden" / "opponents.json").read_text())
AXELRODS = games.symmetric("axelrod", 3, 0, 5, 1)  # the game that the library plays
ROUNDS, MATCHES = 200, 100

# Those that draw: our name, and the library's class and what it is given.
STOCHASTIC = {
    "random": ("Random", 0.5),
    "random(0.3)": ("Random", 0.3),
    "joss": ("FirstByJoss",),
    "firm-but-fair": ("FirmButFair",),
    "generous-tit-for-tat": ("GTFT", 1 / 3),
    "memory-one(0.935, 0.229, 0.266, 0.42)": ("StochasticCooperator",),
    "memory-one(0.9, 0.3, 0.6, 0.2)": ("MemoryOnePlayer", (0.9, 0.3, 0.6, 0.2)),
    "memory-one(1, 1, 0, 0, 0.6)": ("ALLCorALLD",),
    f"extortionate(2, {1 / 9})": ("ZDExtort2",),
    f"extortionate(4, {4 / 17})": ("ZDExtort4",),
    "generous-zero-determinant(2, 0.25)": ("ZDGTFT2",),
    "generous-zero-determinant(2, 0.125)": ("ZDGen2",),
}
PLAYERS = {name: one["player"] for name, one in GOLDEN["opponents"].items()} | STOCHASTIC


def state_after(opponent, history):
    """The state after rounds of (its own move, the agent's)."""
    state = opponent.start
    for own, agent in history:
        state = opponent.next_state[state, own, agent]
    return state


def distribution(opponent, history):
    return np.asarray(opponent.moves, float)[state_after(opponent, history)]


# --- The Axelrod library ---


@pytest.mark.parametrize("name", GOLDEN["opponents"])
def test_deterministic_opponents_follow_the_golden_file(name):
    opponent = get_opponent(name)
    for agent, moves in GOLDEN["opponents"][name]["moves"].items():
        state, found = opponent.start, ""
        for theirs in GOLDEN["agents"][agent]:
            own = int(opponent.moves[state].argmax())
            assert opponent.moves[state, own] == 1
            state = opponent.next_state[state, own, "CD".index(theirs)]
            found += "CD"[own]
        assert found == moves, agent


def test_every_opponent_is_compared_with_the_library():
    assert set(opponents.OPPONENTS) <= set(PLAYERS)


@pytest.fixture(scope="module")
def play():
    """Matches of a library player, `[MATCHES, ROUNDS, 2 (its move, the agent's)]` as realised.

    The agents are the golden scripts and then coins of every bias. A script is as long as a match,
    and every match is new: see scripts/golden_opponents.py.
    """
    import axelrod as axl  # takes long, and is to fail where it is missing

    def rounds(player, seed, noise):
        name, *given = player
        given = [tuple(value) if isinstance(value, list) else value for value in given]
        draw = np.random.default_rng(seed)
        scripts = list(GOLDEN["agents"].values())
        for bias in np.linspace(0, 1, MATCHES - len(scripts)):
            scripts.append(["CD"[int(move)] for move in draw.random(ROUNDS) < bias])
        found = []
        for index, script in enumerate(scripts):
            agent = axl.MockPlayer([axl.Action.from_char(move) for move in script])
            pair = getattr(axl, name)(*given), agent
            match = axl.Match(pair, turns=ROUNDS, noise=noise, seed=1000 * seed + index)
            found.append([[move.value for move in moves] for moves in match.play()])
        return np.array(found)  # C is 0 and D is 1 there too

    return rounds


def judge(opponent, rounds):
    """How well a machine foretells moves that were made.

    Returns:
      How many it calls impossible, and the largest of these differences in standard errors: of the
      moves' mean likelihood from that of its own draws, the mean of p^2 + (1-p)^2; and, in each
      state and after each kind of last round, of C's share from the state's probability.
    """
    own, agent = rounds[..., 0], rounds[..., 1]
    states = np.full(own.shape, opponent.start)
    for t in range(1, own.shape[1]):
        states[:, t] = opponent.next_state[states[:, t - 1], own[:, t - 1], agent[:, t - 1]]
    chances = np.asarray(opponent.moves, float)[states]
    likelihood = np.take_along_axis(chances, own[..., None], -1)[..., 0]
    mean, square = (chances**2).sum(-1), (chances**3).sum(-1)
    sums = [(likelihood.sum() - mean.sum(), (square - mean**2).sum())]
    last = np.pad(2 * own + agent, ((0, 0), (1, 0)), constant_values=4)[:, :-1]
    for state, kind in np.ndindex(len(opponent.moves), 5):
        moves, p = own[(states == state) & (last == kind)], float(opponent.moves[state, 0])
        if len(moves) >= 100:  # fewer are no normal distribution
            sums.append(((moves == 0).sum() - len(moves) * p, len(moves) * p * (1 - p)))
    errors = [abs(total) / np.sqrt(max(variance, 1e-3)) for total, variance in sums]
    return int((likelihood == 0).sum()), max(errors)


@pytest.mark.parametrize("name", PLAYERS)
def test_opponents_move_as_the_library_s(play, name):
    found = play(PLAYERS[name], 1, 0.0)
    impossible, error = judge(get_opponent(name, AXELRODS), found)
    assert impossible == 0
    assert error < 4


@pytest.mark.parametrize("name", [*GOLDEN["opponents"], "joss", "firm-but-fair"])
def test_noisy_opponents_move_as_the_library_s(play, name):
    opponent = get_opponent(f"noisy({name}, 0.1)")
    impossible, error = judge(opponent, play(PLAYERS[name], 2, 0.1))
    assert impossible == 0
    assert error < 4


@pytest.mark.parametrize(
    ("claim", "player", "noise"),
    [
        ("tit-for-tat", ("TitFor2Tats",), 0.0),
        ("random(0.5)", ("Alternator",), 0.0),
        ("joss", ("FirstByJoss", 0.85), 0.0),
        # These two are the same while nothing trembles.
        ("noisy(memory-one(1, 0, 0, 0), 0.1)", ("Grudger",), 0.1),
        ("noisy(alternator, 0.1)", ("Cycler", "CD"), 0.1),
    ],
)
def test_another_strategy_is_caught(play, claim, player, noise):
    impossible, error = judge(get_opponent(claim), play(player, 3, noise))
    assert impossible > 100 or error > 6


# --- Definitions ---


@pytest.mark.parametrize("seed", range(10))
def test_memory_one_is_a_function_of_the_last_round(seed):
    draw = np.random.default_rng(seed)
    *vector, first = draw.random(5)
    opponent = machines.memory_one(*vector, first)
    for size in range(6):
        history = draw.integers(0, 2, (size, 2))
        expected = vector[2 * history[-1][0] + history[-1][1]] if size else first
        np.testing.assert_allclose(distribution(opponent, history)[0], expected, rtol=1e-6)


def test_tit_for_tat_remembers_a_coin_and_others_their_own_first_move():
    first = {name: one.moves[one.start].tolist() for name, one in opponents.OPPONENTS.items()}
    assert {tuple(p) for p in first.values()} == {(1, 0), (0.5, 0.5), (0, 1)}
    first["tit-for-tat"] = [0.5, 0.5]
    assert {n: one.opening.tolist() for n, one in opponents.OPPONENTS.items()} == first
    opening = lambda name: get_opponent(name).opening.tolist()
    assert opening("memory-one(0, 0, 0, 0, 0.25)") == [0.25, 0.75]
    assert opening("noisy(tit-for-tat, 0.1)") == [0.5, 0.5]
    assert opening("noisy(always-defect, 0.25)") == [0.25, 0.75]
    later = machines.machine([1, 0.25], [[0, 1, 0, 1]] * 2, start=1)
    assert distribution(later, []).tolist() == later.opening.tolist() == [0.25, 0.75]


def test_a_trembling_hand_swaps_each_move_and_nothing_else():
    for name, plain in opponents.OPPONENTS.items():
        found = get_opponent(f"noisy({name}, 0.1)")
        for before, after in ((plain.moves, found.moves), (plain.opening, found.opening)):
            np.testing.assert_allclose(after, 0.9 * before + 0.1 * (1 - before), atol=1e-7)


def test_stacked_machines_equal_single_ones():
    alone = [get_opponent(name) for name in [*PLAYERS, "noisy(prober, 0.2)"]]
    stacked = machines.stack(alone)
    assert stacked.moves.shape == (len(alone), 7, 2)
    history = np.random.default_rng(0).integers(0, 2, (30, 2))
    walk = lambda one: [one.moves[state_after(one, history[:t])] for t in (0, 1, 2, 3, 4, 30)]
    together = jax.vmap(walk)(jax.tree.map(jax.numpy.asarray, stacked))
    expected = np.moveaxis(np.array([walk(one) for one in alone]), 0, 1)
    np.testing.assert_array_equal(np.array(together), expected)
    np.testing.assert_array_equal(stacked.opening, [one.opening for one in alone])


# --- The others in a game of N players ---

CONTRIBUTORS = ["always-cooperate", "always-defect", "random", "random(0.3)", "conditional"]
CONTRIBUTORS += ["conditional(1)", "noisy(conditional, 0.2)", "noisy(noisy(random(0.9), 0.1), 0.1)"]


def contributors(num_players):
    """The named ones, and one whose own last move counts."""
    for name in CONTRIBUTORS:
        yield crowds.get_contributor(num_players, name)
    table = np.random.default_rng(num_players).random((2, num_players))
    yield crowds.Contributor(table, 0.7)


def counts_of_individuals(contributor, num_players, agent):
    """Exact probabilities of `{(defectors in round 1, in round 2, ...)}`, each player by itself."""
    ways = {((), ()): 1.0}  # {(counts, last moves): probability}
    for t in range(len(agent)):
        grown = defaultdict(float)
        for (counts, last), weight in ways.items():
            chances = [contributor.first] * (num_players - 1)
            for player, move in enumerate(last):
                rest = [*last[:player], *last[player + 1 :], agent[t - 1]]
                chances[player] = contributor.cooperate[move, rest.count(0)]
            for moves in itertools.product((0, 1), repeat=num_players - 1):
                p = prod(1 - p if move else p for p, move in zip(chances, moves, strict=True))
                grown[(*counts, sum(moves)), moves] += weight * p
        ways = grown
    found = defaultdict(float)
    for (counts, _), weight in ways.items():
        found[counts] += weight
    return found


@pytest.mark.parametrize("num_players", [3, 4, 5])
def test_a_crowd_moves_as_its_members_one_by_one(num_players):
    for contributor in contributors(num_players):
        crowd = crowds.crowd(contributor, num_players)
        assert crowd.moves.shape == (2 * num_players + 1, num_players)
        for agent in itertools.product((0, 1), repeat=3):
            expected = counts_of_individuals(contributor, num_players, agent)
            assert sum(expected.values()) == pytest.approx(1)
            for counts in itertools.product(range(num_players), repeat=3):
                history = list(zip(counts, agent, strict=True))
                found = [distribution(crowd, history[:t])[counts[t]] for t in range(3)]
                assert prod(found) == pytest.approx(expected[counts], abs=1e-6)


def test_a_crowd_of_one_is_the_memory_one_machine():
    for contributor in contributors(2):
        after_c, after_d = contributor.cooperate[:, ::-1]  # by the agent's move, C first
        expected = machines.memory_one(*after_c, *after_d, contributor.first)
        found = crowds.crowd(contributor, 2)
        for history in [(), *([(own, agent)] for own, agent in np.ndindex(2, 2))]:
            p = distribution(expected, history)
            np.testing.assert_allclose(distribution(found, history), p, atol=1e-6)


def test_a_threshold_counts_the_agent_and_not_oneself():
    p = lambda threshold, own, rest: crowds.conditional(5, threshold).cooperate[own, rest]
    for own in (0, 1):
        assert [p(None, own, rest) for rest in range(5)] == [0, 0, 1, 1, 1]
        assert [p(4, own, rest) for rest in range(5)] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("num_players", [2, 3, 5])
def test_moves_are_distributions_and_transitions_lead_to_states(num_players):
    game = AXELRODS if num_players == 2 else games.get_game(f"public-goods({num_players})")
    for name in PLAYERS if num_players == 2 else CONTRIBUTORS:
        found = get_opponent(name, game)
        size = len(found.moves)
        assert found.moves.shape == found.next_state.shape[:-1] == (size, num_players)
        np.testing.assert_allclose([*found.moves.sum(-1), found.opening.sum()], 1, atol=1e-6)
        assert found.moves.min() >= 0
        assert set(found.next_state.flat) <= set(range(size))


# --- Zero-determinant strategies ---

FAMILIES = {"extortionate": (1, 1), "generous-zero-determinant": (0, 0)}  # the baseline's cell


def long_run(opponent, agent, game):
    """Mean points of a memory-one machine and an agent, `agent[its last move, the machine's]`."""
    p = np.asarray(opponent.moves, float)[:4, 0].reshape(2, 2)  # [its own last move, the agent's]
    both = [(p[own, other], agent[other, own]) for own, other in np.ndindex(2, 2)]
    chain = np.array([np.outer([a, 1 - a], [b, 1 - b]).ravel() for a, b in both])
    equations = np.vstack([chain.T - np.eye(4), np.ones(4)])
    share = np.linalg.lstsq(equations, [0, 0, 0, 0, 1], rcond=None)[0]
    agents, own = game.payoffs.astype(float).transpose(0, 2, 1).reshape(2, 4)
    return share @ own, share @ agents


def check_relation(opponent, family, factor, game, seed):
    cell = FAMILIES[family]
    agents_base, own_base = game.payoffs[:, *cell].astype(float)
    for agent in np.random.default_rng(seed).uniform(0.05, 0.95, (5, 2, 2)):
        own, agents = long_run(opponent, agent, game)
        assert own - own_base == pytest.approx(factor * (agents - agents_base), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("game", ["ipd", "prisoners-dilemma", "donation(3, 1)"])
def test_zero_determinant_strategies_enforce_their_relation(family, game):
    game = games.get_game(game)
    for factor, scale in ((1, ""), (1.5, ""), (3, ""), (2, ", 0.02"), (4, ", 0.05")):
        opponent = get_opponent(f"{family}({factor}{scale})", game)
        check_relation(opponent, family, factor, game, 0)


@pytest.mark.filterwarnings("error")  # of a division by 0 where all drift is 0
@pytest.mark.parametrize("family", FAMILIES)
def test_in_other_games_they_enforce_it_or_are_refused(family):
    names = [*games.GAMES, *games.ASYMMETRIC, *(f"ordinal({i})" for i in range(1, 145))]
    same_roles = []
    for game, factor in itertools.product(map(games.get_game, names), (1.0, 2.0)):
        try:
            opponent = get_opponent(f"{family}({factor})", game)
        except UserError:
            continue
        check_relation(opponent, family, factor, game, 1)
        same_roles.append(np.array_equal(game.payoffs, games.mirror(game).payoffs))
    assert set(same_roles) == {True, False}  # both players' points count where they differ
    assert len(same_roles) < 2 * len(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_games_have_their_own_strategy(family):
    """In every update, also as a member of a population beside a larger machine."""
    flags = ["--env.payoff_draws", "3", "--env.payoff_range", "[-5, 10]", "--env.episodes", "6"]
    members = load_members(None, [*flags, "--env.opponent", f"[{family}(3), prober]"])
    for update in (0, 7):
        own = environment(members[f"env.opponent={family}(3)"], update).opponent
        drawn = player_games(members[f"env.opponent={family}(3)"], update)[0]
        each = [environment(member, update) for member in members.values()]
        together = stack_environments(each).opponent
        assert together.moves.shape == (2, 3, 7, 2)
        for index, game in enumerate(drawn):
            machine = jax.tree.map(lambda leaf, at=index: leaf[at], own)
            check_relation(machine, family, 3, game, update)
            np.testing.assert_array_equal(together.moves[0, index, :5], machine.moves)
            np.testing.assert_array_equal(together.next_state[0, index, :5], machine.next_state)
        base = get_opponent(f"{family}(3)")
        assert not np.array_equal(own.moves, np.broadcast_to(base.moves, own.moves.shape))


@pytest.mark.parametrize("name", ["extortionate(1.5)", "generous-zero-determinant(2, 0.1)"])
@pytest.mark.parametrize("game", ["ipd", "icn", "trust"])
def test_payoffs_without_a_strategy_are_refused_before_the_first_update(name, game):
    """What the corners of all draws say is true of all draws."""
    game, fits = games.get_game(game), []
    random = np.random.default_rng(0)
    for drawn in (games.draw_payoffs(random, game, -1, 4) for _ in range(300)):
        try:
            get_opponent(name, drawn)
            fits.append(True)
        except UserError:
            fits.append(False)
    flags = ["--env.payoff_draws", "2", "--env.payoff_range", "[-1, 4]", "--env.game", game.name]
    config = load(None, [*flags, "--env.opponent", name])
    if all(fits):
        resolve(config)
    else:
        with pytest.raises(UserError, match="has no zero-determinant strategy"):
            resolve(config)


# --- Bad input ---


def refuses(message, function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "game", "message"),
    [
        ("randm", "ipd", "opponent: unknown name 'randm' (did you mean 'random'?)"),
        ("tit-for-tat", "public-goods(3)", "unknown name 'tit-for-tat'"),
        ("random(1.5)", "ipd", "needs a finite number from 0 to 1, got 1.5"),
        ("memory-one(1, 0, 1, -0.1)", "ipd", "needs a finite number from 0 to 1, got -0.1"),
        ("memory-one(1, 0, 1)", "ipd", "does not fit memory-one(cc, cd, dc, dd, first)"),
        ("noisy(tit-for-tat)", "ipd", "does not fit noisy(name, noise)"),
        ("noisy(tit-for-tat, 0.1", "ipd", "lacks its closing bracket"),
        ("conditional(3)", "public-goods(3)", "threshold: needs a whole number from 0 to 2"),
        ("noisy(conditional, 2)", "public-goods(3)", "noise: needs a finite number from 0 to 1"),
        ("extortionate(0.5)", "ipd", "factor: needs a finite number from 1"),
        ("extortionate(2, fast)", "ipd", "scale: needs a finite number"),
        ("extortionate(2, 0)", "ipd", "a smaller scale above 0"),
        ("extortionate(2, 1)", "ipd", "a smaller scale above 0"),
        ("extortionate(2)", "harmony", "harmony has no zero-determinant strategy of factor 2"),
        ("generous-zero-determinant(2)", "harmony", "harmony has no zero-determinant strategy"),
    ],
)
def test_a_bad_name_is_refused(name, game, message):
    refuses(message, get_opponent, name, games.get_game(game))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"cooperate": [1.5], "transitions": [[0] * 4]}, "x.cooperate: needs a finite number from"),
        ({"cooperate": [1, 0], "transitions": [[0] * 4]}, "x.transitions: needs 2 rows"),
        ({"cooperate": [1], "transitions": [[0] * 3]}, "of 4 states, for CC, CD, DC, DD"),
        ({"cooperate": [1], "transitions": [[0, 0, 0, 1]]}, "x.transitions: needs a whole number"),
        ({"cooperate": [1], "transitions": [[0] * 4], "start": 1}, "x.start: needs a whole number"),
        ({"cooperate": [1]}, "opponents.x: needs cooperate, transitions and perhaps start"),
        ({"cooperate": [1], "transitions": [[0] * 4], "end": 0}, "needs cooperate, transitions"),
        ({"cooperate": 1, "transitions": [[0] * 4]}, "opponents.x: needs a list of numbers"),
    ],
)
def test_a_bad_machine_is_refused(described, message):
    refuses(message, opponents.make_opponent, "x", described)


def test_a_name_is_not_taken_twice():
    mirrored = {"cooperate": [1, 0], "transitions": [[0, 1, 0, 1]] * 2}
    assert list(opponents.make_opponents({"mine": mirrored})) == ["mine"]
    same = {"cooperate": [0.5], "transitions": [[0] * 4]}
    assert list(opponents.make_opponents({"random": same})) == ["random"]
    message = "opponents.random: the name is taken by another opponent"
    refuses(message, opponents.make_opponents, {"random": mirrored})
    message = "opponents.noisy: the name already stands for several opponents"
    refuses(message, opponents.make_opponents, {"noisy": mirrored})
