"""Who is measured: a trained agent, a run folder's checkpoint, or an untrained model."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmoral.config import Config
from jaxmoral.devices.mesh import Layout
from jaxmoral.errors import UserError
from jaxmoral.learning.agent import Agent, make_agent, settle
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import Which
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.starting import pin_adapter, start_from
from jaxmoral.learning.trained import TrainedAgent

PyTree = Any


class Loaded(NamedTuple):
    """An agent that is measured, its model loaded.

    Attributes:
      config: settled.
      agent: whose untrained policy is the base.
      trained: parameters, or None if there are none.
      update: after how many updates, or None.
    """

    config: Config
    agent: Agent
    trained: PyTree | None
    update: int | None


Source = Loaded | TrainedAgent | Path | str | Config


def load_source(source: Source, update: Which = None) -> Loaded:
    """Loads what is measured; raises UserError if there is no such run or checkpoint.

    Args:
      source: what `train_agent` returned, a run folder, or a configuration whose untrained model is
        measured alone (or beside its `lora.adapter`).
      update: of a run folder's checkpoint; see `learning.saved`.
    """
    if update is not None and not isinstance(source, str | Path):
        raise UserError("update: only a run's folder holds checkpoints; open it with that update")
    if isinstance(source, Loaded):
        return source
    if isinstance(source, Config):
        config = pin_adapter(resolve(source))
        agent = start_from(config, make_agent(config, None))
        adapted = None
        if agent.adapter is not None:
            adapted = agent.policy.reference_parameters() | {"adapter": agent.adapter}
        return Loaded(settle(config, agent), agent, adapted, None)
    if not isinstance(source, TrainedAgent | Path | str):
        raise UserError(
            "source: needs a run's folder, what train_agent returned or a configuration, got a"
            f" {type(source).__name__}"
        )
    if not isinstance(source, TrainedAgent):
        source = load_trained(Path(source), update)
    if not source.is_finite():
        raise UserError("its training diverged: its parameters are no numbers")
    return Loaded(source.config, source.agent, source.trainable, int(source.state.update))


def parameters(loaded: Loaded) -> dict[str, PyTree]:
    """The parameters of the policies that are measured, "base" and perhaps "tuned", alike."""
    policy: Any = loaded.agent.policy
    init = _init(policy, loaded.agent.layout)
    found = {"base": init(jax.random.key(loaded.config.seed))}
    if loaded.trained is not None:
        found["tuned"] = jax.tree.map(jnp.asarray, loaded.trained)
    return found


@functools.cache
def _init(policy: Policy, layout: Layout) -> Callable[[jax.Array], PyTree]:
    return jax.jit(policy.init, out_shardings=layout.sharding())
