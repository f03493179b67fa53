"""From configurations to a compiled update: the first state, prompts, reference, the step.

One configuration makes a run; several make a population (see `jaxmoral.learning.population`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.devices.mesh import place
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import drawable
from jaxmoral.learning.environments import environment, paper_draws
from jaxmoral.learning.first_state import first_states
from jaxmoral.learning.lookup import num_learners, training_game
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.met import Met
from jaxmoral.learning.mixture import every_condition, num_choices, player_conditions
from jaxmoral.learning.packed import PackedConditions
from jaxmoral.learning.population import (
    Members,
    over_members,
    per_member,
    prompts_differ,
    stack_environments,
    stack_members,
)
from jaxmoral.learning.ppo import make_update
from jaxmoral.learning.state import TrainState, UpdateInputs, adjustable
from jaxmoral.world.rollout import Environment

Shown = Sequence[Sequence[Condition]]  # of each learning player of a member
Step = Callable[[TrainState, int], tuple[TrainState, Metrics]]


def compile_update(members: Members, met: Met | None = None) -> tuple[TrainState, Step]:
    """Returns the state before the first update, and the compiled update (it donates the state).

    Args:
      members: resolved configurations, and the same agent for all but its presentation. With more
        than one everything has a leading axis of members.
      met: those whom they meet, if somebody else needs them too.
    """
    config, agent = members[0]
    met = met or Met(members)
    state, key = first_states([config for config, _ in members], agent)
    met.remember(0, state)
    inputs = Inputs(members, met, key=key)
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
        met.remember(update, state)
        result = compiled(state, inputs(update))
        if update + 1 < config.updates:  # the devices are busy for a while
            inputs.prepare(update + 1)
        return result

    return state, step


def packed_conditions(members: Members) -> PackedConditions:
    """Where the members' prompts come from, all of one shape whatever is drawn."""
    config, agent = members[0]
    shown = [c for own, member in members for c in every_condition(own, member.presentation)]
    conditions = list({condition.key: condition for condition in shown}.values())
    room = agent.room(conditions, drawable(config))
    kept = 0 if config.env.payoff_draws else config.mixture.kept  # none comes twice
    return PackedConditions(agent, room, kept)


def shown_to(members: Members, update: int) -> list[Shown]:
    """What every player of every member is shown in an update."""
    return [player_conditions(config, agent.presentation, update) for config, agent in members]


def groups_of(members: Members, shown: Sequence[Shown]) -> list[Sequence[Condition]]:
    """What is shown to every player of every member; of one member if all are shown the same."""
    differ = prompts_differ(members)
    return [group for players in (shown if differ else shown[:1]) for group in players]


def fold_members(groups: Any, members: Members) -> Any:
    """Arrays of `groups_of` with an axis of members before that of players if they differ."""
    if "prompts" not in per_member(members):
        return groups
    lead = len(members), num_learners(members[0][0])
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), groups)


def environments(
    members: Members,
    update: int,
    *,
    shown: Sequence[Shown],
    met: Met,
    packed: PackedConditions,
    past: bool = True,
) -> Environment:
    """The members' environments in an update, as by `stack_members`.

    Args:
      members, met: as for `compile_update`.
      update: its number.
      shown: of `shown_to`.
      packed: the conditions' prompts.
      past: whether past selves are met, or the untrained policy in their place.
    """
    each = []
    for member, ((config, _), players) in enumerate(zip(members, shown, strict=True)):

        def meet(name, number, member=member, conditions=players[0]):
            when = update if past else None
            return met.opponent(name, conditions[number], packed=packed, member=member, update=when)

        games = [[condition.game for condition in own] for own in players]
        each.append(environment(config, update, games=games, meet=meet))
    return stack_environments(each)


class Inputs:
    """What each update reads, asked for in ascending order; what stays the same is placed once."""

    def __init__(self, members: Members, met: Met, *, key: jax.Array):
        """Places what no update changes.

        Args:
          members, met: as for `compile_update`.
          key: of `first_states`.
        """
        config, agent = members[0]
        configs = [config for config, _ in members]
        varying = per_member(members)
        self._members, self._met = members, met
        self._where = {name: agent.layout.stacked(name in varying) for name in UpdateInputs._fields}
        self._packed = packed_conditions(members)
        self._draws = [paper_draws(config) for config in configs]
        mixed = any(num_choices(own) > 1 for own in configs)
        self._new_conditions = mixed or config.env.payoff_draws > 0
        later = any(config.reward.then is not None for config in configs)
        self._new_environment = self._new_conditions or later or bool(met.updates)
        settings = stack_members([adjustable(config.ppo) for config in configs])
        self._newest: dict[str, Any] = {
            "key": key,
            "frozen": agent.frozen,
            "settings": self._place("settings", settings),
        }
        self._ahead: tuple[int, UpdateInputs] | None = None

    def __call__(self, update: int) -> UpdateInputs:
        """The inputs of one update."""
        if self._ahead is None or self._ahead[0] != update:
            self.prepare(update)
        assert self._ahead is not None
        return self._ahead[1]

    def prepare(self, update: int) -> None:
        """Makes an update's inputs, perhaps while the devices are busy with the one before."""
        shown, newest = shown_to(self._members, update), self._newest
        if "prompts" not in newest or self._new_conditions:
            arrays = self._packed.stacked(groups_of(self._members, shown))
            arrays = fold_members(arrays, self._members)
            for name, found in zip(("prompts", "reference"), arrays, strict=True):
                newest[name] = self._place(name, found)
        if "environment" not in newest or self._new_environment:
            arena = environments(
                self._members, update, shown=shown, met=self._met, packed=self._packed
            )
            newest["environment"] = self._place("environment", arena)
        drawn = stack_members([draw(update) for draw in self._draws])
        newest["draws"] = self._place("draws", drawn)
        self._ahead = update, UpdateInputs(**newest)

    def _place(self, name: str, arrays: Any) -> Any:
        return place(arrays, self._where[name])
