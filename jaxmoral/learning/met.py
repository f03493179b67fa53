"""Whom learners meet: machines by name, agents that do not learn, and their own past.

An agent that does not learn is a machine too: what it does follows from its policy table in the
condition that is played. Its parameters are those of a run's checkpoint ("runs/selfish", in full
"runs/selfish@40"), of a population's member, or of a PEFT adapter. "past(k)" is the learner as it
was after 0, k, 2k, ... updates, another one of them each update.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmoral.config import Config
from jaxmoral.devices.mesh import place
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.lookup import (
    find_opponent,
    key_of_met,
    kind_of,
    opponents_met,
    past_every,
    past_updates,
    split_update,
    with_names,
)
from jaxmoral.learning.packed import PackedConditions, Speaker
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.population import Members, member_state
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import is_run, read_config
from jaxmoral.learning.saved import load_state, update_of
from jaxmoral.learning.state import TrainState
from jaxmoral.learning.trained import first_player
from jaxmoral.models.lora import Lora
from jaxmoral.models.peft import is_adapter, load_peft
from jaxmoral.world.chain import memory_policy
from jaxmoral.world.games import mirror
from jaxmoral.world.machines import Opponent, agent_machine

_PASTS = 3  # the third of four numbers that seed a stream, as in `mixture`


def pinned(config: Config) -> Config:
    """The configuration with every run that is met named by its newest checkpoint."""
    return with_names(config, {name: _pin(config, name) for name in opponents_met(config)})


def _pin(config: Config, name: str) -> str:
    folder, update = split_update(name)
    if kind_of(config, name) != "stored" or update is not None:
        return name
    newest = update_of(Path(folder)) if is_run(Path(folder)) else None
    return name if newest is None else f"{name}@{newest}"


class Met:
    """Those whom the members meet and who are no machines, whatever update it is."""

    def __init__(self, members: Members):
        """Reads those who do not learn.

        Args:
          members: as for `experiment.compile_update`.

        Raises:
          UserError: one of them cannot be read, or is of another model or memory.
        """
        self._members = members
        self._agents: dict[str, Speaker] = {}
        for config, agent in members:
            for name in opponents_met(config):
                if kind_of(config, name) == "stored" and name not in self._agents:
                    self._agents[name] = _read(config, agent, name)
        self.updates = {update for config, _ in members for update in past_updates(config)}
        self._past: dict[int, list[Speaker]] = {}

    def remember(self, update: int, state: TrainState) -> None:
        """Keeps the members as they are before an update, if anybody will meet them."""
        if update in self.updates:
            alone = len(self._members) == 1
            self._past[update] = [
                Speaker(agent.policy, first_player(state if alone else member_state(state, index)))
                for index, (_, agent) in enumerate(self._members)
            ]

    def recall(self, checkpoints: Checkpoints, state: TrainState) -> None:
        """Reads what was remembered before a run was cut.

        Args:
          checkpoints: of the run.
          state: from which it goes on.
        """
        configs = checkpoints.newest_configs()
        for update in sorted(self.updates):
            if update < int(state.update) and configs is not None:
                self.remember(update, checkpoints.restore(state, configs, update=update))

    def opponent(
        self,
        name: str,
        condition: Condition,
        *,
        packed: PackedConditions,
        member: int = 0,
        update: int | None = None,
    ) -> Opponent:
        """Who is met under a name, as a machine.

        Args:
          name: of `lookup.opponents_met`.
          condition: as the learner sees it.
          packed: the conditions' prompts.
          member: of the population.
          update: the number of the update, on which it depends which past self is met; None for the
            untrained policy instead of one.
        """
        config, agent = self._members[member]
        if kind_of(config, name) == "machine":
            return find_opponent(config, name, condition.game)
        step = past_every(name)
        if step is None:
            speaker = self._agents[name]
        elif update is None:
            speaker = packed.reference
        else:
            known = range(0, max(update, 1), step)
            random = np.random.default_rng([config.seed, update, _PASTS, step])
            speaker = self._past[known[random.integers(len(known))]][member]
        seen = condition._replace(game=mirror(condition.game))
        policy = np.asarray(memory_policy(jnp.asarray(packed.table(speaker, seen))))
        return agent_machine(agent.presentation.remembers(condition.game), policy)


def _read(config: Config, agent: Agent, name: str) -> Speaker:
    """An agent that does not learn, on the learner's own frozen arrays."""
    key, (where, update) = key_of_met(config), split_update(name)
    folder = Path(where)
    try:
        if is_run(folder):
            return _read_run(config, agent, folder=folder, update=update)
        if is_adapter(folder) and agent.model is not None:
            weights, lora = load_peft(folder, agent.model.config, 0.0)
            own = agent.policy.reference_parameters() | {"adapter": weights}
            return Speaker(_adapted(agent, lora), place(own, agent.layout.sharding()))
    except UserError as error:
        raise UserError(f"{key}: {name} cannot be met ({error})") from None
    raise UserError(f"{key}: there is no run and no PEFT adapter for this policy in {folder}")


def _read_run(config: Config, agent: Agent, *, folder: Path, update: int | None) -> Speaker:
    theirs = resolve(read_config(folder))
    for what, (a, b) in {
        "model.source": (config.model.source == "tabular", theirs.model.source == "tabular"),
        "model.sha256": (agent.model and agent.model.sha256, theirs.model.sha256),
        "model.quantisation": (config.model.quantisation, theirs.model.quantisation),
        "env.memory": (config.env.memory, theirs.env.memory),
        "env.blank_start": (config.env.blank_start, theirs.env.blank_start),
    }.items():
        if a != b:
            raise UserError(f"it has another {what}, {b} instead of {a}")
    lora = Lora(**{f.name: getattr(theirs.lora, f.name) for f in dataclasses.fields(Lora)})
    policy = _adapted(agent, lora)
    own = agent._replace(policy=policy, adapter=None)
    return Speaker(policy, first_player(load_state(folder, theirs, agent=own, update=update)))


def _adapted(agent: Agent, lora: Lora) -> Policy:
    """The learner's policy with another adapter."""
    if not isinstance(agent.policy, LanguagePolicy):
        return agent.policy
    return dataclasses.replace(agent.policy, lora=lora)
