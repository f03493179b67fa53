"""From configurations to a compiled update: the first state, prompts, reference, the step.

One configuration makes a run; several make a population (see `jaxmoral.learning.population`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxmoral.config import Config
from jaxmoral.devices.mesh import Layout, place, shardings
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent, drawable
from jaxmoral.learning.environments import paper_draws
from jaxmoral.learning.lookup import num_learners, training_game
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.mixture import every_condition, num_choices, player_conditions
from jaxmoral.learning.packed import PackedConditions
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
    inputs = Inputs(members, key)
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

    def step(state: TrainState, update: int) -> tuple[TrainState, Metrics]:
        result = compiled(state, inputs(update))
        if update + 1 < config.updates:  # the devices are busy for a while
            inputs.prepare(update + 1)
        return result

    return state, step


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


def packed_conditions(members: Members) -> PackedConditions:
    """Where the members' prompts come from, all of one shape whatever is drawn."""
    config, agent = members[0]
    shown = [c for own, member in members for c in every_condition(own, member.presentation)]
    conditions = list({condition.key: condition for condition in shown}.values())
    room = agent.room(conditions, drawable(config))
    kept = 0 if config.env.payoff_draws else config.mixture.kept  # none comes twice
    return PackedConditions(agent, room, kept, on_cpu(OFTEN))


def shown_to(members: Members, update: int) -> list[list[Condition]]:
    """What every player of every member is shown; of one member if all are shown the same."""
    differ = prompts_differ(members)
    return [
        conditions
        for config, agent in (members if differ else members[:1])
        for conditions in player_conditions(config, agent.presentation, update)
    ]


class Inputs:
    """What each update reads, asked for in ascending order; what stays the same is placed once."""

    def __init__(self, members: Members, key: jax.Array):
        """Places what no update changes.

        Args:
          members: as for `compile_update`.
          key: of `first_states`.
        """
        config, agent = members[0]
        configs = [config for config, _ in members]
        varying = per_member(members)
        self._members, self._configs = members, configs
        self._where = {
            name: _place_of(agent.layout, name in varying) for name in UpdateInputs._fields
        }
        self._packed = packed_conditions(members)
        self._draws = [paper_draws(config) for config in configs]
        mixed = any(num_choices(own) > 1 for own in configs)
        self._new_conditions = mixed or config.env.payoff_draws > 0
        self._new_rewards = any(config.reward.then is not None for config in configs)
        settings = stack_members([adjustable(config.ppo) for config in configs])
        self._fixed = {
            "key": key,
            "frozen": agent.frozen,
            "settings": place(settings, self._where["settings"]),
        }
        self._newest: dict[str, Any] = {}
        self._ahead: tuple[int, UpdateInputs] | None = None

    def __call__(self, update: int) -> UpdateInputs:
        """The inputs of one update."""
        if self._ahead is None or self._ahead[0] != update:
            self.prepare(update)
        assert self._ahead is not None
        return self._ahead[1]

    def prepare(self, update: int) -> None:
        """Makes an update's inputs, perhaps while the devices are busy with the one before."""
        if not self._newest or self._new_conditions:
            self._newest |= self._shown(update)
        if "environment" not in self._newest or self._new_conditions or self._new_rewards:
            arena = environments(self._configs, update)
            self._newest["environment"] = place(arena, self._where["environment"])
        drawn = stack_members([draw(update) for draw in self._draws])
        draws = place(drawn, self._where["draws"])
        self._ahead = update, UpdateInputs(**self._fixed, **self._newest, draws=draws)

    def _shown(self, update: int) -> dict[str, Any]:
        prompts, reference = self._packed.stacked(shown_to(self._members, update))
        num_players = num_learners(self._configs[0])
        if len(reference) > num_players:  # they differ between members
            lead = len(self._members), num_players
            fold = lambda leaf: leaf.reshape(*lead, *leaf.shape[1:])
            prompts, reference = jax.tree.map(fold, (prompts, reference))
        found = {"prompts": prompts, "reference": reference}
        return {name: place(arrays, self._where[name]) for name, arrays in found.items()}
