"""From configurations to a compiled update: the first state, prompts, reference, the step.

One configuration makes a run; several make a population (see `jaxmoral.learning.population`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxmoral.config import Config
from jaxmoral.devices.mesh import Layout, map_spread, place, shardings
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent, drawable
from jaxmoral.learning.environments import paper_draws, player_games
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.policy import reference_table
from jaxmoral.learning.population import (
    environments,
    over_members,
    per_member,
    prompts_differ,
    stack_members,
    state_prefix,
)
from jaxmoral.learning.ppo import make_update
from jaxmoral.learning.state import (
    TrainState,
    UpdateInputs,
    adjustable,
    init_state,
    make_optimiser,
    per_player,
)

Members = Sequence[tuple[Config, Agent]]
Step = Callable[[TrainState, int], tuple[TrainState, Metrics]]

# On a CPU steps that take all cores are faster in turns than side by side, and what runs once and
# takes no time is not worth much compiling.
OFTEN: dict[str, str | bool] = {}
if jax.__version_info__[:2] == (0, 10):  # a version that does not know an option refuses it
    OFTEN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


def on_cpu(options: dict[str, str | bool]) -> dict[str, str | bool]:
    """These options for the compiler if it compiles for a CPU."""
    return options if jax.default_backend() == "cpu" else {}


def compile_update(members: Members) -> tuple[TrainState, Step]:
    """Returns the state before the first update, and the compiled update (it donates the state).

    Args:
      members: resolved configurations, and the same agent for all but its presentation. With more
        than one everything has a leading axis of members.
    """
    config, agent = members[0]
    state, key = first_states([config for config, _ in members], agent)
    inputs = make_inputs(members, key)
    update = make_update(
        agent.policy,
        config.ppo,
        memory=agent.presentation.remembers(training_game(config)),
        num_updates=config.updates,
        num_episodes=config.env.episodes,
        num_rounds=config.env.rounds,
    )
    if len(members) > 1:
        # On a CPU one adapter's products fill it, and its activations alone stay in the caches.
        in_turns = agent.model is not None and jax.default_backend() == "cpu"
        varying = per_member(members)
        update = over_members(update, varying, layout=agent.layout, in_turns=in_turns)
    out = jax.tree.map(lambda leaf: leaf.sharding, state), agent.layout.sharding()
    jitted = jax.jit(update, donate_argnums=0, out_shardings=out)
    compiled = jitted.lower(state, inputs(0)).compile(on_cpu(OFTEN))
    return state, lambda state, update: compiled(state, inputs(update))


def initial_state(config: Config, agent: Agent) -> Callable[..., tuple[TrainState, jax.Array]]:
    """A pure function from the seed and settings to the first state and the updates' PRNG key."""
    optimiser = make_optimiser(config.ppo, config.updates)
    num_players = len(player_games(config))

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
    out = where, _place_of(agent.layout, several)
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


def _place_of(layout: Layout, per_member: bool) -> NamedSharding:
    """Where arrays go that have a leading axis of members, or none."""
    return layout.sharding(layout.lead_axes) if per_member else layout.sharding()


def packed_prompts(members: Members, update: int) -> Any:
    """Every player's prompts, `[num_players, num_chunks, ...]`.

    With a leading axis of members if `prompts_differ`.
    """
    differ = prompts_differ(members)
    conditions = [
        [
            [Condition(game, agent.presentation) for game in player]
            for player in player_games(config, update)
        ]
        for config, agent in (members if differ else members[:1])
    ]
    config, agent = members[0]
    groups = [player for players in conditions for player in players]
    prompts = agent.inputs(groups, drawable(config))  # so that every update's have one shape
    if not differ:
        return prompts
    lead = len(conditions), len(conditions[0])
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), prompts)


def make_reference(members: Members) -> Callable[[Any], jax.Array]:
    """A compiled function from packed prompts to every player's reference, placed like them."""
    _, agent = members[0]
    differ = prompts_differ(members)

    def refer(frozen, prompts):
        return per_player(partial(reference_table, agent.policy, frozen), prompts)

    def refer_members(frozen, prompts):
        return map_spread(partial(refer, frozen), prompts, agent.layout)

    where = _place_of(agent.layout, differ)
    compiled = jax.jit(
        refer_members if differ else refer, out_shardings=where, compiler_options=on_cpu(OFTEN)
    )
    return partial(compiled, agent.frozen)


def make_inputs(members: Members, key: jax.Array) -> Callable[[int], UpdateInputs]:
    """What each update reads, asked for in ascending order; what stays the same is placed once.

    Args:
      members: as for `compile_update`.
      key: of `first_states`.
    """
    config, agent = members[0]
    configs = [config for config, _ in members]
    varying = per_member(members)
    where = {name: _place_of(agent.layout, name in varying) for name in UpdateInputs._fields}
    draws = [paper_draws(config) for config in configs]
    refer = make_reference(members)
    prompts = place(packed_prompts(members, 0), where["prompts"])
    always = UpdateInputs(
        key=key,
        frozen=agent.frozen,
        prompts=prompts,
        reference=refer(prompts),
        environment=place(environments(configs, 0), where["environment"]),
        settings=place(stack_members([adjustable(c.ppo) for c in configs]), where["settings"]),
    )
    new_games = config.env.payoff_draws > 0
    new_rewards = new_games or any(config.reward.then is not None for config in configs)

    def inputs(update: int) -> UpdateInputs:
        drawn = stack_members([draw(update) for draw in draws])
        found = always._replace(draws=place(drawn, where["draws"]))
        if update and new_games:
            shown = place(packed_prompts(members, update), where["prompts"])
            found = found._replace(prompts=shown, reference=refer(shown))
        if update and new_rewards:
            arena = place(environments(configs, update), where["environment"])
            found = found._replace(environment=arena)
        return found

    return inputs
