"""Runs and populations read back: the agent, and the state in a checkpoint of it.

A run may have been made on other devices, and what its adapter started from may be gone: neither is
needed. `run_folder` says what is where.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxmoral.config import ALONE, Config, MeshConfig, MixtureConfig
from jaxmoral.config.states import Resolved
from jaxmoral.errors import UserError
from jaxmoral.learning.agent import Agent, make_agent, make_presentation
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.first_state import first_states
from jaxmoral.learning.population import member_state
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import (
    Which,
    check_alone,
    has_checkpoints,
    member_names,
    population_of,
    read_config,
)
from jaxmoral.learning.state import TrainState
from jaxmoral.learning.trained import TrainedAgent


def load_trained(folder: Path, update: Which = None) -> TrainedAgent:
    """Reads a run folder: its configuration, its agent, and a checkpoint's state.

    Raises:
      UserError: the folder holds no run, or its checkpoint cannot be used.
    """
    config = resolve(check_alone(folder))
    agent = _agent_of(config)
    return TrainedAgent(config, agent, load_state(folder, config, agent=agent, update=update), [])


def load_population(folder: Path, update: Which = None) -> Iterator[tuple[Path, TrainedAgent]]:
    """Every member's folder and trained agent, the model loaded once."""
    members = _members(folder)
    agent = _agent_of(next(iter(members.values())))
    states = _restore(folder, members, agent=agent, update=update, wanted=range(len(members)))
    for (name, config), state in zip(members.items(), states, strict=True):
        own = agent._replace(presentation=make_presentation(config, agent.model))
        yield folder / name, TrainedAgent(config, own, state, [])


def load_state(folder: Path, config: Config, *, agent: Agent, update: Which = None) -> TrainState:
    """A checkpoint's state of a run or of a member of a population.

    Args:
      folder: of the run.
      config: resolved, of the run.
      agent: made from it.
      update: of the checkpoint.
    """
    population = population_of(folder)
    members: Mapping[str, Config]
    if population is None:
        home, members, index = folder, {ALONE: config}, 0
    else:
        home, members, index = population.home, _members(population.home), population.number
    if not has_checkpoints(home):
        raise UserError(f"{home} holds no checkpoints")
    (state,) = _restore(home, members, agent=agent, update=update, wanted=[index])
    return state


def update_of(folder: Path, update: Which = None) -> int | None:
    """The number of a run's or a member's checkpoint, without a model; None if there is none.

    Raises:
      UserError: no checkpoint is known to be the best.
    """
    if isinstance(update, int):
        return update
    population = population_of(folder)
    home, index = (folder, 0) if population is None else (population.home, population.number)
    if not has_checkpoints(home):
        return None
    with Checkpoints(home) as checkpoints:
        return checkpoints.best(index) if update == "best" else checkpoints.latest()


def _agent_of(config: Resolved) -> Agent:
    """A run's agent. Its checkpoint holds the adapter, and nothing will be drawn for it."""
    lora = dataclasses.replace(config.lora, adapter=None)
    plain = dataclasses.replace(config, lora=lora, mesh=MeshConfig(), mixture=MixtureConfig())
    return make_agent(plain, None)


def _members(folder: Path) -> dict[str, Resolved]:
    """A population's configurations by name."""
    return {name: resolve(read_config(folder / name)) for name in member_names(folder)}


def _restore(
    folder: Path,
    members: Mapping[str, Config],
    *,
    agent: Agent,
    update: Which,
    wanted: Sequence[int],
) -> Iterator[TrainState]:
    """The wanted members' states in a checkpoint, or each in its own best."""
    fresh, _ = first_states(list(members.values()), agent)
    with Checkpoints(folder) as checkpoints:
        chosen = [checkpoints.best(index) if update == "best" else update for index in wanted]
        held: tuple[int | None, TrainState] | None = None
        for index, number in zip(wanted, chosen, strict=True):
            if held is None or held[0] != number:
                held = number, checkpoints.restore(fresh, members, update=number)
            yield held[1] if len(members) == 1 else member_state(held[1], index)
