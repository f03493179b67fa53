"""Rollouts and the exact chain against a plain Python loop over episodes and rounds."""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from playing import only_player, play, play_alone

from jaxmoral.measuring import protocols
from jaxmoral.world import chain, games, machines, opponents, rewards
from jaxmoral.world.memory import make_memory
from jaxmoral.world.rollout import Environment

COIN = np.array([0.25, 0.75], np.float32)
# C after C; after a D of the agent's, C with probability 0.3.
GENEROUS = machines.machine([1.0, 0.3], [[0, 1, 0, 1]] * 2)._replace(opening=COIN)
MACHINES = opponents.OPPONENTS | {"generous": GENEROUS}
TRIO = "public-goods(3)"
ONE = make_memory()  # a remembered round, two players


class Setting(NamedTuple):
    """What an agent remembers, in which game it meets whom, and how often its hand trembles."""

    remembered: int = 1
    blank: bool = False
    game: str = "ipd"
    opponent: str = "generous"
    noise: float | None = None

    @property
    def memory(self):
        return make_memory(self.remembered, games.get_game(self.game).num_players, self.blank)

    @property
    def opening(self):
        """How many rounds are drawn before the first."""
        return 0 if self.blank else max(self.remembered, 1)

    def machine(self):
        if self.opponent in MACHINES:
            return MACHINES[self.opponent]
        return opponents.get_opponent(self.opponent, games.get_game(self.game))

    def environment(self, name="utilitarian"):
        noise = None if self.noise is None else np.float32(self.noise)
        return Environment(self.machine(), table(name, self.game)[None], noise)

    def shown(self, rounds):
        """Which history the prompt shows after some rounds."""
        return self.memory.histories.index(tuple(rounds[max(len(rounds) - self.remembered, 0) :]))


SETTINGS = [
    Setting(remembered=0),
    Setting(remembered=0, blank=True, opponent="prober"),
    Setting(remembered=2, opponent="prober"),
    Setting(remembered=1, blank=True),
    Setting(remembered=2, blank=True, opponent="joss"),
    Setting(game=TRIO, opponent="noisy(conditional, 0.2)"),
    Setting(remembered=2, blank=True, game=TRIO, opponent="random(0.3)"),
]
NOISY = [setting._replace(noise=0.2) for setting in [Setting(), *SETTINGS]]


def random_table(seed, memory=ONE):
    shape = (4 * len(memory.histories), 3)
    return jax.nn.log_softmax(jax.random.normal(jax.random.key(seed), shape))


def sampled_visits(played, memory):
    return jax.jit(partial(protocols.sampled_visits, memory=memory))(played)


def table(name, game):
    return rewards.reward_table(games.get_game(game), rewards.get_reward(name), 2.5, -6.25)


def kind_of(rounds, num_moves):
    return rounds[-1][0] * num_moves + rounds[-1][1] if rounds else 2 * num_moves


def effects(outcome, rounds, noise):
    """The moves that an outcome can count as, with their probabilities."""
    if outcome == 2:
        return [(rounds[-1][0] if rounds else 0, 1.0)]
    return [(outcome, 1 - (noise or 0)), (1 - outcome, noise or 0)]


def visits_by_enumeration(policy, setting, num_rounds):
    """Every path of the episode tree, weighted by its probability."""
    opponent = setting.machine()
    chances, num_moves = np.asarray(opponent.moves, float), opponent.moves.shape[1]
    shares = np.zeros((2 * num_moves + 1, 3, num_moves))

    def play(rounds, state, weight, left):
        if left == 0 or weight == 0:
            return
        for outcome, other in np.ndindex(3, num_moves):
            p = weight * policy[setting.shown(rounds), outcome] * chances[state, other]
            shares[kind_of(rounds, num_moves), outcome, other] += p / num_rounds
            for own, q in effects(outcome, rounds, setting.noise):
                following = opponent.next_state[state, other, own]
                play([*rounds, (own, other)], following, p * q, left - 1)

    def remember(rounds, state, weight):
        if len(rounds) == setting.opening:
            play(rounds, state, weight, num_rounds)
            return
        q = chances[state] if rounds else opponent.opening
        for own, other in np.ndindex(2, num_moves):
            following = opponent.next_state[state, other, own]
            remember([*rounds, (own, other)], following, weight * 0.5 * float(q[other]))

    remember([], int(opponent.start), 1.0)
    return shares


def mean_policy(log_probs):
    """Averaged over the four label orders."""
    return np.exp(log_probs).reshape(-1, 4, 3).mean(1)


def exact_visits(setting, log_probs, num_rounds):
    memory = setting.memory

    @jax.jit
    def visits(log_probs, machine, noise):
        policy = chain.by_state(memory, chain.memory_policy(log_probs))
        walk = chain.against(memory, machine, noise=noise)
        return chain.visits(walk, policy, num_rounds=num_rounds)

    return visits(log_probs, setting.machine(), setting.environment().noise)


def check_visits(setting, num_rounds):
    log_probs = random_table(3, setting.memory)
    probs = mean_policy(log_probs)
    np.testing.assert_allclose(chain.memory_policy(log_probs), probs, rtol=1e-6)
    exact = exact_visits(setting, log_probs, num_rounds)
    np.testing.assert_allclose(exact, visits_by_enumeration(probs, setting, num_rounds), atol=1e-6)
    np.testing.assert_allclose(exact.sum(), 1, rtol=1e-6)

    arena, memory = setting.environment(), setting.memory
    played = play_alone(jax.random.key(5), log_probs, arena, memory, 200_000, num_rounds)
    sampled = sampled_visits(played, memory)
    # Rounds of an episode are correlated; each share has at most the error of 200,000 coins.
    np.testing.assert_allclose(sampled, exact, atol=5 * 0.5 / np.sqrt(200_000))
    expected = (exact * chain.noisy_rewards(arena.rewards[0], arena.noise)).sum()
    error = 5 * 0.5 * np.ptp(arena.rewards) / np.sqrt(200_000)
    np.testing.assert_allclose(played.reward.mean(), expected, atol=error)


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_chain_equals_enumeration_and_sampling(name):
    check_visits(Setting(opponent=name), 4)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [*SETTINGS, *NOISY], ids=str)
def test_chain_equals_enumeration_and_sampling_whatever_is_remembered(setting):
    check_visits(setting, 3)


def check_rounds(setting, name, num_episodes=300):
    opponent, arena, memory = setting.machine(), setting.environment(name), setting.memory
    num_moves, key = memory.num_moves, jax.random.key(0)
    log_probs = random_table(1, memory)
    played = jax.device_get(play_alone(key, log_probs, arena, memory, num_episodes, 7))
    prompts = np.concatenate([played.prompt, played.last_prompt[None]])
    assert prompts.dtype == np.int16
    for episode in range(num_episodes):
        rounds = list(memory.histories[prompts[0, episode] // 4])
        if setting.opening and not rounds:  # one that is not shown
            rounds = [divmod(int(played.previous[0, episode]), num_moves)]
        assert len(rounds) == setting.opening
        state = opponent.start
        for index, (own, other) in enumerate(rounds):
            assert (opponent.moves[state] if index else opponent.opening)[other] > 0
            state = opponent.next_state[state, other, own]
        for t in range(7):
            outcome, move = played.outcome[t, episode], played.other_action[t, episode]
            assert opponent.moves[state, move] > 0
            previous = kind_of(rounds, num_moves)
            assert played.previous[t, episode] == previous
            assert played.reward[t, episode] == arena.rewards[0, previous, outcome, move]
            ((legal, _), *_) = effects(outcome, rounds, None)
            state = opponent.next_state[state, move, legal]
            rounds.append((int(legal), int(move)))
            assert prompts[t + 1, episode] // 4 == setting.shown(rounds)


@pytest.mark.parametrize("name", MACHINES)
def test_rounds_follow_the_rules(name):
    """Remembered moves, rewards and states, recomputed step by step from what was played."""
    check_rounds(Setting(opponent=name, game="bos"), "game+deontological")


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_rounds_follow_the_rules_whatever_is_remembered(setting):
    check_rounds(setting, "game+deontological", 100)


def test_a_trembling_hand_turns_moves_over_but_no_illegal_answers():
    setting = Setting(noise=0.2, opponent="random")
    arena, log_probs = setting.environment(), random_table(1)
    played = play_alone(jax.random.key(0), log_probs, arena, setting.memory, 50_000, 3)
    played = jax.device_get(played)
    happened = np.concatenate([played.prompt, played.last_prompt[None]])[1:] // 8
    for outcome in (0, 1):
        turned = (happened != outcome)[played.outcome == outcome]
        assert abs(turned.mean() - 0.2) < 5 * 0.4 / np.sqrt(len(turned))
    illegal = played.outcome == 2
    np.testing.assert_array_equal(happened[illegal], played.previous[illegal] // 2)
    counted = np.where(illegal, 2, happened)
    rewarded = arena.rewards[0][played.previous, counted, played.other_action]
    np.testing.assert_array_equal(played.reward, rewarded)


@pytest.mark.slow
def test_several_games_are_played_side_by_side():
    """Each by every third episode, with prompts and rewards of its own."""
    tables = np.stack([table("game", name) for name in ("ipd", "bos", "icn")])
    arena = Environment(MACHINES["random"], tables)
    log_probs = jnp.concatenate([random_table(seed) for seed in range(3)])
    played = play_alone(jax.random.key(0), log_probs, arena, ONE, 60_000, 2)
    game = np.arange(60_000) % 3
    np.testing.assert_array_equal(played.prompt // 16, np.tile(game, (2, 1)))
    np.testing.assert_array_equal(played.last_prompt // 16, game)
    expected = tables[game, played.previous, played.outcome, played.other_action]
    np.testing.assert_array_equal(played.reward, expected)
    for index in range(3):
        own = jax.tree.map(lambda x, at=index: x[..., at::3], played)
        exact = exact_visits(Setting(opponent="random"), random_table(index), 2)
        sampled = sampled_visits(own, ONE)
        np.testing.assert_allclose(sampled, exact, atol=5 * 0.5 / np.sqrt(20_000))


@pytest.mark.parametrize("num_rounds", [2, 4])
def test_each_game_has_a_machine_of_its_own(num_rounds):
    """Larger and smaller ones; each is what it is alone."""
    names = ("prober", "generous", "joss")
    stacked = machines.stack([MACHINES[name] for name in names])
    arena = Environment(stacked, np.stack([table("game", "ipd")] * 3))
    log_probs = jnp.concatenate([random_table(seed) for seed in range(3)])
    played = play_alone(jax.random.key(0), log_probs, arena, ONE, 60_000, num_rounds)
    for index, name in enumerate(names):
        own = jax.tree.map(lambda x, at=index: x[..., at::3], played)
        exact = exact_visits(Setting(opponent=name), random_table(index), num_rounds)
        sampled = sampled_visits(own, ONE)
        np.testing.assert_allclose(sampled, exact, atol=5 * 0.5 / np.sqrt(20_000))


@pytest.mark.slow
def test_as_many_prompts_as_a_configuration_allows_are_numbered_apart():
    num_games = 2**15 // 16
    tables = np.zeros((num_games, 5, 3, 2), np.float32)
    log_probs, arena = jnp.tile(random_table(0), (num_games, 1)), Environment(GENEROUS, tables)
    played = play_alone(jax.random.key(0), log_probs, arena, ONE, num_games, 2)
    for prompt in (*played.prompt, played.last_prompt):
        np.testing.assert_array_equal(prompt // 16, np.arange(num_games))


def test_rewards_keep_their_fractions():
    arena = Setting(opponent="random").environment()
    played = play_alone(jax.random.key(0), random_table(0), arena, ONE, 100, 3)
    assert played.reward.dtype == jnp.float32
    assert -6.25 in np.asarray(played.reward)


def test_presentations_are_uniform_and_independent():
    arena = Setting().environment()
    played = play_alone(jax.random.key(2), random_table(0), arena, ONE, 50_000, 6)
    orders = np.asarray(played.prompt) % 4
    counts = np.bincount(orders.ravel(), minlength=4) / orders.size
    np.testing.assert_allclose(counts, 0.25, atol=0.005)
    pairs = np.bincount((orders[:-1] * 4 + orders[1:]).ravel(), minlength=16) / orders[1:].size
    np.testing.assert_allclose(pairs, 1 / 16, atol=0.003)


@pytest.mark.parametrize("game", ["ipd", TRIO])
def test_the_two_sides_moves_are_independent(game):
    """One random number decides both; neither may tell anything about the other."""
    setting = Setting(game=game, opponent="random(0.37)")
    memory, chances = setting.memory, np.asarray(setting.machine().opening)
    log_probs = jnp.log(jnp.broadcast_to(jnp.array([0.5, 0.3, 0.2]), random_table(0, memory).shape))
    played = play_alone(jax.random.key(7), log_probs, setting.environment(), memory, 200_000, 1)
    cell = np.asarray(played.outcome * len(chances) + played.other_action)
    joint = np.bincount(cell.ravel(), minlength=3 * len(chances))
    others = [0.37, 0.63] if game == "ipd" else [0.37**2, 2 * 0.37 * 0.63, 0.63**2]
    expected = np.outer([0.5, 0.3, 0.2], others).ravel()
    np.testing.assert_allclose(joint / joint.sum(), expected, atol=0.005)


@pytest.mark.slow
def test_machines_vmap():
    stacked = machines.stack(list(MACHINES.values()))
    stacked = jax.tree.map(jnp.asarray, stacked)
    policy = chain.by_state(ONE, chain.memory_policy(random_table(3)))
    shares = jax.jit(lambda each: chain.visits(chain.against(ONE, each), policy, num_rounds=3))
    for found, opponent in zip(jax.vmap(shares)(stacked), MACHINES.values(), strict=True):
        np.testing.assert_allclose(found, shares(opponent), atol=1e-6)


def pair_rewards(rule, name="game", game="bos"):
    sides = [games.get_game(game), games.mirror(games.get_game(game))]
    return np.stack(
        [
            rewards.add_illegal_opponent(
                rewards.reward_table(side, rewards.get_reward(name), 3.0, -6.0),
                rule,
                name,
                -6.0,
            )[None]
            for side in sides
        ]
    )


@pytest.mark.parametrize(
    "setting", [Setting(), Setting(remembered=2, blank=True), Setting(remembered=3)], ids=str
)
@pytest.mark.parametrize("rule", ["last-move", "zero", "penalty"])
def test_two_agents_follow_the_rules(rule, setting):
    """Mirrored memories, each one's own points, and the rule for an illegal opponent."""
    memory, arena = setting.memory, Environment(None, pair_rewards(rule))
    log_probs = jnp.stack([random_table(1, memory), random_table(2, memory)])
    played = jax.device_get(
        play(jax.random.key(0), log_probs, arena, memory=memory, num_episodes=200, num_rounds=6)
    )
    payoffs = games.get_game("bos").payoffs
    prompts = np.concatenate([played.prompt, played.last_prompt[:, None]], axis=1)
    for episode in range(200):
        rounds = list(memory.histories[prompts[0, 0, episode] // 4])
        assert len(rounds) == setting.opening
        for t in range(6):
            mirrored = [moves[::-1] for moves in rounds]
            assert prompts[0, t, episode] // 4 == setting.shown(rounds)
            assert prompts[1, t, episode] // 4 == setting.shown(mirrored)
            for player, seen in enumerate((rounds, mirrored)):
                assert played.previous[player, t, episode] == kind_of(seen, 2)
            last = rounds[-1] if rounds else (0, 0)
            outcome = played.outcome[:, t, episode]
            np.testing.assert_array_equal(played.other_action[:, t, episode], outcome[::-1])
            for player in (0, 1):
                if outcome[player] == 2:
                    expected = -6.0
                elif outcome[1 - player] == 2 and rule != "last-move":
                    expected = {"zero": 0.0, "penalty": -6.0}[rule]
                else:
                    moves = [m if m < 2 else last[p] for p, m in enumerate(outcome)]
                    expected = payoffs[player, moves[0], moves[1]]
                assert played.reward[player, t, episode] == expected
            rounds.append(tuple(int(m) if m < 2 else last[p] for p, m in enumerate(outcome)))
        assert prompts[0, 6, episode] // 4 == setting.shown(rounds)


def test_the_papers_rule_differs_by_reward():
    table = pair_rewards("paper", "utilitarian")[0, 0]
    assert (table[:, :2, 2] == 0).all()
    assert (pair_rewards("paper", "game+deontological")[0][..., 2] == -6).all()
    for name in ("game", "deontological"):
        np.testing.assert_array_equal(pair_rewards("paper", name), pair_rewards("last-move", name))


def pair_visits_by_enumeration(policies, setting, num_rounds):
    """The first player's shares, `[5, 3, 3]`, the other's outcome as it counts."""
    shares = np.zeros((5, 3, 3))

    def play(rounds, weight, left):
        if left == 0:
            return
        mirrored = [moves[::-1] for moves in rounds]
        chances = [p[setting.shown(r)] for p, r in zip(policies, (rounds, mirrored), strict=True)]
        for a, b in np.ndindex(3, 3):
            sides = [effects(a, rounds, setting.noise), effects(b, mirrored, setting.noise)]
            for (own, p), (other, q) in itertools.product(*sides):
                happened = weight * chances[0][a] * chances[1][b] * p * q
                counted = 2 if b == 2 else other
                shares[kind_of(rounds, 2), a, counted] += happened / num_rounds
                play([*rounds, (own, other)], happened, left - 1)

    openings = list(itertools.product(itertools.product((0, 1), (0, 1)), repeat=setting.opening))
    for rounds in openings:
        play(list(rounds), 1 / len(openings), num_rounds)
    return shares


@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(remembered=0),
        Setting(remembered=2),
        Setting(remembered=2, blank=True),
        Setting(noise=0.2),
        Setting(remembered=2, blank=True, noise=0.2),
    ],
    ids=str,
)
def test_the_chain_of_two_agents_equals_enumeration_and_sampling(setting):
    memory = setting.memory
    log_probs = jnp.stack([random_table(1, memory), random_table(2, memory)])
    noise = setting.environment().noise

    @jax.jit
    def visits(log_probs, noise):
        own, other = (chain.memory_policy(table) for table in log_probs)
        walk = chain.between(memory, other, noise=noise)
        return chain.visits(walk, chain.by_state(memory, own), num_rounds=3)

    exact = visits(log_probs, noise)
    expected = pair_visits_by_enumeration([mean_policy(t) for t in log_probs], setting, 3)
    np.testing.assert_allclose(exact, expected, atol=1e-6)

    arena = Environment(None, pair_rewards("zero"), noise)
    played = play(
        jax.random.key(0), log_probs, arena, memory=memory, num_episodes=200_000, num_rounds=3
    )
    first = only_player(played)
    cells = (np.asarray(first.previous, int) * 3 + first.outcome) * 3 + first.other_action
    sampled = np.bincount(cells.ravel(), minlength=45).reshape(5, 3, 3) / cells.size
    np.testing.assert_allclose(sampled, exact, atol=5 * 0.5 / np.sqrt(200_000))


def test_an_agent_that_plays_tit_for_tat_is_the_machine():
    """Shares of rounds of a random table against it equal the exact chain's against the machine."""
    mirror = np.full((2, 2, 4, 3), -50.0, np.float32)
    for other in (0, 1):
        mirror[:, other, :, other] = 0.0
    legal = jax.nn.log_softmax(random_table(4).at[:, 2].set(-50.0))
    log_probs = jnp.stack([legal, mirror.reshape(16, 3)])
    arena = Environment(None, pair_rewards("zero"))
    played = play(
        jax.random.key(3), log_probs, arena, memory=ONE, num_episodes=200_000, num_rounds=5
    )
    sampled = sampled_visits(only_player(played), ONE)
    exact = exact_visits(Setting(opponent="tit-for-tat"), legal, 5)
    np.testing.assert_allclose(sampled, exact, atol=5 * 0.5 / np.sqrt(200_000))


def draw_numbers(key, shape):
    """A number in [0, 1) and a label order for every player and episode."""
    bits = np.asarray(jax.random.bits(key, (np.prod(shape),))).reshape(shape)
    return (bits >> 8) / 2**24, bits % 4


def choose(number, probs):
    """What a number stands for in a distribution, and how far into its share it lies."""
    edges = np.concatenate([[0], np.cumsum(np.asarray(probs, float))])
    choice = int((number >= edges[1:-1]).sum())
    return choice, (number - edges[choice]) / (edges[choice + 1] - edges[choice])


def rollout_by_hand(key, log_probs, setting, num_episodes, num_rounds):
    """Prompts, outcomes and the other's moves, one episode after the other.

    Two agents if there are two tables, else one and the setting's machine.
    """
    probs, opponent, noise = np.exp(np.asarray(log_probs, float)), setting.machine(), setting.noise
    players = range(len(probs))
    shape = (len(probs), num_episodes)
    start_key, rounds_key = jax.random.split(key)
    begin = [jax.random.fold_in(start_key, i) if i else start_key for i in range(setting.opening)]
    remembered = [draw_numbers(key, shape) for key in begin]
    drawn = [draw_numbers(key, shape) for key in jax.random.split(rounds_key, num_rounds + 1)]
    seen = np.zeros((3, len(probs), num_rounds, num_episodes), int)
    last_prompt = np.zeros(shape, int)
    for episode in range(num_episodes):
        rounds, state = [[] for _ in players], int(opponent.start)
        for index, (numbers, orders) in enumerate(remembered):
            moves = orders[:, episode] % 2
            other = moves[::-1]
            if len(probs) == 1:
                other = [choose(numbers[0, episode], opponent.moves[state])[0]]
                if index == 0:
                    other = [choose(numbers[0, episode], opponent.opening)[0]]
                state = opponent.next_state[state, other[0], moves[0]]
            for player in players:
                rounds[player].append((moves[player], other[player]))
        for t, (numbers, orders) in enumerate(drawn):
            prompts = [4 * setting.shown(rounds[p]) + orders[p, episode] for p in players]
            if t == num_rounds:
                last_prompt[:, episode] = prompts
                break
            rest = list(numbers[:, episode])
            if len(probs) == 1:
                other, rest[0] = choose(rest[0], opponent.moves[state])
            outcomes, happened, moves = [], [], []
            for player in players:
                outcome, left = choose(rest[player], probs[player, prompts[player]])
                turned = 1 - outcome if outcome < 2 and left < (noise or 0) else outcome
                last = rounds[player][-1][0] if rounds[player] else 0
                outcomes.append(outcome)
                happened.append(turned)
                moves.append(last if turned == 2 else turned)
            others, counted = happened[::-1], moves[::-1]
            if len(probs) == 1:
                others = counted = [other]
                state = opponent.next_state[state, other, moves[0]]
            seen[:, :, t, episode] = prompts, outcomes, others
            for player in players:
                rounds[player].append((moves[player], counted[player]))
    return (*seen, last_prompt)


ALONE = [(setting, 1) for setting in [Setting(), *SETTINGS, *NOISY]]
PAIRS = [(setting, 2) for setting, _ in ALONE if setting.game == "ipd"]


@pytest.mark.parametrize(("setting", "num_players"), [*ALONE, *PAIRS], ids=str)
def test_a_rollout_is_a_plain_loop_over_the_same_random_numbers(setting, num_players):
    """So that runs that go on from a checkpoint stay in the stream that they began in."""
    memory, arena = setting.memory, setting.environment()
    if num_players == 2:
        arena = Environment(None, pair_rewards("zero"), arena.noise)
    log_probs = jnp.stack([random_table(seed, memory) for seed in range(num_players)])
    key = jax.random.key(9)
    played = play(key, log_probs, arena, memory=memory, num_episodes=40, num_rounds=5)
    by_hand = rollout_by_hand(key, log_probs, setting, 40, 5)
    names = ("prompt", "outcome", "other_action", "last_prompt")
    for name, expected in zip(names, by_hand, strict=True):
        np.testing.assert_array_equal(getattr(played, name), expected, err_msg=name)


@pytest.mark.slow
def test_two_agents_play_several_games_side_by_side():
    """Each by every third episode; each player has its own rewards in each."""
    tables = np.concatenate(
        [pair_rewards("penalty", game=name) for name in ("ipd", "bos", "icn")], 1
    )
    log_probs = jnp.stack(
        [jnp.concatenate([random_table(3 * player + i) for i in range(3)]) for player in (0, 1)]
    )
    arena = Environment(None, tables)
    played = play(
        jax.random.key(0), log_probs, arena, memory=ONE, num_episodes=60_000, num_rounds=2
    )
    game = np.arange(60_000) % 3
    np.testing.assert_array_equal(played.prompt // 16, np.tile(game, (2, 2, 1)))
    np.testing.assert_array_equal(played.last_prompt // 16, np.tile(game, (2, 1)))
    for player in (0, 1):
        own = jax.tree.map(lambda x, at=player: x[at], played)
        expected = tables[player, game, own.previous, own.outcome, own.other_action]
        np.testing.assert_array_equal(own.reward, expected)
        for index in range(3):
            probs = mean_policy(random_table(3 * player + index))
            for previous in range(4):
                there = (own.previous == previous) & (game == index)
                shares = np.bincount(own.outcome[there], minlength=3) / there.sum()
                error = 5 * 0.5 / np.sqrt(there.sum())
                np.testing.assert_allclose(shares, probs[previous], atol=error)
