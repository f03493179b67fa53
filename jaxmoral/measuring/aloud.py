"""Thoughts for people: sampled, as texts, with the exact answers after each."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout
from jaxmoral.language.prompts import Condition
from jaxmoral.language.thought_tree import Thoughts
from jaxmoral.learning.agent import Agent, packed_prompts, policy_table
from jaxmoral.learning.thinking_policy import ThinkingPolicy


class Spoken(NamedTuple):
    """What an agent thinks and does in a condition; without thinking each prompt has one thought.

    Attributes:
      answers: `[num_prompts, num_thoughts, 3]` log-probabilities.
      thoughts: texts, by prompt and number; None if it does not think.
      before: what stands between prompt and answer, by prompt and number; empty without thinking.
    """

    answers: np.ndarray
    thoughts: list[list[str]] | None
    before: list[list[str]]


def decode(agent: Agent, thoughts: Thoughts) -> list[list[str]]:
    """The texts of thoughts, by prompt and number."""
    assert agent.model is not None
    texts = agent.model.tokenizer.decode
    tokens, lengths = np.asarray(thoughts.tokens), np.asarray(thoughts.lengths)
    return [
        [texts(ids[:length].tolist()).strip() for ids, length in zip(row, ends, strict=True)]
        for row, ends in zip(tokens, lengths, strict=True)
    ]


def think_aloud(agent: Agent, condition: Condition, trainable: Any, key: jax.Array) -> Spoken:
    """Lets an agent think about every prompt of a condition.

    Args:
      agent: any.
      condition: what is shown.
      trainable: its parameters.
      key: PRNG key of the thoughts.
    """
    policy = agent.policy
    if not isinstance(policy, ThinkingPolicy):
        answers = np.asarray(policy_table(agent, condition, trainable).log_probs)[:, None]
        return Spoken(answers, None, [[""]] * len(answers))
    prompts = packed_prompts(agent, condition)
    thoughts = jit_think(policy, agent.layout)(agent.frozen, prompts, trainable, key)
    answers = jit_answers(policy, agent.layout)(agent.frozen, prompts, trainable, thoughts)
    texts, around = decode(agent, thoughts), policy.thinking
    before = [[f"{around.opens} {text}{around.cue}" for text in row] for row in texts]
    return Spoken(np.asarray(answers), texts, before)


@functools.lru_cache(maxsize=32)
def jit_think(policy: ThinkingPolicy, layout: Layout) -> Any:
    """The program from frozen arrays, prompts, parameters and a PRNG key to thoughts."""

    def think(frozen: Any, prompts: Any, trainable: Any, key: jax.Array) -> Thoughts:
        return policy.bind(frozen, prompts).think(trainable, key)

    return jit_often(think, layout)


@functools.lru_cache(maxsize=32)
def jit_answers(policy: ThinkingPolicy, layout: Layout) -> Any:
    """The program from frozen arrays, prompts, parameters and thoughts to the answers after them.

    They are `[num_prompts, num_thoughts, 3]` log-probabilities.
    """

    def answers(frozen: Any, prompts: Any, trainable: Any, thoughts: Thoughts) -> jax.Array:
        return policy.bind(frozen, prompts).read(trainable, thoughts).answers

    return jit_often(answers, layout)
