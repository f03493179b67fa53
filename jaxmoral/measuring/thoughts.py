"""Whether a thought matters for the answer after it, and what is thought.

The same agent answers after thoughts that are its own, after none, after those of its base, after
its own thoughts about another history, and perhaps after another agent's. Beside that stands the
mutual information of thought and answer given the prompt. Answers are exact given thoughts, so the
sampling of thoughts is the only noise, and there is a standard error for it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.language.thought_tree import Thoughts
from jaxmoral.learning.agent import Agent, packed_prompts
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.thinking import information_values
from jaxmoral.learning.thinking_policy import ThinkingPolicy
from jaxmoral.measuring.aloud import decode, jit_answers, jit_think
from jaxmoral.models.load import same_model
from jaxmoral.world.memory import NUM_ORDERS, OUTCOMES

PyTree = Any
SUITE = "thoughts"
SAMPLES = 3  # thoughts that are shown of each history


def rethought(agent: Agent, config: Config) -> Agent:
    """The agent with as many tokens of thought as the evaluation asks for."""
    tokens = config.evaluation.thinking
    if tokens is None or not isinstance(agent.policy, ThinkingPolicy):
        return agent
    assert isinstance(agent.prompter, Prompter)
    assert agent.model is not None
    around = agent.policy.thinking._replace(tokens=tokens)
    if not tokens:  # all thoughts are alike
        around = around._replace(thoughts=1)
    policy = dataclasses.replace(agent.policy, thinking=around)
    old = agent.prompter
    prompter = Prompter(agent.model, old.template, old.max_nodes, old.multiple, around)
    return agent._replace(policy=policy, prompter=prompter)


def check_thinks(agent: Agent) -> None:
    """Raises UserError unless there are thoughts to be studied."""
    if not isinstance(agent.policy, ThinkingPolicy) or not agent.policy.thinking.tokens:
        raise UserError(
            f"evaluation.suites: {SUITE} is about agents that think; this one has thinking.tokens 0"
        )


def other_thinker(folder: Path, agent: Agent) -> PyTree:
    """The trained parameters of another run, whose thoughts the agent is given.

    Raises:
      UserError: there is no such run, or it is of another model or does not think.
    """
    other = load_trained(folder)
    ours, theirs = agent.policy, other.agent.policy
    assert agent.model is not None
    if other.agent.model is None or not same_model(other.agent.model.sha256, agent.model.sha256):
        raise UserError(f"{folder}: it has another model than the agent under study")
    if not isinstance(theirs, ThinkingPolicy):
        raise UserError(f"{folder}: it holds an agent that does not think")
    if theirs.lora != getattr(ours, "lora", None):
        raise UserError(f"{folder}: its lora.* differs from that of the agent under study")
    return other.trainable


def study(
    agent: Agent, condition: Condition, policies: Mapping[str, PyTree], key: jax.Array
) -> dict[str, Any]:
    """What agents think in a condition, and what it does to their answers.

    Args:
      agent: that thinks.
      condition: what is shown.
      policies: parameters by name: "base", "tuned", perhaps "another", whose thoughts alone count.
      key: PRNG key.

    Returns:
      `{"tokens", "thoughts", "policies": {policy: {"information": {history: {"nats", "error"}},
      "after": {whose thoughts: {history: {"C", "D", "illegal", "error"}}}, "said": {history:
      [{"thought", "C", "D", "illegal"}, ...]}}}}`; errors are those of C. Histories are as in
      "remembered" of `evaluation.describe`.
    """
    inputs = packed_prompts(agent, condition)
    policy = agent.policy
    assert isinstance(policy, ThinkingPolicy)
    keys = dict(zip(policies, jax.random.split(key, len(policies)), strict=True))
    thought = {
        name: jit_think(policy, agent.layout)(agent.frozen, inputs, trainable, keys[name])
        for name, trainable in policies.items()
    }
    names = condition.presentation.remembers(condition.game).names
    read_after, found = jit_answers(policy, agent.layout), {}
    for name in (name for name in policies if name != "another"):
        own = thought[name]
        given = {
            "own": own,
            "none": Thoughts(jnp.zeros_like(own.tokens), jnp.zeros_like(own.lengths)),
        }
        if len(names) > 1:
            moved = jax.tree.map(lambda x: jnp.roll(x, NUM_ORDERS, axis=0), own)
            given["another history's"] = moved
        given |= {"base's": thought["base"]} if name != "base" else {}
        given |= {"another agent's": thought["another"]} if "another" in thought else {}
        answers = {
            whose: np.asarray(
                read_after(agent.frozen, inputs, policies[name], thoughts), np.float64
            )
            for whose, thoughts in given.items()
        }
        found[name] = {
            "information": _information(answers["own"], names),
            "after": {whose: _table(read, names) for whose, read in answers.items()},
            "said": _said(agent, own, answers["own"], names),
        }
    around = policy.thinking
    return {"tokens": around.tokens, "thoughts": around.thoughts, "policies": found}


def _by_history(each: np.ndarray) -> np.ndarray:
    """`[num_prompts, ...]` to `[num_histories, NUM_ORDERS, ...]`."""
    return each.reshape(-1, NUM_ORDERS, *each.shape[1:])


def _error(each: np.ndarray) -> np.ndarray:
    """Of the mean over orders of means over thoughts, `[num_prompts, num_thoughts]` to histories.

    One thought has no error that could be told: 0.
    """
    num_thoughts = each.shape[1]
    spread = each.var(1, ddof=min(1, num_thoughts - 1)) / num_thoughts
    return np.sqrt(_by_history(spread).sum(1)) / NUM_ORDERS


def _information(answers: np.ndarray, names: list[str]) -> dict[str, dict[str, float]]:
    values = np.asarray(information_values(jnp.asarray(answers, jnp.float32)))
    means = _by_history(values.mean(1)).mean(1)
    return {
        name: {"nats": float(mean), "error": float(error)}
        for name, mean, error in zip(names, means, _error(values), strict=True)
    }


def _table(answers: np.ndarray, names: list[str]) -> dict[str, dict[str, float]]:
    probs = np.exp(answers)
    rows = _by_history(probs.mean(1)).mean(1)
    return {
        name: dict(zip(OUTCOMES, map(float, row), strict=True)) | {"error": float(error)}
        for name, row, error in zip(names, rows, _error(probs[..., 0]), strict=True)
    }


def _said(
    agent: Agent, thoughts: Thoughts, answers: np.ndarray, names: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Some thoughts of each history, in its first order of labels, with the answers after them."""
    texts, probs = decode(agent, thoughts), np.exp(answers)
    return {
        name: [
            {"thought": text, **dict(zip(OUTCOMES, map(float, row), strict=True))}
            for text, row in zip(texts[prompt][:SAMPLES], probs[prompt], strict=False)
        ]
        for name, prompt in zip(names, range(0, len(texts), NUM_ORDERS), strict=True)
    }


def lines(studied: Mapping[str, Any]) -> list[str]:
    """A study as text."""
    shown = []
    for policy, found in studied["policies"].items():
        histories = list(found["information"])
        head = f"{'P(C) after thoughts that are':30}" + "".join(f"{h:>16}" for h in histories)
        shown += [f"{policy}, {studied['thoughts']} thoughts of up to {studied['tokens']} tokens"]
        shown += [head, "-" * len(head)]
        for whose, rows in found["after"].items():
            cells = [f"{row['C']:.1%} ± {row['error']:.1%}" for row in rows.values()]
            shown.append(f"{whose:30}" + "".join(f"{cell:>16}" for cell in cells))
        cells = [f"{row['nats']:.3f} ± {row['error']:.3f}" for row in found["information"].values()]
        shown.append(f"{'information, nats':30}" + "".join(f"{cell:>16}" for cell in cells))
        for history, each in found["said"].items():
            for one in each:
                said = " ".join(one["thought"].split())
                shown.append(f"  {history}: {said!r}, then C {one['C']:.1%}, D {one['D']:.1%}")
        shown.append("")
    return shown
