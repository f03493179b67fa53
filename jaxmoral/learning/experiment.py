"""From configurations to a compiled update: one makes a run, several a population."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.devices.mesh import Layout
from jaxmoral.learning.collect import Setup
from jaxmoral.learning.first_state import first_states
from jaxmoral.learning.inputs import Inputs
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.met import Met
from jaxmoral.learning.population import Members, over_members, per_member
from jaxmoral.learning.ppo import make_update
from jaxmoral.learning.state import TrainState, fixed

Step = Callable[[TrainState, int], tuple[TrainState, Metrics]]


class _Kind(NamedTuple):
    """What a program of updates depends on besides its arrays.

    Attributes:
      setup: as for `make_update`.
      varying: of `per_member`; None for a run alone.
      in_turns, layout: as for `over_members`.
    """

    setup: Setup
    varying: frozenset[str] | None
    in_turns: bool
    layout: Layout


def compile_update(members: Members, met: Met | None = None) -> tuple[TrainState, Step]:
    """Returns the state before the first update, and the compiled update (it donates the state).

    Args:
      members: configurations, and the same agent for all but its presentation. With more than one
        everything has a leading axis of members.
      met: those whom they meet, if somebody else needs them too.
    """
    config, agent = members[0]
    met = met or Met(members)
    state, key = first_states([config for config, _ in members], agent)
    inputs = Inputs(members, met, key=key)
    setup = Setup(
        policy=agent.policy,
        config=fixed(config.ppo),
        remembers=agent.presentation.memory_key(training_game(config)),
        num_updates=config.updates,
        num_episodes=config.env.episodes,
        num_rounds=config.env.rounds,
        thinking=config.thinking if config.thinking.tokens else None,
    )
    kind = _Kind(
        setup,
        varying=per_member(members) if len(members) > 1 else None,
        # On a CPU one adapter's products fill it, and its activations alone stay in the caches.
        in_turns=agent.model is not None and jax.default_backend() == "cpu",
        layout=agent.layout,
    )
    where, structure = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
    jitted = _jit_update(kind, tuple(where), structure)
    compiled = jitted.lower(state, inputs.make(0, past=False)).compile()

    def step(state: TrainState, update: int) -> tuple[TrainState, Metrics]:
        met.remember(update, state)
        result = compiled(state, inputs(update))
        if update + 1 < config.updates:  # the devices are busy for a while
            inputs.prepare(update + 1)
        return result

    return state, step


@functools.lru_cache(maxsize=32)
def _jit_update(kind: _Kind, where: tuple[Any, ...], structure: Any) -> Any:
    """The update, compiled once however many runs are of this kind.

    Args:
      kind: of the runs.
      where, structure: the shardings of the state, and how they make a state.
    """
    update = make_update(kind.setup)
    if kind.varying is not None:
        update = over_members(update, kind.varying, layout=kind.layout, in_turns=kind.in_turns)
    out = jax.tree.unflatten(structure, where), kind.layout.sharding()
    return jax.jit(update, donate_argnums=0, out_shardings=out, compiler_options=on_cpu(OFTEN))
