"""Gradient estimators on the packaged model: their variance, and how fast each learns.

    python scripts/benchmarks/estimators.py [--updates 40]

Variance is exact up to sampling: the squared distance of an estimate to the exact gradient of all
trained parameters, over that gradient's square, at the first update. It needs no gradient of the
model for each sample: an estimate is linear in the policy table's, so the table's Gram matrix of
gradients is enough. Token-level estimates differ by what was sampled, so some are computed whole.
Results go to docs/benchmarks/estimators.json.
"""

import argparse
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from workers import versions, write

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.batches import exact_batch
from jaxmoral.learning.environments import environment
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.resolve import resolve
from jaxmoral.world.games import get_game
from jaxmoral.world.rollout import Trajectories, rollout

ROUNDS, DRAWS, WHOLE = 5, 512, 8
LEARNING_RATE = 2e-4


class Setting:
    """One agent in one environment, and what an update needs of both."""

    def __init__(self, config: Config, agent: Agent):
        self.config, self.policy, self.frozen = config, agent.policy, agent.frozen
        game = get_game(config.env.game)
        packed = agent.prompter.pack([[Condition(game, agent.presentation)]])
        self.inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), packed)
        self.memory = agent.presentation.remembers(game)
        self.arena = jax.device_put(environment(config))
        self.trainable = jax.jit(agent.policy.init)(jax.random.key(0))

    def table(self, trainable, frozen, inputs) -> PolicyTable:
        return self.policy.bind(frozen, inputs).table(trainable)


Advantage = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def against_value(reward, prompt, values):
    """Against the value head's estimate, as PPO does."""
    return reward - values[prompt]


def against_mean(reward, prompt, values):
    """Against the mean of all answers: REINFORCE with a baseline."""
    return reward - reward.mean()


def against_group(reward, prompt, values):
    """Against the answers to the same prompt, over their standard deviation, as GRPO does."""
    count, zeros = jnp.bincount(prompt, length=len(values)), jnp.zeros(len(values))
    share = 1.0 / jnp.maximum(count, 1)
    centred = reward - (zeros.at[prompt].add(reward) * share)[prompt]
    deviation = jnp.sqrt(zeros.at[prompt].add(centred**2) * share)
    return centred / (deviation[prompt] + 1e-4)


SAMPLED: dict[str, Advantage] = {
    "PPO, by outcomes": against_value,
    "REINFORCE with baseline": against_mean,
    "GRPO": against_group,
}
EXACT, TOKENS = "exact", "PPO, by tokens"


def play(key: jax.Array, table: PolicyTable, setting: Setting, episodes: int) -> Trajectories:
    """Sampled episodes against the opponent."""
    return rollout(
        key,
        table.log_probs[None],
        setting.arena,
        memory=setting.memory,
        num_episodes=episodes,
        num_rounds=ROUNDS,
    )


def table_gradient(
    key: jax.Array, table: PolicyTable, setting: Setting, name: str, episodes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An estimate of the gradient of the mean reward.

    Returns:
      With respect to the table's log-probabilities and, of minus half the squared error, to its
      values; and the mean reward.
    """
    if name == EXACT:
        batch, _, mean = exact_batch(
            table,
            setting.arena,
            memory=setting.memory,
            num_rounds=ROUNDS,
            config=setting.config.ppo,
        )
        weighted = batch.weight * batch.advantage
        by_prompt = weighted.reshape(-1, 3)
        return by_prompt, by_prompt.sum(-1), mean
    played = play(key, table, setting, episodes)
    prompt, outcome = (x.ravel().astype(jnp.int32) for x in (played.prompt, played.outcome))
    reward = played.reward.ravel()
    gain = SAMPLED[name](reward, prompt, table.values) / reward.size
    error = (reward - table.values[prompt]) / reward.size
    policy_part = jnp.zeros_like(table.log_probs).at[prompt, outcome].add(gain)
    value_part = jnp.zeros_like(table.values).at[prompt].add(error)
    return policy_part, value_part, reward.mean()


def gram(setting: Setting) -> tuple[PolicyTable, np.ndarray]:
    """The untrained table, and inner products of the gradients of its log-probabilities."""
    arguments = setting.trainable, setting.frozen, setting.inputs

    @jax.jit
    def gradient(cotangent, trainable, frozen, inputs):
        _, pullback = jax.vjp(lambda x: setting.table(x, frozen, inputs).log_probs, trainable)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(pullback(cotangent))])

    table = jax.jit(setting.table)(*arguments)
    size = table.log_probs.size
    rows = [
        np.asarray(gradient(np.eye(size, dtype=np.float32)[i].reshape(-1, 3), *arguments))
        for i in range(size)
    ]
    stacked = np.stack(rows).astype(np.float64)
    return table, stacked @ stacked.T


def spread_of(estimates: np.ndarray, products: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Noise (variance over the mean's square) and the mean's cosine with the exact gradient."""
    mean = estimates.mean(0)
    inner = lambda a, b: float(a @ products @ b)
    around = estimates - mean
    variance = np.einsum("ni,ij,nj->", around, products, around) / (len(estimates) - 1)
    cosine = inner(mean, exact) / np.sqrt(inner(mean, mean) * inner(exact, exact))
    return {"noise": float(variance) / inner(mean, mean), "cosine": cosine}


def measure_variance(setting: Setting) -> dict[str, dict[str, dict[str, float]]]:
    """By estimator and number of episodes."""
    table, products = gram(setting)
    exact = np.asarray(table_gradient(jax.random.key(0), table, setting, EXACT, 1)[0]).ravel()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SAMPLED:
        found[name] = {}
        for episodes in EPISODES:
            one = lambda key, n=name, e=episodes: table_gradient(key, table, setting, n, e)[0]
            keys = jax.random.split(jax.random.key(1), DRAWS)
            estimates = np.asarray(jax.jit(lambda keys, f=one: jax.lax.map(f, keys))(keys))
            flat = estimates.reshape(DRAWS, -1).astype(np.float64)
            found[name][str(episodes)] = spread_of(flat, products, exact.astype(np.float64))
    found[TOKENS] = {"1": token_noise(setting, products, exact)}
    return found


def token_noise(setting: Setting, products: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Of gradients through the sampled tokens of one episode, computed whole.

    Their mean is taken to be the exact gradient: a few draws do not show it.
    """
    policy, arguments = setting.policy, (setting.trainable, setting.frozen, setting.inputs)

    @jax.jit
    def gradient(key, trainable, frozen, inputs):
        rollout_key, answer_key = jax.random.split(key)
        bound = policy.bind(frozen, inputs)
        table, logits = bound.table_and_logits(trainable)
        played = play(rollout_key, table, setting, 1)
        prompt, outcome = (x.ravel().astype(jnp.int32) for x in (played.prompt, played.outcome))
        tokens = bound.write(
            trainable, logits=logits, key=answer_key, prompt=prompt, outcome=outcome
        )
        gain = (played.reward.ravel() - table.values[prompt]) / prompt.size
        score = lambda x: bound.score(x, prompt=prompt, tokens=tokens)[0].sum(-1) @ gain
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(score)(trainable)))

    keys = jax.random.split(jax.random.key(2), WHOLE)
    squares = np.array([float(gradient(key, *arguments)) for key in keys])
    true = float(exact @ products @ exact)
    return {"noise": (squares.mean() - true) / true, "draws": WHOLE}


def learn(setting: Setting, name: str, episodes: int, updates: int) -> list[float]:
    """Mean rewards of updates with Adam on one estimator, nothing else in the objective."""
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))

    @jax.jit
    def update(carry, key, frozen, inputs):
        trainable, moments = carry
        table, pullback = jax.vjp(lambda x: setting.table(x, frozen, inputs), trainable)
        policy_part, value_part, mean = table_gradient(key, table, setting, name, episodes)
        uphill = PolicyTable(policy_part, setting.config.ppo.value_coef * value_part)
        (gradient,) = pullback(jax.tree.map(jnp.negative, uphill))
        step, moments = optimiser.update(gradient, moments)
        shown = table_gradient(key, table, setting, EXACT, 1)[2]
        return (optax.apply_updates(trainable, step), moments), shown

    carry = setting.trainable, optimiser.init(setting.trainable)
    rewards = []
    for number in range(updates):
        key = jax.random.fold_in(jax.random.key(3), number)
        carry, mean = update(carry, key, setting.frozen, setting.inputs)
        rewards.append(float(mean))
    return rewards


EPISODES = (1, 4096)  # of an update: the paper's, and ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=40)
    updates = parser.parse_args().updates
    config = resolve(configs.load(None, []))
    setting = Setting(config, make_agent(config))
    variance = measure_variance(setting)
    print(variance, file=sys.stderr, flush=True)
    curves: dict[str, dict[str, list[float]]] = {}
    for name in (*SAMPLED, EXACT):
        curves[name] = {}
        for episodes in EPISODES if name != EXACT else EPISODES[-1:]:
            rewards = learn(setting, name, episodes, updates)
            curves[name][str(episodes)] = rewards
            print(name, episodes, np.round(rewards[::8], 2), file=sys.stderr, flush=True)
    write(
        "estimators",
        {"versions": versions("jax"), "variance": variance, "expected_reward": curves},
    )


if __name__ == "__main__":
    main()
