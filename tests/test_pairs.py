"""Closed forms of two players against simulation, the chain, and brute-force best responses."""

import itertools

import numpy as np
import pytest

from jaxmoral.measuring.measures import fingerprint
from jaxmoral.world import chain, evolution, pairs
from jaxmoral.world.games import get_game
from jaxmoral.world.machines import memory_one, noisy
from jaxmoral.world.memory import make_memory
from jaxmoral.world.opponents import get_opponent


def random_policy(num_histories, seed):
    generator = np.random.default_rng(seed)
    policy = generator.dirichlet([1, 1, 0.3], num_histories)
    return policy


def simulate(one, two, num_rounds, num_episodes, seed):
    """Shares `[num_previous, our outcomes, their outcomes]` by playing the two structures out."""
    random = np.random.default_rng(seed)
    a, b = one.structure, two.structure
    num_moves = a.next_state.shape[2]
    none = a.next_state.shape[1] * num_moves
    shares = np.zeros((none + 1, one.outcomes.shape[1], two.outcomes.shape[1]))

    def advance(state, own, other):
        after = a.next_state[state[0], own, other], b.next_state[state[1], other, own]
        return after, own * num_moves + other

    for _ in range(num_episodes):
        state, previous = (a.start, b.start), none

        for index in range(max(a.tosses, b.tosses)):
            moves = []
            for player, here in zip((one, two), state, strict=True):
                tosses = player.structure.tosses or index == 0
                chance = player.opening if tosses else player.outcomes[here]
                drawn = random.choice(len(chance), p=chance)
                moves.append(drawn if tosses else player.structure.effective[here, drawn])
            state, previous = advance(state, *moves)
        for _ in range(num_rounds):
            chosen = [
                random.choice(player.outcomes.shape[1], p=player.outcomes[here])
                for player, here in zip((one, two), state, strict=True)
            ]
            shares[previous, chosen[0], chosen[1]] += 1
            moves = a.effective[state[0], chosen[0]], b.effective[state[1], chosen[1]]
            state, previous = advance(state, *moves)
    return shares / shares.sum()


def players():
    tough = get_opponent("noisy(conditional(2),0.2)", get_game("public-goods(4)"))
    return {
        "agents": (
            pairs.agent_player(make_memory(), random_policy(4, 0)),
            pairs.agent_player(make_memory(2), random_policy(16, 1), noise=0.1),
        ),
        "agent and machine": (
            pairs.agent_player(make_memory(), random_policy(4, 2)),
            pairs.machine_player(get_opponent("prober")),
        ),
        "blank agent and machine": (
            pairs.agent_player(make_memory(1, 2, True), random_policy(5, 3)),
            pairs.machine_player(get_opponent("joss")),
        ),
        "blank agent and a longer memory": (
            pairs.agent_player(make_memory(0, 2, True), random_policy(1, 6)),
            pairs.agent_player(make_memory(2), random_policy(16, 7)),
        ),
        "machines": (
            pairs.machine_player(memory_one(0.9, 0.2, 0.5, 0.3, first=0.6)),
            pairs.machine_player(noisy(get_opponent("two-tits-for-tat"), 0.1)),
        ),
        "agent and crowd": (
            pairs.agent_player(make_memory(1, 4), random_policy(8, 4)),
            pairs.machine_player(tough),
        ),
    }


@pytest.mark.parametrize("name", players())
def test_a_meeting_is_what_simulation_gives(name):
    one, two = players()[name]
    exact = pairs.meet([one], [two], num_rounds=4).episode[0, 0]
    assert exact.sum() == pytest.approx(1)
    sampled = simulate(one, two, 4, 10_000, seed=0)
    np.testing.assert_allclose(exact, sampled, atol=5 * 0.5 / np.sqrt(10_000))


@pytest.mark.parametrize("name", players())
def test_the_long_run_is_that_of_long_episodes(name):
    one, two = players()[name]
    meeting = pairs.meet([one], [two], num_rounds=20_000)
    np.testing.assert_allclose(meeting.long_run, meeting.episode, atol=1e-3)


def test_the_long_run_of_periodic_and_absorbing_chains():
    machine = lambda name: pairs.machine_player(get_opponent(name))
    cooperation = lambda a, b: (
        pairs.meet([machine(a)], [machine(b)], num_rounds=1).long_run[0, 0, :, 0].sum()
    )
    assert cooperation("tit-for-tat", "suspicious-tit-for-tat") == pytest.approx(0.5)  # in turns
    assert cooperation("alternator", "always-defect") == pytest.approx(0.5)
    assert cooperation("grim-trigger", "alternator") == pytest.approx(0, abs=1e-8)
    assert cooperation("tit-for-tat", "always-cooperate") == pytest.approx(1)


@pytest.mark.parametrize("opponent", ["tit-for-tat", "prober", "joss"])
def test_it_equals_the_chain_that_training_uses(opponent):
    memory, policy = make_memory(), random_policy(4, 5)
    machine = get_opponent(opponent)
    ours, theirs = pairs.agent_player(memory, policy), pairs.machine_player(machine)
    meeting = pairs.meet([ours], [theirs], num_rounds=5)
    found = chain.visits(chain.against(memory, machine), np.float32(policy), num_rounds=5)
    np.testing.assert_allclose(meeting.episode[0, 0], found, atol=1e-6)


def test_groups_are_computed_as_each_pair_alone():
    ours = [pairs.agent_player(make_memory(), random_policy(4, seed)) for seed in range(3)]
    others = [pairs.machine_player(memory_one(p, 0.1, 0.8, p)) for p in (0.2, 0.9)]
    together = pairs.meet(ours, others, num_rounds=6)
    for i, j in itertools.product(range(3), range(2)):
        alone = pairs.meet([ours[i]], [others[j]], num_rounds=6)
        np.testing.assert_allclose(together.episode[i, j], alone.episode[0, 0], atol=1e-12)
        np.testing.assert_allclose(together.long_run[i, j], alone.long_run[0, 0], atol=1e-9)
    names = ["tit-for-tat", "anti-tit-for-tat", "grim-trigger", "random", "always-defect"]
    machines = [pairs.machine_player(get_opponent(name)) for name in names]
    assert pairs.group_players(machines) == [[0], [1], [2], [3, 4]]


@pytest.mark.parametrize("name", ["grim-trigger", "joss", "tit-for-two-tats", "prober"])
def test_the_best_response_is_the_best_of_all_plans(name):
    """Against a plain search over everything that can be done in five rounds."""
    opponent, payoffs = get_opponent(name), get_game("ipd").payoffs[0].astype(float)

    def search(state, left):
        if left == 0:
            return 0.0
        values = []
        for own in (0, 1):
            value = 0.0
            for other in (0, 1):
                p = float(opponent.moves[state, other])
                after = int(opponent.next_state[state, other, own])
                value += p * (payoffs[own, other] + search(after, left - 1)) if p else 0.0
            values.append(value)
        return max(values)

    player = pairs.machine_player(opponent)
    expected = search(int(opponent.start), 5) / 5
    assert pairs.best_response(player, payoffs, num_rounds=5) == pytest.approx(expected)


def test_known_best_responses():
    payoffs = get_game("ipd").payoffs[0].astype(float)

    def best(name):
        player = pairs.machine_player(get_opponent(name))
        return pairs.best_response(player, payoffs, num_rounds=100)

    assert best("always-cooperate") == pytest.approx(4)
    assert best("always-defect") == pytest.approx(1)
    assert best("tit-for-tat") == pytest.approx((99 * 3 + 4) / 100)  # defect in the last round
    # An agent that plays tit-for-tat, after a remembered coin: C half the time.
    mirror = np.eye(3)[[0, 1, 0, 1]]
    agent = pairs.agent_player(make_memory(), mirror)
    after_d = (0 + 98 * 3 + 4) / 100  # C at once brings co-operation back
    assert pairs.best_response(agent, payoffs, num_rounds=100) == pytest.approx(
        0.5 * (99 * 3 + 4) / 100 + 0.5 * after_d
    )


def test_replicator_dynamics_end_where_theory_says():
    hawk_dove = np.array([[-1.0, 4.0], [0.0, 2.0]])  # V = 4, C = 6: hawks V / C
    path = np.asarray(evolution.replicator(np.float32(hawk_dove), np.float32([0.1, 0.9])))
    np.testing.assert_allclose(path[0], [0.1, 0.9], atol=1e-6)
    np.testing.assert_allclose(path[-1], [2 / 3, 1 / 3], atol=1e-3)
    np.testing.assert_allclose(path.sum(1), 1, atol=1e-5)
    dilemma = np.float32(get_game("ipd").payoffs[0])
    last = np.asarray(evolution.replicator(dilemma, np.float32([0.99, 0.01])))[-1]
    assert last[1] > 0.999


def test_fixation_is_that_of_the_moran_process():
    """Against the absorption probability of the birth-death chain, solved as a linear system."""
    payoffs = np.array([[3.0, 0.5], [4.0, 1.0]])
    size, selection = 12, 0.7
    found = evolution.fixation(payoffs, size, selection)
    scaled = payoffs / (payoffs.max() - payoffs.min())
    for resident, mutant in ((0, 1), (1, 0)):
        system, right = np.eye(size + 1), np.zeros(size + 1)
        right[size] = 1
        for k in range(1, size):
            meets = lambda me, k=k, mutant=mutant, resident=resident: (
                (
                    (k - (me == mutant)) * scaled[me, mutant]
                    + (size - k - (me == resident)) * scaled[me, resident]
                )
                / (size - 1)
            )
            fit_m, fit_r = (np.exp(selection * meets(who)) for who in (mutant, resident))
            total = k * fit_m + (size - k) * fit_r
            up = k * fit_m / total * (size - k) / size
            down = (size - k) * fit_r / total * k / size
            system[k, k], system[k, k + 1], system[k, k - 1] = up + down, -up, -down
        expected = np.linalg.solve(system, right)[1]
        assert found[resident, mutant] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(np.diag(evolution.fixation(payoffs, size)), 1 / size, rtol=1e-4)


def test_rare_mutants_hold_the_population_in_proportion():
    shares = evolution.stationary(np.array([[0.1, 0.3], [0.1, 0.1]]))
    np.testing.assert_allclose(shares, [0.25, 0.75], atol=1e-6)


def test_fingerprints_of_known_policies():
    rates = np.array([0.0, 0.3, 1.0])
    outcomes = np.eye(3)[[[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]]
    players = [pairs.agent_player(make_memory(), policy) for policy in outcomes]
    tit_for_tat, always_cooperate, win_stay = fingerprint(players, rates)
    np.testing.assert_allclose(tit_for_tat, rates, atol=1e-6)
    np.testing.assert_allclose(always_cooperate, 1)
    # Win-stay lose-shift: C with probability 1/2 at any rate strictly between.
    np.testing.assert_allclose(win_stay[1], 0.5, atol=1e-6)
