"""Rollouts and the exact chain against a plain Python loop over episodes and rounds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoral import chain, games, opponents, rewards
from jaxmoral.evaluation import sampled_visits
from jaxmoral.rollout import Environment, rollout, rollout_pair

GENEROUS = opponents.Opponent(  # C after C; after a D of the agent's, C with probability 0.3
    p_cooperate=np.array([1.0, 0.3], np.float32),
    next_state=np.broadcast_to(np.array([0, 1], np.int32), (2, 2, 2)).copy(),
    start_state=np.array([[0, 0], [1, 1]], np.int32),
    p_remembered_cooperate=np.float32(0.25),
)
MACHINES = opponents.OPPONENTS | {"generous": GENEROUS}


def random_table(seed):
    return jax.nn.log_softmax(jax.random.normal(jax.random.key(seed), (16, 3)))


def environment(opponent, name="utilitarian", game="ipd"):
    payoffs = games.get_game(game).payoffs
    table = rewards.reward_table(payoffs, rewards.get_reward(name), 2.5, -6.25)
    return Environment(opponent, table)


def visits_by_enumeration(policy, opponent, num_rounds):
    """Every path of the episode tree, weighted by its probability."""
    shares = np.zeros((2, 2, 3, 2))

    def play(own, other, state, weight, left):
        if left == 0 or weight == 0:
            return
        for outcome, move in itertools.product((0, 1, 2), (0, 1)):
            p_cooperate = float(opponent.p_cooperate[state])
            p = policy[own, other, outcome] * (p_cooperate if move == 0 else 1 - p_cooperate)
            shares[own, other, outcome, move] += weight * p / num_rounds
            legal = own if outcome == 2 else outcome
            following = opponent.next_state[state, move, legal]
            play(legal, move, following, weight * p, left - 1)

    q = float(opponent.p_remembered_cooperate)
    for own, other in itertools.product((0, 1), (0, 1)):
        weight = 0.5 * (q if other == 0 else 1 - q)
        play(own, other, opponent.start_state[own, other], weight, num_rounds)
    return shares


@pytest.mark.parametrize("name", MACHINES)
def test_chain_equals_enumeration_and_sampling(name):
    opponent, log_probs = MACHINES[name], random_table(3)
    policy = chain.memory_policy(log_probs)
    probs = np.exp(log_probs).reshape(2, 2, 4, 3).mean(2)
    np.testing.assert_allclose(policy, probs, rtol=1e-6)
    exact = chain.visits(policy, opponent, 4)
    np.testing.assert_allclose(exact, visits_by_enumeration(probs, opponent, 4), atol=1e-6)
    np.testing.assert_allclose(exact.sum(), 1, rtol=1e-6)

    played = rollout(jax.random.key(5), log_probs, environment(opponent), 200_000, 4)
    sampled = sampled_visits(played)
    # Rounds of an episode are correlated; each share has at most the error of 200,000 coins.
    np.testing.assert_allclose(sampled, exact, atol=5 * 0.5 / np.sqrt(200_000))


@pytest.mark.parametrize("name", MACHINES)
def test_rounds_follow_the_rules(name):
    """Remembered moves, rewards and states, recomputed step by step from what was played."""
    opponent, arena = MACHINES[name], environment(MACHINES[name], "game+deontological", "bos")
    played = jax.device_get(rollout(jax.random.key(0), random_table(1), arena, 300, 7))
    prompts = np.concatenate([played.prompt, played.last_prompt[None]])
    assert prompts.dtype == np.int8
    for episode in range(300):
        own, other = divmod(int(prompts[0, episode]) // 4, 2)
        state = opponent.start_state[own, other]
        for t in range(7):
            outcome, move = played.outcome[t, episode], played.other_action[t, episode]
            p = opponent.p_cooperate[state]
            assert (p if move == 0 else 1 - p) > 0
            assert played.reward[t, episode] == arena.rewards[own, other, outcome, move]
            legal = own if outcome == 2 else int(outcome)
            state = opponent.next_state[state, move, legal]
            own, other = legal, int(move)
            assert prompts[t + 1, episode] // 4 == own * 2 + other


def test_rewards_keep_their_fractions():
    arena = environment(opponents.get_opponent("random"))
    played = rollout(jax.random.key(0), random_table(0), arena, 100, 3)
    assert played.reward.dtype == jnp.float32
    assert -6.25 in np.asarray(played.reward)


def test_presentations_are_uniform_and_independent():
    played = rollout(jax.random.key(2), random_table(0), environment(GENEROUS), 50_000, 6)
    orders = np.asarray(played.prompt) % 4
    counts = np.bincount(orders.ravel(), minlength=4) / orders.size
    np.testing.assert_allclose(counts, 0.25, atol=0.005)
    pairs = np.bincount((orders[:-1] * 4 + orders[1:]).ravel(), minlength=16) / orders[1:].size
    np.testing.assert_allclose(pairs, 1 / 16, atol=0.003)


def test_the_two_players_moves_are_independent():
    """One random number decides both; neither may tell anything about the other."""
    log_probs = jnp.log(jnp.broadcast_to(jnp.array([0.5, 0.3, 0.2]), (16, 3)))
    arena = environment(opponents.memoryless(0.37))
    played = rollout(jax.random.key(7), log_probs, arena, 200_000, 1)
    joint = np.bincount(np.asarray(played.outcome * 2 + played.other_action).ravel(), minlength=6)
    expected = np.outer([0.5, 0.3, 0.2], [0.37, 0.63]).ravel()
    np.testing.assert_allclose(joint / joint.sum(), expected, atol=0.005)


def test_machines_vmap():
    stacked = opponents.stack(list(MACHINES.values()))
    stacked = jax.tree.map(jnp.asarray, stacked)
    policy = chain.memory_policy(random_table(3))
    together = jax.vmap(lambda opponent: chain.visits(policy, opponent, 3))(stacked)
    for shares, opponent in zip(together, MACHINES.values(), strict=True):
        np.testing.assert_allclose(shares, chain.visits(policy, opponent, 3), atol=1e-6)


def pair_rewards(rule, name="game", game="bos"):
    sides = [games.get_game(game), games.mirror(games.get_game(game))]
    return np.stack(
        [
            rewards.add_illegal_opponent(
                rewards.reward_table(side.payoffs, rewards.get_reward(name), 3.0, -6.0),
                rule,
                name,
                -6.0,
            )
            for side in sides
        ]
    )


@pytest.mark.parametrize("rule", ["last-move", "zero", "penalty"])
def test_two_agents_follow_the_rules(rule):
    """Mirrored memories, each one's own points, and the rule for an illegal opponent."""
    log_probs = jnp.stack([random_table(1), random_table(2)])
    played = jax.device_get(rollout_pair(jax.random.key(0), log_probs, pair_rewards(rule), 200, 6))
    payoffs = games.get_game("bos").payoffs
    prompts = np.concatenate([played.prompt, played.last_prompt[:, None]], axis=1)
    for episode in range(200):
        last = list(divmod(int(prompts[0, 0, episode]) // 4, 2))
        for t in range(6):
            assert prompts[0, t, episode] // 4 == last[0] * 2 + last[1]
            assert prompts[1, t, episode] // 4 == last[1] * 2 + last[0]
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
            last = [int(m) if m < 2 else last[p] for p, m in enumerate(outcome)]


def test_the_papers_rule_differs_by_reward():
    table = pair_rewards("paper", "utilitarian")[0]
    assert (table[:, :, :2, 2] == 0).all()
    assert (pair_rewards("paper", "game+deontological")[0][..., 2] == -6).all()
    for name in ("game", "deontological"):
        np.testing.assert_array_equal(pair_rewards("paper", name), pair_rewards("last-move", name))


def test_an_agent_that_plays_tit_for_tat_is_the_machine():
    """Shares of rounds of a random table against it equal the exact chain's against the machine."""
    mirror = np.full((2, 2, 4, 3), -50.0, np.float32)
    for other in (0, 1):
        mirror[:, other, :, other] = 0.0
    legal = jax.nn.log_softmax(random_table(4).at[:, 2].set(-50.0))
    log_probs = jnp.stack([legal, mirror.reshape(16, 3)])
    played = rollout_pair(jax.random.key(3), log_probs, pair_rewards("zero"), 200_000, 5)
    sampled = sampled_visits(jax.tree.map(lambda x: x[0], played))
    exact = chain.visits(chain.memory_policy(legal), opponents.get_opponent("tit-for-tat"), 5)
    np.testing.assert_allclose(sampled, exact, atol=5 * 0.5 / np.sqrt(200_000))
