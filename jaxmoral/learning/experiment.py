"""From configurations to a compiled update: one makes a run, several a population."""

from collections.abc import Callable

import jax

from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.learning.first_state import first_states
from jaxmoral.learning.inputs import Inputs
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.met import Met
from jaxmoral.learning.population import Members, over_members, per_member
from jaxmoral.learning.ppo import make_update
from jaxmoral.learning.state import TrainState

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
    inputs = Inputs(members, met, key=key)
    update = make_update(
        agent.policy,
        config.ppo,
        memory=agent.presentation.remembers(training_game(config)),
        num_updates=config.updates,
        num_episodes=config.env.episodes,
        num_rounds=config.env.rounds,
        thinking=config.thinking if config.thinking.tokens else None,
    )
    if len(members) > 1:
        # On a CPU one adapter's products fill it, and its activations alone stay in the caches.
        in_turns = agent.model is not None and jax.default_backend() == "cpu"
        varying = per_member(members)
        update = over_members(update, varying, layout=agent.layout, in_turns=in_turns)
    out = jax.tree.map(lambda leaf: leaf.sharding, state), agent.layout.sharding()
    jitted = jax.jit(update, donate_argnums=0, out_shardings=out)
    compiled = jitted.lower(state, inputs.make(0, past=False)).compile(on_cpu(OFTEN))

    def step(state: TrainState, update: int) -> tuple[TrainState, Metrics]:
        met.remember(update, state)
        result = compiled(state, inputs(update))
        if update + 1 < config.updates:  # the devices are busy for a while
            inputs.prepare(update + 1)
        return result

    return state, step
