"""The state before the first update: fresh adapters or given ones, an optimiser, a seed's keys."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmoral.config import Config, PPOConfig
from jaxmoral.devices.compiler import ONCE, on_cpu
from jaxmoral.devices.mesh import Layout, place, shardings
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.lookup import num_learners
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.population import stack_members, state_prefix
from jaxmoral.learning.state import TrainState, fixed, init_state, make_optimiser


def initial_state(config: Config, agent: Agent) -> Callable[..., tuple[TrainState, jax.Array]]:
    """A pure function from the seed and settings to the first state and the updates' PRNG key."""
    return _initial(agent.policy, config.ppo, config.updates, num_learners(config))


def _initial(
    policy: Policy, ppo: PPOConfig, num_updates: int, num_players: int
) -> Callable[..., tuple[TrainState, jax.Array]]:
    optimiser = make_optimiser(ppo, num_updates)

    def init(seed: jax.Array, kl_coef: jax.Array) -> tuple[TrainState, jax.Array]:
        init_key, updates_key = jax.random.split(jax.random.key(seed))
        state = init_state(
            init_key, policy, optimiser=optimiser, kl_coef=kl_coef, num_players=num_players
        )
        return state, updates_key

    return init


def first_states(configs: Sequence[Config], agent: Agent) -> tuple[TrainState, jax.Array]:
    """The state before the first update and the updates' PRNG key, as by `stack_members`."""
    config = configs[0]
    run = (agent.policy, fixed(config.ppo), config.updates, num_learners(config))
    arguments = stack_members(
        [(np.uint32(config.seed), np.float32(config.ppo.kl_coef)) for config in configs]
    )
    state, key = _jit_initial(*run, len(configs), agent.layout)(*arguments)
    if agent.adapter is not None:
        state = _start_from(agent.adapter, state)
    return state, key


@functools.lru_cache(maxsize=32)
def _jit_initial(
    policy: Policy,
    ppo: PPOConfig,
    num_updates: int,
    num_players: int,
    num_members: int,
    layout: Layout,
) -> Any:
    """`initial_state` of so many members, compiled once."""
    init, several = _initial(policy, ppo, num_updates, num_players), num_members > 1
    if several:
        init = jax.vmap(init, out_axes=(state_prefix(None, 0), 0))
    lead = (num_members,) if several else ()
    numbers = (jax.ShapeDtypeStruct(lead, kind) for kind in (np.uint32, np.float32))
    shapes, _ = jax.eval_shape(init, *numbers)
    where = shardings(shapes, layout, state_prefix(False, several))
    out = where, layout.stacked(several)
    return jax.jit(init, out_shardings=out, compiler_options=on_cpu(ONCE))


def _start_from(adapter: Any, state: TrainState) -> TrainState:
    """The state with every player's adapter replaced by this one."""
    trainable = state.players.trainable
    fresh = trainable["adapter"]
    copies = jax.tree.map(lambda own, new: np.broadcast_to(own, new.shape), adapter, fresh)
    placed = place(copies, jax.tree.map(lambda leaf: leaf.sharding, fresh))
    players = state.players._replace(trainable=trainable | {"adapter": placed})
    return state._replace(players=players)
