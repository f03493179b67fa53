"""Self-distillation: an agent learns to do without a persona what its base does behind one.

The teacher is the base with the persona before the prompt; nothing of it is trained, so its tables
are computed once a condition. The loss is KL(teacher || agent) over C, D and illegal, exact, the
mean over all prompts. There is no reward in it: what is played and earned is measured alone.
"""

from functools import partial

import jax

from jaxmoral.language.prompts import Condition
from jaxmoral.learning.collect import (
    Collected,
    Keys,
    Setup,
    every_epoch,
    experience_of,
    read_tables,
)
from jaxmoral.learning.losses import Metrics, exact_kl
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.state import TrainState, UpdateInputs


def behind(persona: str, condition: Condition) -> Condition:
    """The condition with another persona before its prompts."""
    return condition._replace(presentation=condition.presentation._replace(persona=persona))


def distil_loss(table: PolicyTable, teacher: jax.Array) -> tuple[jax.Array, Metrics]:
    """How far an agent is from its teacher, to be minimised, and its parts.

    Args:
      table: the agent's.
      teacher: `[num_prompts, 3]` log-probabilities.
    """
    kl = exact_kl(teacher, table.log_probs).mean()
    return kl, {"loss": kl, "distil_kl": kl}


def collect_lessons(state: TrainState, inputs: UpdateInputs, keys: Keys, setup: Setup) -> Collected:
    """As `collect.collect_answers`; a batch is what the teacher says."""
    read = partial(read_tables, inputs=inputs, policy=setup.policy)
    table, pullback = jax.vjp(lambda trainable: read(trainable, None), state.players.trainable)
    experience = experience_of(table, state, inputs, keys, setup)
    return Collected(
        read=read,
        behaviour=None if setup.policy.dropout else (table, pullback),
        differentiate=jax.vmap(jax.grad(distil_loss, has_aux=True)),
        batches=every_epoch(inputs.teacher, setup.config),
        metrics=experience.metrics,
        moments=experience.moments,
        kl=experience.metrics["kl"],
    )
