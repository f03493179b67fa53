"""Proximal policy optimisation over a policy table: advantages, losses, the update.

Every loss is a function of the policy table alone, so the model's part of a gradient is one
pullback of `policy.apply`. The forward pass that gives the behaviour policy is shared with the
first gradient step. Parameters, tables and trajectories carry a leading axis of players: one who
meets a machine, or two who meet each other, each with everything of its own but the base.

What a batch holds is either samples (`make_batch`) or every answer to every prompt, weighted by how
often it comes and with its expected advantage (`exact_batch`). The loss is the same.

PPO: Schulman et al., arXiv 1707.06347; GAE: arXiv 1506.02438; the KL's adaptive weight: Ziegler et
al., arXiv 1909.08593.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmoral.config import PPOConfig
from jaxmoral.learning.policy import Policy, PolicyTable
from jaxmoral.world import chain as chains
from jaxmoral.world.memory import NUM_ORDERS, Memory, after_matrix
from jaxmoral.world.rollout import Draws, Environment, Trajectories, rollout

PyTree = Any
Metrics = dict[str, jax.Array]


class Moments(NamedTuple):
    """Running number, mean and sum of squared deviations of all rewards so far."""

    seen: jax.Array
    mean: jax.Array
    deviations: jax.Array


class TrainState(NamedTuple):
    """Everything an update replaces; with the seed it determines the rest of the run.

    All but `update` have a leading `[num_players]` axis.

    Attributes:
      update: `[]` int32, how many updates were made; it also numbers the PRNG keys.
      trainable: the policy's parameters, the value head included.
      opt_state: optax's.
      kl_coef: weight of the KL to the reference policy.
      moments: of the rewards, for their normalisation.
    """

    update: jax.Array
    trainable: PyTree
    opt_state: PyTree
    kl_coef: jax.Array
    moments: Moments


class Batch(NamedTuple):
    """Samples of one gradient step, `[num_samples]` each; the weights add up to 1.

    Without `prompt` and `outcome` the samples are the policy table's cells, in its order.
    """

    weight: jax.Array
    prompt: jax.Array | None
    outcome: jax.Array | None
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    value_target: jax.Array


def make_optimiser(config: PPOConfig, num_updates: int) -> optax.GradientTransformation:
    """Adam with gradient clipping and a learning-rate schedule over the run's gradient steps."""
    steps = num_updates * config.epochs * config.minibatches
    schedules = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, steps),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, steps),
    }
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(schedules[config.learning_rate_schedule]()),
    )


def init_state(
    key: jax.Array,
    policy: Policy,
    optimiser: optax.GradientTransformation,
    kl_coef: chex.Numeric,
    num_players: int,
) -> TrainState:
    """The state before the first update; `kl_coef` is the first weight of the KL."""
    keys = [key] + [jax.random.fold_in(key, player) for player in range(1, num_players)]
    players = [policy.init(key) for key in keys]
    trainable = jax.tree.map(lambda *leaves: jnp.stack(leaves), *players)
    zeros = jnp.zeros(num_players)
    opt_state = jax.vmap(optimiser.init)(trainable)
    moments = Moments(zeros, zeros, zeros)
    return TrainState(jnp.int32(0), trainable, opt_state, zeros + kl_coef, moments)


def per_player(function: Callable, *arguments: PyTree) -> PyTree:
    """Applies a function to the players' slices, one after the other, and stacks the results."""
    if len(jax.tree.leaves(arguments)[0]) > 1:
        return jax.lax.map(lambda xs: function(*xs), arguments)
    result = function(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], result)


def gae(
    rewards: jax.Array, values: jax.Array, last_value: jax.Array, gamma: float, lam: float
) -> jax.Array:
    """Generalised advantage estimates.

    The horizon's end is a truncation, not a terminal state, so the value of the prompt after the
    last round is bootstrapped. With gamma = 0 each round is a bandit: reward minus value.

    Args:
      rewards, values: `[num_rounds, num_episodes]`.
      last_value: `[num_episodes]`.

    Returns:
      `[num_rounds, num_episodes]`.
    """
    chex.assert_equal_shape([rewards, values])
    next_values = jnp.concatenate([values[1:], last_value[None]])
    deltas = rewards + gamma * next_values - values

    def back(advantage, delta):
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(last_value), deltas, reverse=True)[1]


def merge_moments(moments: Moments, samples: jax.Array) -> Moments:
    """Adds a batch to running moments (Chan et al.'s pairwise update)."""
    size, mean = samples.size, samples.mean()
    seen = moments.seen + size
    shift = mean - moments.mean
    deviations = jnp.sum((samples - mean) ** 2) + shift**2 * moments.seen * size / seen
    return Moments(seen, moments.mean + shift * size / seen, moments.deviations + deviations)


def scale_rewards(rewards: jax.Array, moments: Moments) -> tuple[jax.Array, Moments]:
    """Rewards relative to the mean and standard deviation of all so far, these included."""
    moments = merge_moments(moments, rewards)
    variance = moments.deviations / jnp.maximum(moments.seen - 1, 1)
    return (rewards - moments.mean) / (jnp.sqrt(variance) + 1e-6), moments


def whiten(samples: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Zero mean and unit variance; samples that are all alike, or one alone, become 0.

    The variance is that of a sample (one degree of freedom less), or with weights that of a
    distribution.
    """
    if weights is None:
        return (samples - samples.mean()) * jax.lax.rsqrt(
            samples.var(ddof=min(samples.size - 1, 1)) + 1e-8
        )
    centred = samples - jnp.sum(weights * samples)
    return centred * jax.lax.rsqrt(jnp.sum(weights * centred**2) + 1e-8)


def exact_kl(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(policy || reference) over the outcomes in nats, `[..., 3]` to `[...]`."""
    return jnp.sum(jnp.exp(log_probs) * (log_probs - reference), axis=-1)


def exact_entropy(log_probs: jax.Array) -> jax.Array:
    """Entropy over the outcomes in nats, `[..., 3]` to `[...]`."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def adapt_kl_coef(kl_coef: jax.Array, kl: jax.Array, config: PPOConfig) -> jax.Array:
    """Raises the weight when the KL is above its target and lowers it when it is below."""
    error = jnp.clip(kl / config.kl_target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + config.kl_gain * error)


def ppo_loss(
    table: PolicyTable,
    batch: Batch,
    reference: jax.Array,
    kl_coef: jax.Array,
    entropy_coef: jax.Array,
    config: PPOConfig,
) -> tuple[jax.Array, Metrics]:
    """The PPO objective of a policy table on a batch, to be minimised.

    KL and entropy are exact over the outcomes at each visited prompt, not sampled.

    Args:
      table: the current policy.
      batch: samples of the behaviour policy.
      reference: `[num_prompts, 3]` log-probabilities.
      kl_coef, entropy_coef: weights in reward units per nat.

    Returns:
      The loss and its parts.
    """
    mean = lambda values: jnp.sum(batch.weight * values)
    if batch.prompt is None:  # no need to look anything up
        log_prob, at = table.log_probs.ravel(), lambda rows: jnp.repeat(rows, 3)
    else:
        log_prob = table.log_probs[batch.prompt, batch.outcome]
        at = lambda rows: rows[batch.prompt]
    chex.assert_equal_shape([log_prob, *jax.tree.leaves(batch)])
    ratio = jnp.exp(log_prob - batch.log_prob)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    policy_loss = -mean(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))

    value = at(table.values)
    near = batch.value + jnp.clip(value - batch.value, -config.value_clip, config.value_clip)
    errors = jnp.maximum((value - batch.value_target) ** 2, (near - batch.value_target) ** 2)
    value_loss = 0.5 * mean(errors)

    kl = mean(at(exact_kl(table.log_probs, reference)))
    entropy = mean(at(exact_entropy(table.log_probs)))
    loss = policy_loss + config.value_coef * value_loss + kl_coef * kl - entropy_coef * entropy
    return loss, {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "clip_fraction": mean(jnp.abs(ratio - 1) > config.clip),
    }


def behaviour_metrics(
    table: PolicyTable,
    shares: jax.Array,
    reward_mean: jax.Array,
    seen: Callable[[jax.Array], jax.Array],
    reference: jax.Array,
    memory: Memory,
) -> Metrics:
    """What the behaviour policy did; "action_types" is `[3 (outcome), 2 (another player's previous
    move)]`, with a third column for rounds without one before where there are such.

    Args:
      table: of the behaviour policy.
      shares: `[num_previous, 3 (outcome)]` of the rounds.
      reward_mean: `[]`.
      seen: the mean over visits of something known per prompt, `[num_prompts]`.
      reference: `[num_prompts, 3]` log-probabilities.
      memory: of the agent.
    """
    after = jnp.asarray(after_matrix(memory.num_moves), jnp.float32)
    types = jnp.einsum("po,pc->oc", shares, after)[:, : 2 if memory.opening else 3]
    p_cooperate, p_defect, p_illegal = types.sum(-1)
    return {
        "reward_mean": reward_mean,
        "p_cooperate": p_cooperate,
        "p_defect": p_defect,
        "p_illegal": p_illegal,
        "action_types": types,
        "kl": seen(exact_kl(table.log_probs, reference)),
        "entropy": seen(exact_entropy(table.log_probs)),
    }


def sampled_shares(trajectories: Trajectories, memory: Memory) -> jax.Array:
    """`[num_previous, 3 (outcome)]` of the rounds."""
    cell = trajectories.previous.astype(jnp.int32) * 3 + trajectories.outcome
    counts = jnp.zeros(3 * memory.num_previous, jnp.int32).at[cell.ravel()].add(1)
    return (counts / cell.size).reshape(-1, 3)


def sampled_metrics(
    table: PolicyTable, trajectories: Trajectories, reference: jax.Array, memory: Memory
) -> Metrics:
    """`behaviour_metrics` of sampled episodes."""
    prompt = jnp.ravel(trajectories.prompt).astype(jnp.int32)
    return behaviour_metrics(
        table,
        sampled_shares(trajectories, memory),
        trajectories.reward.mean(),
        lambda rows: rows[prompt].mean(),
        reference,
        memory,
    )


def make_batch(
    table: PolicyTable, trajectories: Trajectories, rewards: jax.Array, config: PPOConfig
) -> Batch:
    """Advantages and value targets of a rollout, flattened over rounds and episodes."""
    prompt = trajectories.prompt.astype(jnp.int32)
    outcome = trajectories.outcome.astype(jnp.int32)
    values = table.values[prompt]
    last_value = table.values[trajectories.last_prompt.astype(jnp.int32)]
    advantage = gae(rewards, values, last_value, config.gamma, config.gae_lambda)
    target = advantage + values
    if config.normalise_advantages:
        advantage = whiten(advantage)
    log_prob = table.log_probs[prompt, outcome]
    weight = jnp.full(prompt.shape, config.minibatches / prompt.size)
    batch = Batch(weight, prompt, outcome, log_prob, values, advantage, target)
    return jax.tree.map(jnp.ravel, batch)


def exact_batch(
    table: PolicyTable,
    others_log_probs: jax.Array | None,
    opponent: Any,
    noise: chex.Array | None,
    rewards: jax.Array,
    memory: Memory,
    num_rounds: int,
    config: PPOConfig,
) -> tuple[Batch, jax.Array, jax.Array]:
    """Every answer to every prompt, with its probability and expected advantage.

    Args:
      table: the agent's.
      others_log_probs: `[num_prompts, 3]` of another agent that is met, or None.
      opponent: the machine that is met, or one for each game, stacked, or None.
      noise: see `rollout.Environment`.
      rewards: `[num_games, num_previous, 3, b]`.
      memory: of the agent.
      num_rounds: length of an episode.
      config: the settings.

    Returns:
      The batch, the shares of rounds `[num_previous, 3, b]`, and the mean reward.
    """
    num_games = len(rewards)
    games = lambda field: field.reshape(num_games, -1, *field.shape[1:])

    def one(log_probs, values, others, rewards, opponent):
        if others is None:
            chain = chains.against(memory, opponent, noise=noise)
        else:
            chain = chains.between(memory, chains.memory_policy(others), noise=noise)
        probs = jnp.exp(log_probs).reshape(-1, NUM_ORDERS, 3)
        policy = chains.by_state(memory, probs)
        rewards = chains.noisy_rewards(rewards, noise)
        visited, advantage = chains.expected_advantages(
            chain,
            policy,
            rewards=rewards,
            values=chains.by_state(memory, values.reshape(-1, NUM_ORDERS)),
            num_rounds=num_rounds,
            gamma=config.gamma,
            lam=config.gae_lambda,
        )
        shares = chains.visits(chain, policy.mean(1), num_rounds=num_rounds)
        # What the prompt does not show is averaged over: it is all the same to the policy.
        seen = chains.by_shown(memory, visited)
        mean = chains.by_shown(memory, visited[:, None, None] * advantage)
        mean = mean / jnp.maximum(seen, 1e-20)[:, None, None]
        weight = seen[:, None, None] / NUM_ORDERS * probs
        return weight.reshape(-1, 3), mean.reshape(-1, 3), shares, jnp.sum(shares * rewards)

    others = None if others_log_probs is None else games(others_log_probs)
    several = opponent is not None and jnp.ndim(opponent.start) > 0
    weight, advantage, shares, reward = jax.vmap(one, (0, 0, 0, 0, 0 if several else None))(
        games(table.log_probs), games(table.values), others, rewards, opponent
    )
    num_prompts = len(table.values)
    weight, advantage = weight.reshape(-1, 3) / num_games, advantage.reshape(-1, 3)
    values = jnp.broadcast_to(table.values[:, None], (num_prompts, 3))
    target = advantage + values
    if config.normalise_advantages:
        advantage = whiten(advantage, weight)
    batch = Batch(weight, None, None, table.log_probs, values, advantage, target)
    return jax.tree.map(jnp.ravel, batch), shares.mean(0), reward.mean()


def split_minibatches(key: jax.Array, batch: Batch, config: PPOConfig) -> Batch:
    """Every epoch's minibatches, `[epochs * minibatches, num_samples / minibatches]` each.

    An epoch visits every sample once, in an order of its own.
    """
    size = len(batch.weight)
    if config.minibatches == 1:
        order = jnp.broadcast_to(jnp.arange(size), (config.epochs, size))
    else:
        keys = jax.random.split(key, config.epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    order = order.reshape(config.epochs * config.minibatches, -1)
    return jax.tree.map(lambda field: field[order], batch)


def step_players(
    optimiser: optax.GradientTransformation, gradient: PyTree, opt_state: PyTree, trainable: PyTree
) -> tuple[PyTree, PyTree, jax.Array]:
    """One step of every player's own optimiser: parameters, optimiser state, gradient norms."""
    step, opt_state = jax.vmap(optimiser.update)(gradient, opt_state, trainable)
    return optax.apply_updates(trainable, step), opt_state, jax.vmap(optax.global_norm)(gradient)


# Settings that are arrays of an update, so that they may differ between agents trained together.
ADJUSTABLE = (
    "learning_rate",
    "max_grad_norm",
    "clip",
    "value_clip",
    "value_coef",
    "entropy_coef",
    "final_entropy_coef",
    "gamma",
    "gae_lambda",
    "kl_coef",
    "kl_target",
    "kl_gain",
)
Settings = dict[str, Any]  # name to array


def adjustable(config: PPOConfig) -> Settings:
    """The settings that an update takes as arrays."""
    return {name: np.float32(getattr(config, name)) for name in ADJUSTABLE}


def make_update(
    policy: Policy,
    config: PPOConfig,
    memory: Memory,
    num_updates: int,
    num_episodes: int,
    num_rounds: int,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the pure update.

    Returns:
      `update(state, seed_key, frozen, inputs, environment, reference, settings, draws) -> (state,
      metrics)`, to be jitted with the state donated. `inputs`, `reference` `[num_players,
      num_prompts, 3]` and the metrics have a leading axis of players; `settings` are `adjustable`.
    """
    static = config

    def update(
        state: TrainState,
        seed_key: jax.Array,
        frozen: PyTree,
        inputs: PyTree,
        environment: Environment,
        reference: jax.Array,
        settings: Settings,
        draws: Draws | None = None,
    ) -> tuple[TrainState, Metrics]:
        config = dataclasses.replace(static, **settings)
        optimiser = make_optimiser(config, num_updates)
        key = jax.random.fold_in(seed_key, state.update)
        rollout_key, order_key, dropout_key = jax.random.split(key, 3)
        num_players = len(reference)
        entropy_coef = optax.linear_schedule(
            config.entropy_coef, config.final_entropy_coef, num_updates
        )(state.update)

        def apply(trainable, dropout_keys):
            one = lambda inputs, p, key: policy.apply(frozen, inputs, p, key)
            return jax.vjp(lambda p: per_player(one, inputs, p, dropout_keys), trainable)

        def improve(carry, table, pullback, minibatch):
            def one(table, minibatch, reference, kl_coef):
                loss = lambda t: ppo_loss(t, minibatch, reference, kl_coef, entropy_coef, config)
                return jax.grad(loss, has_aux=True)(table)

            gradient, parts = jax.vmap(one)(table, minibatch, reference, state.kl_coef)
            (gradient,) = pullback(gradient)
            trainable, opt_state, norms = step_players(optimiser, gradient, carry[1], carry[0])
            return (trainable, opt_state), parts | {"grad_norm": norms}

        def improve_afresh(carry, xs):
            minibatch, keys = xs
            table, pullback = apply(carry[0], keys)
            return improve(carry, table, pullback, minibatch)

        def sampled(table):
            trajectories = rollout(
                rollout_key,
                table.log_probs,
                environment,
                memory=memory,
                num_episodes=num_episodes,
                num_rounds=num_rounds,
                draws=draws,
            )
            rewards, moments = trajectories.reward, state.moments
            if config.normalise_rewards:
                rewards, moments = jax.vmap(scale_rewards)(rewards, moments)
            order_keys = jax.random.split(order_key, num_players)

            def prepare(key, table, trajectories, rewards):
                batch = make_batch(table, trajectories, rewards, config)
                return split_minibatches(key, batch, config)

            batches = jax.vmap(prepare)(order_keys, table, trajectories, rewards)
            metrics = jax.vmap(partial(sampled_metrics, memory=memory))(
                table, trajectories, reference
            )
            return jax.tree.map(lambda field: jnp.moveaxis(field, 1, 0), batches), metrics, moments

        def exact(table):
            def one(table, others, rewards, reference):
                batch, shares, reward = exact_batch(
                    table,
                    others,
                    environment.opponent,
                    environment.noise,
                    rewards,
                    memory,
                    num_rounds,
                    config,
                )
                metrics = behaviour_metrics(
                    table,
                    shares.sum(-1),
                    reward,
                    lambda rows: jnp.sum(batch.weight.reshape(-1, 3).sum(1) * rows),
                    reference,
                    memory,
                )
                return batch, metrics

            alone = environment.opponent is not None
            others = None if alone else table.log_probs[::-1]
            rewards = environment.rewards[None] if alone else environment.rewards
            batch, metrics = jax.vmap(one)(table, others, rewards, reference)
            repeat = lambda field: jnp.broadcast_to(field, (config.epochs, *field.shape))
            return jax.tree.map(repeat, batch), metrics, state.moments

        table, pullback = apply(state.trainable, None)
        estimate = {"sampled": sampled, "exact": exact}[config.estimator]
        batches, metrics, moments = estimate(table)

        carry = (state.trainable, state.opt_state)
        num_steps = config.epochs * config.minibatches
        keys = None
        if policy.dropout:
            keys = jax.random.split(dropout_key, (num_steps, num_players))
        history = []
        if not policy.dropout:  # the behaviour policy's forward pass serves the first step too
            first = jax.tree.map(lambda field: field[0], batches)
            batches = jax.tree.map(lambda field: field[1:], batches)
            carry, parts = improve(carry, table, pullback, first)
            history.append(jax.tree.map(lambda part: part[None], parts))
        if policy.dropout or num_steps > 1:
            carry, parts = jax.lax.scan(improve_afresh, carry, (batches, keys))
            history.append(parts)
        metrics |= jax.tree.map(lambda *steps: jnp.concatenate(steps).mean(0), *history)

        metrics["param_norm"] = jax.vmap(optax.global_norm)(carry[0])
        metrics["kl_coef"] = state.kl_coef
        metrics["entropy_coef"] = jnp.full(num_players, entropy_coef)
        kl_coef = adapt_kl_coef(state.kl_coef, metrics["kl"], config)
        return TrainState(state.update + 1, *carry, kl_coef, moments), metrics

    return update
