"""Runs as a place to start from: another run's adapter, trained further or measured on its base."""

import dataclasses

from jaxmoral.config import Config
from jaxmoral.config.states import Resolved
from jaxmoral.errors import UserError
from jaxmoral.learning.agent import Agent, lora_of
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.plugins import names_kept
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import is_run, named_checkpoint, read_config
from jaxmoral.learning.saved import load_state, update_of
from jaxmoral.learning.trained import first_player


def pin_adapter(config: Resolved) -> Resolved:
    """The configuration with a run's adapter named by the number of its checkpoint."""
    given = config.lora.adapter
    if given is None:
        return config
    folder, update = named_checkpoint(given)
    if isinstance(update, int) or not is_run(folder):
        return config
    number = update_of(folder, update)
    if number is None:
        raise UserError(f"lora.adapter: the run in {folder} has no checkpoint yet")
    lora = dataclasses.replace(config.lora, adapter=f"{folder}@{number}")
    return dataclasses.replace(config, lora=lora)


@names_kept()  # the plugins of another run are not the agent's
def start_from(config: Config, agent: Agent) -> Agent:
    """The agent with the adapter of the run from which its configuration starts, if it does.

    It is the first player's; the value head is the agent's own.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    given = config.lora.adapter
    if given is None or not isinstance(agent.policy, LanguagePolicy):
        return agent
    folder, update = named_checkpoint(given)
    if not is_run(folder):
        return agent
    theirs = resolve(read_config(folder))
    policy = dataclasses.replace(agent.policy, lora=lora_of(theirs))
    own = agent._replace(policy=policy, adapter=None)
    state = load_state(folder, theirs, agent=own, update=update)
    return agent._replace(adapter=first_player(state)["adapter"])
