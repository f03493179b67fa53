"""The first half of an update: what the players do, and what is to be learned from it.

Episodes are sampled (`sample_rounds`), or all that they are on average is computed
(`expect_rounds`), from policy tables (`collect_answers`); or answers are sampled token by token
(`collect_tokens`). Whichever it is, the rest of the update is the same; see `ppo.make_update`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmoral.config import PPOConfig, ThinkingConfig
from jaxmoral.learning.batches import (
    Batch,
    exact_batch,
    make_batch,
    make_token_batch,
    scale_rewards,
    split_minibatches,
    token_rewards,
)
from jaxmoral.learning.behaviour import behaviour_metrics, sampled_metrics
from jaxmoral.learning.losses import Metrics, exploitability, ppo_loss, token_loss
from jaxmoral.learning.policy import Policy, PolicyTable
from jaxmoral.learning.state import Moments, TrainState, UpdateInputs, per_player
from jaxmoral.world.memory import Memory, make_memory
from jaxmoral.world.rollout import Exploited, Trajectories, rollout

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """What stays as it is from update to update.

    Attributes:
      policy: static.
      config: the settings, of `state.fixed`; within an update the adjustable ones are arrays.
      remembers: arguments of `make_memory`: what the players remember.
      num_updates: of the whole run, on which schedules depend.
      num_episodes, num_rounds: of an update, of an episode.
      thinking: of agents that think.
    """

    policy: Policy
    config: PPOConfig
    remembers: tuple[int, int, bool]
    num_updates: int
    num_episodes: int
    num_rounds: int
    thinking: ThinkingConfig | None = None

    @property
    def memory(self) -> Memory:
        return make_memory(*self.remembers)


class Keys(NamedTuple):
    """An update's PRNG keys.

    Attributes:
      rollout: of the episodes.
      samples: of the minibatches' order, or of the answers' tokens.
      dropout: of the adapters.
    """

    rollout: jax.Array
    samples: jax.Array
    dropout: jax.Array


@dataclasses.dataclass(frozen=True)
class Collected:
    """What the gradient steps start from; all arrays have an axis of players.

    Attributes:
      read: what the loss looks at, from all players' parameters and dropout keys (or None).
      behaviour: that of the behaviour policy and the pullback of its gradient, by which the first
        step costs no forward pass; None if that step has dropout of its own.
      differentiate: from what was read and a batch to the loss's gradient with respect to what was
        read, and the loss's parts.
      batches: one a gradient step, on a leading axis.
      metrics: of the behaviour policy.
      moments: of the rewards, these included.
      kl: nats by which the weight of the KL is adapted.
    """

    read: Callable[[PyTree, jax.Array | None], PyTree]
    behaviour: tuple[PyTree, Callable] | None
    differentiate: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]
    batches: PyTree
    metrics: Metrics
    moments: Moments
    kl: jax.Array


class Experience(NamedTuple):
    """What is learned from policy tables that were played by, or might have been.

    Attributes:
      batches, metrics, moments: as in `Collected`.
    """

    batches: Batch
    metrics: Metrics
    moments: Moments


def collect_answers(state: TrainState, inputs: UpdateInputs, keys: Keys, setup: Setup) -> Collected:
    """An action is a whole answer: the loss is one over policy tables."""
    read = partial(read_tables, inputs=inputs, policy=setup.policy)
    table, pullback = jax.vjp(lambda trainable: read(trainable, None), state.players.trainable)
    experience = experience_of(table, state, inputs, keys, setup)
    loss, weights = table_loss(state.update, setup, inputs), loss_weights(state, inputs)

    def differentiate(table, batch):
        gradient = jax.vmap(jax.grad(loss, has_aux=True))
        return gradient(table, batch, inputs.reference, weights)

    return Collected(
        read=read,
        behaviour=None if setup.policy.dropout else (table, pullback),
        differentiate=differentiate,
        batches=experience.batches,
        metrics=experience.metrics,
        moments=experience.moments,
        kl=experience.metrics["kl"],
    )


def experience_of(
    table: PolicyTable, state: TrainState, inputs: UpdateInputs, keys: Keys, setup: Setup
) -> Experience:
    """What the configuration's estimator makes of every player's behaviour."""
    estimators = {"sampled": sample_rounds, "exact": expect_rounds}
    estimate = estimators[setup.config.estimator]
    experience = estimate(table, state.players.moments, inputs, keys, setup)
    if inputs.teacher is not None:  # of what it says the entropy is no part
        return experience
    coefs = jnp.full(len(table.values), entropy_coef(state.update, setup))
    return experience._replace(metrics=experience.metrics | {"entropy_coef": coefs})


def sample_rounds(
    table: PolicyTable, moments: Moments, inputs: UpdateInputs, keys: Keys, setup: Setup
) -> Experience:
    """Samples episodes; a round is a sample."""
    trajectories = play(keys.rollout, table.log_probs, inputs, setup)
    rewards = trajectories.reward
    if setup.config.normalise_rewards:
        rewards, moments = jax.vmap(scale_rewards)(rewards, moments)

    def prepare(key, table, trajectories, rewards):
        batch = make_batch(table, trajectories, rewards, setup.config)
        return split_minibatches(key, batch, setup.config)

    order_keys = jax.random.split(keys.samples, len(rewards))
    batches = jax.vmap(prepare)(order_keys, table, trajectories, rewards)
    batches = jax.tree.map(lambda field: jnp.moveaxis(field, 1, 0), batches)
    measure = partial(sampled_metrics, memory=setup.memory)
    metrics = jax.vmap(measure)(table, trajectories, inputs.reference)
    return Experience(batches, metrics, moments)


def expect_rounds(
    table: PolicyTable, moments: Moments, inputs: UpdateInputs, keys: Keys, setup: Setup
) -> Experience:
    """Computes what episodes are on average; an answer to a prompt is a sample, weighted."""
    environment = inputs.environment
    others, rewards = None, environment.rewards
    if environment.opponent is None:
        others = table.log_probs[::-1]
    else:
        rewards = rewards[None]

    def expect(table, others, rewards, reference):
        batch, shares, reward = exact_batch(
            table,
            environment._replace(rewards=rewards),
            others_log_probs=others,
            memory=setup.memory,
            num_rounds=setup.num_rounds,
            config=setup.config,
        )
        seen = batch.weight.reshape(-1, 3).sum(1)
        metrics = behaviour_metrics(
            table,
            shares=shares.sum(-1),
            reward_mean=reward,
            seen=lambda rows: jnp.sum(seen * rows),
            reference=reference,
            memory=setup.memory,
        )
        return batch, metrics

    batch, metrics = jax.vmap(expect)(table, others, rewards, inputs.reference)
    return Experience(every_epoch(batch, setup.config), metrics, moments)


def collect_tokens(state: TrainState, inputs: UpdateInputs, keys: Keys, setup: Setup) -> Collected:
    """Samples episodes and the tokens of their answers, as arXiv 2410.01639 did (section 3.3).

    Every round is one sample: a prompt, an answer of a fixed number of tokens, and the round's
    reward. The KL to the reference policy is a reward per token, measured on the sampled
    tokens; advantages run over an answer's tokens, not over rounds. What an answer amounts to is
    sampled from the exact distribution, and then its tokens given that, which together is plain
    sampling of tokens.
    """
    policy, config, num_players = setup.policy, setup.config, len(inputs.reference)
    bind = partial(policy.bind, inputs.frozen)
    dropout_keys = None
    if config.sample_with_dropout and policy.dropout:
        dropout_keys = jax.random.split(keys.dropout, num_players)
    behaving = inputs.prompts, state.players.trainable, dropout_keys
    table, logits = per_player(lambda shown, *own: bind(shown).table_and_logits(*own), *behaving)
    trajectories = play(keys.rollout, table.log_probs, inputs, setup)
    flat = lambda field: field.reshape(num_players, -1).astype(jnp.int32)
    prompt, outcome = flat(trajectories.prompt), flat(trajectories.outcome)
    rewards, moments = trajectories.reward.reshape(num_players, -1), state.players.moments
    if config.normalise_rewards:
        rewards, moments = jax.vmap(scale_rewards)(rewards, moments)

    def write(shown, trainable, dropout_key, logits, key, prompt, outcome):
        drawn = {"logits": logits, "key": key, "prompt": prompt, "outcome": outcome}
        return bind(shown).write(trainable, dropout_key, **drawn)

    answer_keys = jax.random.split(keys.samples, num_players)
    tokens = per_player(write, *behaving, logits, answer_keys, prompt, outcome)

    def score(shown, trainable, prompt, tokens):
        return bind(shown).score(trainable, prompt=prompt, tokens=tokens)

    def read(trainable, dropout_keys):
        return per_player(score, inputs.prompts, trainable, prompt, tokens)

    def against(shown, prompt, tokens):
        return score(shown, policy.reference_parameters(), prompt, tokens)[0]

    def differentiate(reading, batch):
        loss = lambda both, batch: token_loss(both[0], both[1], batch, config)
        return jax.vmap(jax.grad(loss, has_aux=True))(reading, batch)

    reference = per_player(against, inputs.prompts, prompt, tokens)
    reading, pullback = jax.vjp(lambda p: read(p, None), state.players.trainable)
    log_prob, value = reading
    by_token = jax.vmap(token_rewards)(log_prob, reference, rewards, state.players.kl_coef)
    batch = jax.vmap(partial(make_token_batch, config=config))(log_prob, value, by_token)
    measure = partial(sampled_metrics, memory=setup.memory)
    metrics = jax.vmap(measure)(table, trajectories, inputs.reference)
    kl = jnp.mean(jnp.sum(log_prob - reference, -1), -1)
    return Collected(
        read=read,
        behaviour=(reading, pullback),
        differentiate=differentiate,
        batches=every_epoch(batch, config),
        metrics=metrics | {"token_kl": kl},
        moments=moments,
        kl=kl,
    )


def play(key: jax.Array, log_probs: jax.Array, inputs: UpdateInputs, setup: Setup) -> Trajectories:
    """An update's episodes, given the players' `[num_players, num_prompts, 3]`."""
    return rollout(
        key,
        log_probs,
        inputs.environment,
        memory=setup.memory,
        num_episodes=setup.num_episodes,
        num_rounds=setup.num_rounds,
        draws=inputs.draws,
    )


def read_tables(
    trainable: PyTree, dropout_keys: jax.Array | None, *, inputs: UpdateInputs, policy: Policy
) -> PolicyTable:
    """Every player's policy table."""

    def read(shown, trainable, dropout_key):
        return policy.bind(inputs.frozen, shown).table(trainable, dropout_key)

    return per_player(read, inputs.prompts, trainable, dropout_keys)


def entropy_coef(update: jax.Array, setup: Setup) -> jax.Array:
    """The weight of the entropy in an update."""
    config = setup.config
    schedule = optax.linear_schedule(
        config.entropy_coef, config.final_entropy_coef, setup.num_updates
    )
    return schedule(update)


class Weights(NamedTuple):
    """What differs between the players' losses; leaves have an axis of players.

    Attributes:
      kl_coef: weight of the KL to the reference.
      exploited: see `rollout.Environment`.
    """

    kl_coef: jax.Array
    exploited: Exploited | None


def loss_weights(state: TrainState, inputs: UpdateInputs) -> Weights:
    """Those of an update."""
    return Weights(state.players.kl_coef, inputs.environment.exploited)


def table_loss(
    update: jax.Array, setup: Setup, inputs: UpdateInputs
) -> Callable[..., tuple[jax.Array, Metrics]]:
    """The loss of a player's policy table, batch, reference and weights, and its parts."""
    noise = inputs.environment.noise

    def loss(table, batch, reference, weights):
        coefs = {"kl_coef": weights.kl_coef, "entropy_coef": entropy_coef(update, setup)}
        own, parts = ppo_loss(table, batch, reference=reference, **coefs, config=setup.config)
        if weights.exploited is None:
            return own, parts
        weight, points = weights.exploited
        taken = exploitability(table.log_probs, points, noise, setup.memory, setup.num_rounds)
        own = own + weight * taken
        return own, parts | {"loss": own, "exploitability": taken}

    return loss


def every_epoch(batch: PyTree, config: PPOConfig) -> PyTree:
    """The same batch for each epoch, on a leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (config.epochs, *x.shape)), batch)
