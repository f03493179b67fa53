"""The exact estimator against sampling, enumeration and finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from playing import assert_means, play_alone
from run_files import quiet

from jaxmoral import config
from jaxmoral.config import PPOConfig
from jaxmoral.learning.batches import exact_batch, make_batch
from jaxmoral.learning.behaviour import sampled_shares
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.training import fit_agent
from jaxmoral.world import chain
from jaxmoral.world.evolution import replicator
from jaxmoral.world.games import get_game
from jaxmoral.world.machines import machine, noisy
from jaxmoral.world.memory import make_memory
from jaxmoral.world.opponents import get_opponent
from jaxmoral.world.rewards import add_illegal_opponent, get_reward, reward_table
from jaxmoral.world.rollout import Environment, rollout

STICKY = machine([0.9, 0.2], [[0, 1, 0, 0], [1, 1, 0, 1]])  # states that prompts do not show


def random_table(num_histories, seed=0):
    generator = np.random.default_rng(seed)
    logits = jnp.asarray(generator.normal(size=(4 * num_histories, 3)), jnp.float32)
    values = jnp.asarray(generator.normal(size=4 * num_histories), jnp.float32)
    return logits, PolicyTable(jax.nn.log_softmax(logits), values)


def rewards_of(name="game+deontological", game="ipd"):
    return jnp.asarray(reward_table(get_game(game), get_reward(name), 3.0, -6.0))[None]


def estimate(table, batch, logits):
    """The policy gradient of a batch with respect to the logits."""

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        chosen = log_probs.ravel()  # of an exact batch
        if batch.prompt is not None:
            chosen = log_probs[batch.prompt, batch.outcome]
        ratio = jnp.exp(chosen - batch.log_prob)
        return jnp.sum(batch.weight * ratio * batch.advantage)

    return jax.grad(loss)(logits)


CASES = {
    "bandit": ((1, 2, False), get_opponent("tit-for-tat"), 0.0, 0.0),
    "discounted": ((1, 2, False), STICKY, 0.9, 0.0),
    "two rounds, noise": ((2, 2, False), noisy(STICKY, 0.1), 0.9, 0.2),
    "no memory": ((0, 2, False), get_opponent("tit-for-two-tats"), 0.7, 0.0),
    "blank start": ((2, 2, True), get_opponent("grim-trigger"), 0.9, 0.1),
    "three players": (
        (1, 3, False),
        get_opponent("noisy(conditional,0.2)", get_game("public-goods(3)")),
        0.8,
        0.0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_mean_of_sampled_estimates(name):
    """A million episodes agree within five standard errors, in every number."""
    remembers, opponent, gamma, noise = CASES[name]
    memory = make_memory(*remembers)
    logits, table = random_table(len(memory.histories))
    rewards = rewards_of(game="ipd" if memory.num_moves == 2 else "public-goods(3)")
    settings = PPOConfig(gamma=gamma, gae_lambda=0.8)
    shaken = jnp.float32(noise) if noise else None
    arena = Environment(opponent, rewards, shaken)
    exact, shares, reward = exact_batch(table, arena, memory=memory, num_rounds=4, config=settings)
    gradient = estimate(table, exact, logits)

    @jax.jit
    def sample(key):
        played = play_alone(key, table.log_probs, arena, memory, 50_000, 4)
        batch = make_batch(table, played, played.reward, settings)
        by_previous = sampled_shares(played, memory)
        return estimate(table, batch, logits), by_previous, played.reward.mean()

    assert_means(sample, (gradient, shares.sum(-1), reward))


@pytest.mark.slow
def test_between_two_learners_it_is_the_mean_of_sampled_estimates():
    memory = make_memory()
    logits, table = random_table(4)
    _, other = random_table(4, seed=1)
    settings = PPOConfig(gamma=0.9, gae_lambda=0.7)
    rows = add_illegal_opponent(np.array(rewards_of("game", "bos")[0]), "penalty", "game", -6.0)
    rewards, noise = jnp.asarray(rows)[None], jnp.float32(0.1)
    exact, _, reward = exact_batch(
        table,
        Environment(None, rewards, noise),
        others_log_probs=other.log_probs,
        memory=memory,
        num_rounds=5,
        config=settings,
    )
    gradient = estimate(table, exact, logits)
    arena = Environment(None, jnp.stack([rewards, rewards]), noise)
    log_probs = jnp.stack([table.log_probs, other.log_probs])

    @jax.jit
    def sample(key):
        both = rollout(key, log_probs, arena, memory=memory, num_episodes=50_000, num_rounds=5)
        played = jax.tree.map(lambda x: x[0], both)
        batch = make_batch(table, played, played.reward, settings)
        return estimate(table, batch, logits), played.reward.mean()

    assert_means(sample, (gradient, reward))


def discounted_returns(logits_by_round, opponent, rewards, gamma, noise):
    """Sum over rounds t of E[sum over u >= t of gamma^(u-t) r_u], by enumeration in float64.

    Args:
      logits_by_round: `[num_rounds, 16, 3]`, so that one round's policy can be moved alone.
      opponent, rewards, gamma, noise: as elsewhere.

    Returns:
      `[num_rounds (u)]` expected rewards.
    """
    probs = np.exp(logits_by_round - np.logaddexp.reduce(logits_by_round, -1)[..., None])
    policy = probs.reshape(-1, 4, 4, 3).mean(2)
    expected = np.zeros(len(policy))

    def play(own, other, state, weight, t):
        if t == len(policy) or weight == 0:
            return
        for chosen, move in itertools.product(range(3), range(2)):
            p = policy[t, own * 2 + other, chosen] * float(opponent.moves[state, move])
            for outcome in range(3):
                happens = 1.0 if chosen == outcome == 2 else 0.0
                if chosen < 2 and outcome < 2:
                    happens = 1 - noise if chosen == outcome else noise
                if happens == 0:
                    continue
                share = weight * p * happens
                expected[t] += share * float(rewards[own * 2 + other, outcome, move])
                legal = own if outcome == 2 else outcome
                following = int(opponent.next_state[state, move, legal])
                play(legal, move, following, share, t + 1)

    for own, other in itertools.product(range(2), range(2)):
        state = int(opponent.next_state[int(opponent.start), other, own])
        play(own, other, state, 0.5 * float(opponent.opening[other]), 0)
    return expected


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "noise"), [(0.0, 0.0), (0.6, 0.0), (1.0, 0.15)])
def test_its_gradient_is_that_of_finite_differences(gamma, noise):
    """In float64, moving one round's policy at a time, as the policy gradient theorem has it."""
    with jax.enable_x64(True):
        memory, num_rounds, opponent = make_memory(), 3, noisy(STICKY, 0.05)
        generator = np.random.default_rng(3)
        logits = generator.normal(size=(16, 3))
        table = PolicyTable(jax.nn.log_softmax(jnp.asarray(logits)), jnp.zeros(16))
        rewards = jnp.asarray(np.array(rewards_of(), np.float64))
        settings = PPOConfig(gamma=gamma, gae_lambda=1.0)
        shaken = jnp.asarray(noise) if noise else None
        arena = Environment(opponent, rewards, shaken)
        batch, _, _ = exact_batch(
            table, arena, memory=memory, num_rounds=num_rounds, config=settings
        )
        gradient = np.asarray(estimate(table, batch, jnp.asarray(logits)))
        assert gradient.dtype == np.float64
    discounts = gamma ** np.arange(num_rounds)
    table = np.asarray(rewards[0])
    every = np.stack([logits] * num_rounds)
    for prompt, outcome in [(0, 0), (3, 1), (6, 2), (9, 0), (13, 1), (15, 2)]:
        total = 0.0
        for t in range(num_rounds):
            moved = []
            for step in (1e-5, -1e-5):
                changed = every.copy()
                changed[t, prompt, outcome] += step
                returns = discounted_returns(changed, opponent, table, gamma, noise)
                moved.append(returns[t:] @ discounts[: num_rounds - t])
            total += (moved[0] - moved[1]) / 2e-5
        assert gradient[prompt, outcome] == pytest.approx(total / num_rounds, abs=2e-6)


def test_without_discount_it_is_the_gradient_of_the_expected_reward():
    memory, opponent = make_memory(2), get_opponent("win-stay-lose-shift")
    logits, table = random_table(16)
    table = table._replace(values=jnp.zeros(64))
    rewards = rewards_of("utilitarian")
    settings = PPOConfig(gamma=1.0, gae_lambda=1.0)
    arena = Environment(opponent, rewards)
    batch, _, _ = exact_batch(table, arena, memory=memory, num_rounds=5, config=settings)

    def expected(logits):
        policy = chain.by_state(memory, chain.memory_policy(jax.nn.log_softmax(logits)))
        shares = chain.visits(chain.against(memory, opponent), policy, num_rounds=5)
        return jnp.sum(shares * rewards[0])

    gradient = estimate(table, batch, logits)
    np.testing.assert_allclose(gradient, jax.grad(expected)(logits), atol=2e-6)


@pytest.mark.slow
def test_weights_are_visits_and_add_up():
    memory = make_memory(1, 2, True)
    _, table = random_table(len(memory.histories))
    opponent = get_opponent("tit-for-tat")
    arena = Environment(opponent, rewards_of())
    batch, shares, _ = exact_batch(table, arena, memory=memory, num_rounds=4, config=PPOConfig())
    assert float(batch.weight.sum()) == pytest.approx(1, abs=1e-6)
    # The first of four rounds has none before it.
    assert float(shares[-1].sum()) == pytest.approx(0.25, abs=1e-6)
    blank = batch.weight.reshape(-1, 4, 3)[-1].sum()
    assert float(blank) == pytest.approx(0.25, abs=1e-6)


OPTIMA = {  # what each reward makes of C after CC, CD, DC, DD against tit-for-tat
    "game": [0, 0, 0, 0],
    "utilitarian": [1, 1, 1, 1],
    "deontological": [1, None, 1, None],
    "game+deontological": [1, 0, 1, 0],
}


@pytest.mark.parametrize("name", OPTIMA)
def test_it_learns_every_reward_and_repeats_itself(name):
    tree = {
        "model": {"source": "tabular"},
        "reward": {"name": name},
        "ppo": {"estimator": "exact", "learning_rate": 0.3, "entropy_coef": 0.3},
        "updates": 150,
    }
    trained = fit_agent(config.parse(tree), say=quiet)
    policy = jax.nn.softmax(trained.trainable["logits"]).reshape(4, 4, 3).mean(1)
    for cell, best in zip(policy, OPTIMA[name], strict=True):
        assert best is None or abs(float(cell[0]) - best) < 0.1
        assert float(cell[2]) < 0.01
    # The seed does not matter: nothing is sampled and the table starts at zero.
    other = fit_agent(config.parse(tree | {"seed": 5}), say=quiet)
    for ours, theirs in zip(
        jax.tree.leaves(trained.trainable), jax.tree.leaves(other.trainable), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def products(jaxpr):
    """All products of matrices in a program and the programs in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def test_what_is_exact_is_so_on_accelerators_too():
    """They round the factors of a product of float32 unless the program says otherwise."""
    memory = make_memory(2)
    arena = Environment(noisy(STICKY, 0.1), jnp.ones((1, memory.num_previous, 3, 2)))
    sizes = {"memory": memory, "num_rounds": 3}
    logits, table = random_table(len(memory.histories))

    def learned(logits):
        own = table._replace(log_probs=jax.nn.log_softmax(logits))
        settings = PPOConfig(gamma=0.9, gae_lambda=0.9)
        batch, shares, reward = exact_batch(own, arena, config=settings, **sizes)
        policy = chain.by_state(memory, chain.memory_policy(own.log_probs))
        worst = chain.best_response(memory, policy, jnp.eye(2), num_rounds=3)
        both = chain.visits(chain.between(memory, policy), policy, num_rounds=3)
        return jnp.sum(batch.weight * batch.advantage) + shares.sum() + reward + worst + both.sum()

    program = jax.make_jaxpr(jax.value_and_grad(learned))(logits)
    grown = jax.make_jaxpr(replicator)(jnp.eye(3), jnp.full(3, 1 / 3))
    found = [*products(program.jaxpr), *products(grown.jaxpr)]
    assert len(found) > 10
    asked = jax.lax.Precision.HIGHEST
    assert {equation.params["precision"] for equation in found} == {(asked, asked)}
