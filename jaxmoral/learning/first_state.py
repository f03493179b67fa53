"""The state before the first update: fresh adapters or given ones, an optimiser, a seed's keys."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmoral.config import Config
from jaxmoral.devices.compiler import ONCE, on_cpu
from jaxmoral.devices.mesh import place, shardings
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.lookup import num_learners
from jaxmoral.learning.population import stack_members, state_prefix
from jaxmoral.learning.state import TrainState, init_state, make_optimiser


def initial_state(config: Config, agent: Agent) -> Callable[..., tuple[TrainState, jax.Array]]:
    """A pure function from the seed and settings to the first state and the updates' PRNG key."""
    optimiser = make_optimiser(config.ppo, config.updates)
    num_players = num_learners(config)

    def init(seed: jax.Array, kl_coef: jax.Array) -> tuple[TrainState, jax.Array]:
        init_key, updates_key = jax.random.split(jax.random.key(seed))
        state = init_state(
            init_key,
            agent.policy,
            optimiser=optimiser,
            kl_coef=kl_coef,
            num_players=num_players,
        )
        return state, updates_key

    return init


def first_states(configs: Sequence[Config], agent: Agent) -> tuple[TrainState, jax.Array]:
    """The state before the first update and the updates' PRNG key, as by `stack_members`."""
    init, several = initial_state(configs[0], agent), len(configs) > 1
    if several:
        init = jax.vmap(init, out_axes=(state_prefix(None, 0), 0))
    arguments = stack_members(
        [(np.uint32(config.seed), np.float32(config.ppo.kl_coef)) for config in configs]
    )
    shapes, _ = jax.eval_shape(init, *arguments)
    where = shardings(shapes, agent.layout, state_prefix(False, several))
    out = where, agent.layout.stacked(several)
    state, key = jax.jit(init, out_shardings=out, compiler_options=on_cpu(ONCE))(*arguments)
    if agent.adapter is not None:
        state = _start_from(agent.adapter, state)
    return state, key


def _start_from(adapter: Any, state: TrainState) -> TrainState:
    """The state with every player's adapter replaced by this one."""
    trainable = state.players.trainable
    fresh = trainable["adapter"]
    copies = jax.tree.map(lambda own, new: np.broadcast_to(own, new.shape), adapter, fresh)
    placed = place(copies, jax.tree.map(lambda leaf: leaf.sharding, fresh))
    players = state.players._replace(trainable=trainable | {"adapter": placed})
    return state._replace(players=players)
