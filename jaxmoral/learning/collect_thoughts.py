"""The first half of an update of agents that think: thoughts, what follows them, what to learn.

Thoughts are sampled; the mean answer after them is the policy table, from which everything else is
what it is without thinking; see `thinking` for the gradient.
"""

from functools import partial

import jax

from jaxmoral.learning.collect import (
    Collected,
    Keys,
    Setup,
    experience_of,
    loss_weights,
    table_loss,
)
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.state import TrainState, UpdateInputs, per_player
from jaxmoral.learning.thinking import (
    Reading,
    information_values,
    make_thought_batch,
    mean_answers,
    thought_loss,
)
from jaxmoral.learning.thinking_policy import ThinkingPolicy

_THOUGHTS = 2**31  # folded into the key of samples, whose other keys have small numbers


def collect_thoughts(
    state: TrainState, inputs: UpdateInputs, keys: Keys, setup: Setup
) -> Collected:
    """As `collect.collect_answers`; what the loss looks at is a `Reading` of the thoughts."""
    policy, config, thinking, players = setup.policy, setup.config, setup.thinking, state.players
    assert thinking is not None
    assert isinstance(policy, ThinkingPolicy)
    bind = partial(policy.bind, inputs.frozen)

    def think(shown, trainable, key):
        return bind(shown).think(trainable, key)

    def read_own(shown, thoughts, trainable, dropout_key):
        return bind(shown).read(trainable, thoughts, dropout_key)

    def read_reference(shown, thoughts):
        return bind(shown).read(policy.reference_parameters(), thoughts)

    think_keys = jax.random.split(jax.random.fold_in(keys.samples, _THOUGHTS), len(players.kl_coef))
    thoughts = per_player(think, inputs.prompts, players.trainable, think_keys)

    def read(trainable, dropout_keys):
        return per_player(read_own, inputs.prompts, thoughts, trainable, dropout_keys)

    reading, pullback = jax.vjp(lambda trainable: read(trainable, None), players.trainable)
    reference = per_player(read_reference, inputs.prompts, thoughts)
    seen = inputs._replace(reference=jax.vmap(mean_answers)(reference.answers))
    table = jax.vmap(lambda reading: reading.table)(reading)
    experience = experience_of(table, state, seen, keys, setup)
    answers_loss, weights = table_loss(state.update, setup, inputs), loss_weights(state, inputs)

    def about_thoughts(reading, batch, reference, weights):
        loss = lambda table, others: answers_loss(table, batch, others, weights)[0]
        return make_thought_batch(loss, batch, reading, reference.answers, thinking.baseline)

    def loss(reading, batches, reference, weights, sampled):
        answers, about = batches
        others = mean_answers(reference.answers)
        own, parts = answers_loss(reading.table, answers, others, weights)
        more, of_thoughts = thought_loss(
            reading.tokens,
            about,
            reference=reference.tokens,
            sampled=sampled,
            thinking=thinking,
            config=config,
        )
        return own + more, parts | of_thoughts | {"loss": own + more}

    def differentiate(reading, batches):
        gradient = jax.vmap(jax.grad(loss, has_aux=True))
        return gradient(reading, batches, reference, weights, thoughts.sampled)

    each_step = jax.vmap(jax.vmap(about_thoughts), (None, 0, None, None))
    about = each_step(reading, experience.batches, reference, weights)
    return Collected(
        read=read,
        behaviour=None if policy.dropout else (reading, pullback),
        differentiate=differentiate,
        batches=(experience.batches, about),
        metrics=experience.metrics | jax.vmap(thought_metrics)(reading, thoughts.lengths),
        moments=experience.moments,
        kl=experience.metrics["kl"],
    )


def thought_metrics(reading: Reading, lengths: jax.Array) -> Metrics:
    """How long thoughts are, in tokens, and what they say about the answer, in nats."""
    return {
        "thought_length": lengths.mean(),
        "thought_information": information_values(reading.answers).mean(),
    }
