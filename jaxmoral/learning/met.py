"""Those who are met and do not learn, as machines: what they do follows from their policy tables.

A stored agent sees each condition from its own side and acts by its exact policy there. Of the
learner's past one self is met in each update, drawn by the seed; see `whom` for the names.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmoral.config import Config
from jaxmoral.config.states import Pinned, Settled
from jaxmoral.devices.mesh import place
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent, lora_of
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.lookup import find_opponent, training_game
from jaxmoral.learning.packed import FixedAgent, PackedConditions
from jaxmoral.learning.plugins import names_kept
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.population import Members, member_state
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import check_no_population, is_run, read_config
from jaxmoral.learning.saved import load_state, update_of
from jaxmoral.learning.state import TrainState
from jaxmoral.learning.trained import first_player
from jaxmoral.learning.whom import Whom, key_of_met, met_by, past_updates, renamed
from jaxmoral.models.load import same_model
from jaxmoral.models.lora import Lora
from jaxmoral.models.peft import is_adapter, load_peft
from jaxmoral.world.chain import memory_policy
from jaxmoral.world.games import mirror
from jaxmoral.world.machines import Opponent, agent_machine

_PASTS = 3  # the third of four numbers that seed a stream, as in `mixture`


def pinned(config: Settled) -> Pinned:
    """The configuration with every stored run named by the number of its checkpoint.

    Raises:
      UserError: one has no checkpoint, or stands there twice without a number; a resumed run could
        not tell which of the two is which.
    """
    key, names = key_of_met(config), {}
    folders: dict[Path, str] = {}
    for whom in met_by(config):
        numbered = isinstance(whom.update, int)
        if whom.kind != "stored" or numbered or not is_run(whom.folder):
            continue
        if whom.folder in folders:
            raise UserError(
                f"{key}: {folders[whom.folder]} and {whom.name} are of one run; name its"
                " checkpoints by their numbers, FOLDER@40"
            )
        folders[whom.folder] = whom.name
        number = update_of(whom.folder, whom.update)
        if number is None:
            raise UserError(f"{key}: {whom.name} has no checkpoint yet")
        bare = whom.name if whom.update is None else whom.name.removesuffix("@best")
        names[whom.name] = f"{bare}@{number}"
    return Pinned(renamed(config, names))


def check_stored(configs: Sequence[Config]) -> None:
    """Raises UserError if a stored agent is not where its name says, before any model is read."""
    for config in configs:
        for whom in met_by(config):
            if whom.kind != "stored" or is_run(whom.folder):
                continue
            key, folder = key_of_met(config), whom.folder
            if not is_adapter(folder):
                check_no_population(folder, key)
                raise UserError(f"{key}: there is no run and no PEFT adapter in {folder}")
            if whom.update is not None:
                raise UserError(f"{key}: {folder} holds a PEFT adapter, which has no checkpoints")


class Met:
    """Those whom the members meet, whatever update it is."""

    def __init__(self, members: Members):
        """Reads the stored agents.

        Args:
          members: as for `experiment.compile_update`.

        Raises:
          UserError: one of them cannot be read, or is of another model or memory.
        """
        self._members = members
        self._stored: dict[Whom, FixedAgent] = {}
        for config, agent in members:
            for whom in met_by(config):
                if whom.kind == "stored" and whom not in self._stored:
                    self._stored[whom] = _read(config, agent, whom)
        self.updates = {update for config, _ in members for update in past_updates(config)}
        self._past: dict[int, list[FixedAgent]] = {}  # grows, by an adapter each

    def remember(self, update: int, state: TrainState) -> None:
        """Keeps the members as they are before an update, if anybody will meet them."""
        if update in self.updates:
            alone = len(self._members) == 1
            self._past[update] = [
                FixedAgent(agent.policy, first_player(state if alone else member_state(state, at)))
                for at, (_, agent) in enumerate(self._members)
            ]

    def recall(self, state: TrainState, restore: Callable[[int], TrainState]) -> None:
        """Reads what was remembered before a run was cut.

        Args:
          state: from which it goes on.
          restore: from an update to its checkpoint's state.

        Raises:
          UserError: one of the checkpoints that are needed is gone or damaged.
        """
        for update in sorted(self.updates):
            if update < int(state.update):
                try:
                    self.remember(update, restore(update))
                except UserError as error:
                    key = key_of_met(self._members[0][0])
                    raise UserError(
                        f"{key}: the run meets itself as it was before update {update} ({error})"
                    ) from None

    def machines(
        self,
        member: int,
        conditions: Sequence[Condition],
        *,
        update: int | None,
        packed: PackedConditions,
    ) -> list[list[Opponent]]:
        """Everybody a member meets, in each condition, in the order of `whom.met_by`.

        Args:
          member: its place.
          conditions: as the member sees them.
          update: the number of the update, on which it depends which past self is met; None for the
            untrained policy instead of one.
          packed: the conditions' prompts.
        """
        config, agent = self._members[member]
        seen = [c._replace(game=mirror(c.game)) for c in conditions]
        columns = []
        for whom in met_by(config):
            if whom.kind == "machine":  # some know the payoffs
                columns.append([find_opponent(config, whom.name, c.game) for c in conditions])
                continue
            fixed = self._fixed(whom, member, update, packed)
            tables = packed.tables(fixed, [[condition] for condition in seen])
            if not np.isfinite(tables).all():
                if whom.kind == "stored" or len(self._members) == 1:
                    raise UserError(
                        f"{key_of_met(config)}: what {whom.name} does is not a number; its training"
                        " diverged"
                    )
                tables = np.full_like(tables, -np.log(3))  # a lost member's; the others go on
            policies = [np.asarray(memory_policy(jnp.asarray(table))) for table in tables]
            memories = [agent.presentation.remembers(c.game) for c in conditions]
            columns.append(list(map(agent_machine, memories, policies)))
        return [list(row) for row in zip(*columns, strict=True)]

    def _fixed(
        self, whom: Whom, member: int, update: int | None, packed: PackedConditions
    ) -> FixedAgent:
        if whom.kind == "stored":
            return self._stored[whom]
        if update is None:
            return packed.reference
        known = range(0, max(update, 1), whom.every)
        seed = self._members[member][0].seed
        random = np.random.default_rng([seed, update, _PASTS, whom.every])
        return self._past[known[random.integers(len(known))]][member]


def _read(config: Config, agent: Agent, whom: Whom) -> FixedAgent:
    """An agent that does not learn, on the learner's own frozen arrays."""
    check_stored([config])
    try:
        if is_run(whom.folder):
            return _read_run(config, agent, whom)
        if agent.model is None:
            raise UserError("an adapter needs a language model, and this run trains a table")
        weights, lora = load_peft(whom.folder, agent.model.config, 0.0)
        own = agent.policy.reference_parameters() | {"adapter": weights}
        return FixedAgent(_adapted(agent, lora), place(own, agent.layout.sharding()))
    except UserError as error:
        raise UserError(f"{key_of_met(config)}: {whom.name} cannot be met: {error}") from None


@names_kept()  # its plugins are not the learner's
def _read_run(config: Config, agent: Agent, whom: Whom) -> FixedAgent:
    theirs = resolve(read_config(whom.folder))
    kind = lambda own: "a table" if own.model.source == "tabular" else "a language model"
    known = None if agent.model is None else agent.model.sha256
    digest = theirs.model.sha256
    for what, (ours, other) in {
        "policy": (kind(config), kind(theirs)),
        "model.sha256": (known, known if same_model(known, digest) else digest),
        "model.quantisation": (config.model.quantisation, theirs.model.quantisation),
        "prompt.template": (config.prompt.template, theirs.prompt.template),
        "prompt.thinking": (config.prompt.thinking, theirs.prompt.thinking),
        "number of players": (
            training_game(config).num_players,
            training_game(theirs).num_players,
        ),
        "env.memory": (config.env.memory, theirs.env.memory),
        "env.blank_start": (config.env.blank_start, theirs.env.blank_start),
        "thinking.tokens": (config.thinking.tokens, theirs.thinking.tokens),
        "thinking.cue": (config.thinking.cue, theirs.thinking.cue),
    }.items():
        if ours != other:
            raise UserError(f"its {what} is {other}, not {ours}")
    policy = _adapted(agent, lora_of(theirs))
    own = agent._replace(policy=policy, adapter=None)
    state = load_state(whom.folder, theirs, agent=own, update=whom.update)
    return FixedAgent(policy, first_player(state))


def _adapted(agent: Agent, lora: Lora) -> Policy:
    """The learner's policy with another adapter."""
    if not isinstance(agent.policy, LanguagePolicy):
        return agent.policy
    return dataclasses.replace(agent.policy, lora=lora)
