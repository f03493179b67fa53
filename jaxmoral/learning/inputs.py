"""What each update reads: conditions drawn, their prompts and reference, who is met, settings."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxmoral.devices.mesh import place
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import drawable_points
from jaxmoral.learning.anchor import make_anchor
from jaxmoral.learning.distil import behind
from jaxmoral.learning.draws import paper_draws
from jaxmoral.learning.environments import make_environment
from jaxmoral.learning.lookup import num_learners
from jaxmoral.learning.met import Met
from jaxmoral.learning.mixture import every_condition, num_choices, player_conditions
from jaxmoral.learning.packed import PackedConditions
from jaxmoral.learning.population import (
    Members,
    per_member,
    prompts_differ,
    stack_environments,
    stack_members,
)
from jaxmoral.learning.state import UpdateInputs, adjustable
from jaxmoral.world.rollout import Environment

PyTree = Any
Shown = Sequence[Sequence[Condition]]  # to each learning player of a member


class Conditions:
    """What members are shown and whom they meet, all of one shape whatever is drawn."""

    def __init__(self, members: Members, met: Met):
        """Measures how large prompts can be, and packs none yet.

        Args:
          members, met: as for `experiment.compile_update`.
        """
        config, agent = members[0]
        possible = [c for own, other in members for c in every_condition(own, other.presentation)]
        unique = list({condition.key: condition for condition in possible}.values())
        points = drawable_points(config)
        room = agent.prompter.room(unique, points)
        kept = config.mixture.kept
        if config.env.payoff_draws:  # none comes twice, but both sides of a game
            kept = 2 * len(members) * config.mixture.conditions * config.env.payoff_draws
        self._members, self._met, self._differ = members, met, prompts_differ(members)
        self.packed = PackedConditions(agent, room, kept)
        self._persona = config.distil.persona if config.objective == "distil" else None
        if self._persona is not None:
            taught = [behind(self._persona, condition) for condition in unique]
            self._taught = PackedConditions(agent, agent.prompter.room(taught, points), kept)

    def shown(self, update: int) -> list[Shown]:
        """What every player of every member is shown in an update."""
        return [player_conditions(own, agent.presentation, update) for own, agent in self._members]

    def prompts(self, shown: Sequence[Shown]) -> PyTree:
        """Packed prompts, `[num_players, ...]`, with an axis of members first if they differ."""
        return self._fold(self.packed.prompts(self._groups(shown)))

    def reference(self, shown: Sequence[Shown]) -> PyTree:
        """The untrained policy's tables, like the prompts."""
        return self._fold(self.packed.tables(self.packed.reference, self._groups(shown)))

    def teacher(self, shown: Sequence[Shown]) -> PyTree:
        """The untrained policy's tables behind the persona that teaches; None without one."""
        if self._persona is None:
            return None
        groups = [[behind(self._persona, c) for c in group] for group in self._groups(shown)]
        return self._fold(self._taught.tables(self._taught.reference, groups))

    def environment(self, shown: Sequence[Shown], update: int, *, past: bool = True) -> Environment:
        """The members' environments in an update, as by `stack_members`.

        Args:
          shown: of `shown`.
          update: its number.
          past: whether past selves are met, or the untrained policy in their place.
        """
        each = []
        counted = any(config.reward.exploitability for config, _ in self._members)
        for member, ((config, _), players) in enumerate(zip(self._members, shown, strict=True)):
            machines = None
            if num_learners(config) == 1:
                when = update if past else None
                machines = self._met.machines(member, players[0], update=when, packed=self.packed)
            games = [[condition.game for condition in own] for own in players]
            each.append(
                make_environment(config, update, games=games, machines=machines, counted=counted)
            )
        return stack_environments(each)

    def _groups(self, shown: Sequence[Shown]) -> list[Sequence[Condition]]:
        members = shown if self._differ else shown[:1]
        return [group for players in members for group in players]

    def _fold(self, groups: PyTree) -> PyTree:
        if not self._differ:
            return groups
        lead = len(self._members), num_learners(self._members[0][0])
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), groups)


class Inputs:
    """Makes `UpdateInputs`, asked for in ascending order; what stays the same is placed once."""

    def __init__(self, members: Members, met: Met, *, key: jax.Array):
        """Places what no update changes.

        Args:
          members, met: as for `experiment.compile_update`.
          key: of `first_states`.
        """
        config, agent = members[0]
        configs = [config for config, _ in members]
        varying = per_member(members)
        self._where = {name: agent.layout.stacked(name in varying) for name in UpdateInputs._fields}
        self._conditions = Conditions(members, met)
        self._draws = [paper_draws(config) for config in configs]
        mixed = any(num_choices(own) > 1 for own in configs)
        self._new_conditions = mixed or config.env.payoff_draws > 0
        later = any(own.reward.then is not None or bool(met.updates) for own in configs)
        self._new_environment = self._new_conditions or later
        self._thinks = config.thinking.tokens > 0  # then the update makes its reference itself
        settings = stack_members([adjustable(config.ppo) for config in configs])
        self._arrays: dict[str, Any] = {
            "key": key,
            "frozen": agent.frozen,
            "settings": self._place("settings", settings),
        }
        if any(own.anchor.coef for own in configs):
            anchors = [make_anchor(own, agent) for own, agent in members]
            self._arrays["anchor"] = self._place("anchor", stack_members(anchors))
        self._ahead: tuple[int, UpdateInputs] | None = None

    def __call__(self, update: int) -> UpdateInputs:
        """The inputs of one update."""
        if self._ahead is None or self._ahead[0] != update:
            self.prepare(update)
        assert self._ahead is not None
        return self._ahead[1]

    def prepare(self, update: int) -> None:
        """Makes an update's inputs, perhaps while the devices are busy with the one before."""
        self._ahead = update, self.make(update)

    def make(self, update: int, *, past: bool = True) -> UpdateInputs:
        """An update's inputs; without past selves if there are none yet (`past` false)."""
        conditions, arrays = self._conditions, self._arrays
        new_prompts = "prompts" not in arrays or self._new_conditions
        new_environment = "environment" not in arrays or self._new_environment
        if new_prompts or new_environment:
            shown = conditions.shown(update)
        if new_prompts:
            arrays["prompts"] = self._place("prompts", conditions.prompts(shown))
            reference = None if self._thinks else conditions.reference(shown)
            arrays["reference"] = self._place("reference", reference)
            arrays["teacher"] = self._place("teacher", conditions.teacher(shown))
        if new_environment:
            arena = conditions.environment(shown, update, past=past)
            arrays["environment"] = self._place("environment", arena)
        drawn = stack_members([draw(update) for draw in self._draws])
        return UpdateInputs(**arrays, draws=self._place("draws", drawn))

    def _place(self, name: str, arrays: Any) -> Any:
        return place(arrays, self._where[name])
