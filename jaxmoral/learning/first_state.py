"""The state before the first update: fresh adapters or given ones, an optimiser, a seed's keys."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.config import Config, PPOConfig
from jaxmoral.devices.compiler import ONCE, on_cpu
from jaxmoral.devices.mesh import Layout, shardings
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.lookup import num_learners
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.population import stack_members, state_prefix
from jaxmoral.learning.state import TrainState, fixed, init_state, make_optimiser


def first_states(configs: Sequence[Config], agent: Agent) -> tuple[TrainState, jax.Array]:
    """The state before the first update and the updates' PRNG key, as by `stack_members`."""
    config = configs[0]
    run = (agent.policy, fixed(config.ppo), config.updates, num_learners(config))
    arguments = stack_members(
        [(np.uint32(config.seed), np.float32(config.ppo.kl_coef)) for config in configs]
    )
    state, key = _jit_first(*run, len(configs), agent.layout)(*arguments)
    if agent.adapter is not None:
        state = _with_adapter(agent.adapter, state)
    return state, key


@functools.lru_cache(maxsize=32)
def _jit_first(
    policy: Policy,
    ppo: PPOConfig,
    num_updates: int,
    num_players: int,
    num_members: int,
    layout: Layout,
) -> Any:
    """From members' seeds and first weights of the KL to fresh states and keys, compiled once."""
    optimiser, several = make_optimiser(ppo, num_updates), num_members > 1

    def init(seed: jax.Array, kl_coef: jax.Array) -> tuple[TrainState, jax.Array]:
        init_key, updates_key = jax.random.split(jax.random.key(seed))
        state = init_state(
            init_key, policy, optimiser=optimiser, kl_coef=kl_coef, num_players=num_players
        )
        return state, updates_key

    make = jax.vmap(init, out_axes=(state_prefix(None, 0), 0)) if several else init
    lead = (num_members,) if several else ()
    numbers = (jax.ShapeDtypeStruct(lead, kind) for kind in (np.uint32, np.float32))
    shapes, _ = jax.eval_shape(make, *numbers)
    where = shardings(shapes, layout, state_prefix(False, several))
    out = where, layout.stacked(several)
    return jax.jit(make, out_shardings=out, compiler_options=on_cpu(ONCE))


def _with_adapter(adapter: Any, state: TrainState) -> TrainState:
    """The state with every player's adapter replaced by this one."""
    trainable = state.players.trainable
    fresh = trainable["adapter"]
    like = jax.eval_shape(lambda tree: tree, fresh)
    where = jax.tree.map(lambda leaf: leaf.sharding, fresh)

    def copies(adapter):
        return jax.tree.map(lambda own, new: jnp.broadcast_to(own, new.shape), adapter, like)

    placed = jax.jit(copies, out_shardings=where, compiler_options=on_cpu(ONCE))(adapter)
    players = state.players._replace(trainable=trainable | {"adapter": placed})
    return state._replace(players=players)
