"""What a state is worth: the exact expected reward of its policy, by which checkpoints compare.

It is measured on prompts that stay the same from update to update, so the differences are the
policies' alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.config import MixtureConfig
from jaxmoral.config.states import Resolved
from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout, map_spread, place
from jaxmoral.learning.inputs import Conditions
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.losses import exploitability
from jaxmoral.learning.met import Met
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.population import Members, per_member
from jaxmoral.learning.state import TrainState, per_player
from jaxmoral.world.chain import (
    against,
    between,
    by_state,
    memory_policy,
    noisy_rewards,
    visits,
)
from jaxmoral.world.memory import Memory, make_memory
from jaxmoral.world.rollout import Environment


def make_score(members: Members, met: Met) -> Callable[[TrainState], np.ndarray]:
    """A function from a state to each member's exact expected reward a round, `[num_members]`.

    It counts what training counts, by the last reward of a schedule, in the game's own payoffs
    where others are drawn, of a mixture in its first condition, and against the untrained policy
    instead of past selves; of two learners it is the first one's. It is compiled when it is used.

    Args:
      members, met: as for `experiment.compile_update`, whose states are measured.
    """
    plain = [(_undrawn(config), agent) for config, agent in members]
    config, agent = plain[0]
    several, differ = len(plain) > 1, "prompts" in per_member(plain)
    place_of, conditions = agent.layout.stacked, Conditions(plain, met)
    shown = conditions.shown(0)
    prompts = place(conditions.prompts(shown), place_of(differ))
    arena = conditions.environment(shown, config.updates - 1, past=False)
    arena = place(arena, place_of(several))
    remembers = agent.presentation.memory_key(training_game(config))
    rounds = config.env.rounds
    program = _jit_scores(agent.policy, agent.layout, remembers, rounds, several, differ)

    def scores_of(state: TrainState) -> np.ndarray:
        return jax.device_get(program(agent.frozen, prompts, arena, state.players.trainable))

    return scores_of


@functools.lru_cache(maxsize=32)
def _jit_scores(
    policy: Policy,
    layout: Layout,
    remembers: tuple[int, int, bool],
    num_rounds: int,
    several: bool,
    differ: bool,
) -> Callable[..., jax.Array]:
    """The program from frozen arrays, prompts, environment and parameters to members' rewards.

    Args:
      policy, layout: of the agents.
      remembers: arguments of `make_memory`.
      num_rounds: length of an episode.
      several: whether there is a leading axis of members.
      differ: whether the prompts have it too.
    """
    memory = make_memory(*remembers)

    def score(frozen, prompts, environment, trainable):
        def table(shown, trainable):
            return policy.bind(frozen, shown).table(trainable)

        log_probs = per_player(table, prompts, trainable).log_probs
        return expected_reward(log_probs, environment, memory, num_rounds)

    def score_members(frozen, prompts, environment, trainable):
        def score_member(xs):
            environment, trainable, own = xs
            return score(frozen, own if differ else prompts, environment, trainable)

        own = prompts if differ else None
        return map_spread(score_member, (environment, trainable, own), layout)

    def scores(*arguments):
        return score_members(*arguments) if several else score(*arguments)[None]

    return jit_often(scores, layout)


def _undrawn(config: Resolved) -> Resolved:
    """The configuration with nothing that differs from update to update but its reward."""
    env = dataclasses.replace(config.env, payoff_draws=0)
    mixture = MixtureConfig(opponents=config.mixture.opponents)
    return dataclasses.replace(config, env=env, mixture=mixture)


def expected_reward(
    log_probs: jax.Array, environment: Environment, memory: Memory, num_rounds: int
) -> jax.Array:
    """The first player's expected reward a round in a game that is not drawn, `[]`.

    Args:
      log_probs: `[num_players, num_prompts, 3]` of the policy tables.
      environment: of one game.
      memory: of the players.
      num_rounds: length of an episode.
    """
    policies: list[Any] = [memory_policy(table) for table in log_probs]
    noise = environment.noise
    rewards = jnp.asarray(environment.rewards)
    if environment.opponent is None:
        chain, own = between(memory, policies[1], noise=noise), rewards[0, 0]
    else:
        opponent, chances, own = environment.opponent, environment.chances, rewards[0]
        if chances is not None:
            opponent = jax.tree.map(lambda leaf: leaf[0], opponent)
        chain = against(memory, opponent, noise=noise, chances=chances)
    shares = visits(chain, by_state(memory, policies[0]), num_rounds=num_rounds)
    reward = jnp.sum(shares * noisy_rewards(own, noise))
    if environment.exploited is None:
        return reward
    weight, points = (leaf[0] for leaf in environment.exploited)
    return reward - weight * exploitability(log_probs[0], points[:1], noise, memory, num_rounds)
