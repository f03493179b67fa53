"""What a run will be, before it is one: its prompts, its answers, its base, its cost."""

import time
from collections.abc import Iterator

import jax
import numpy as np

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent, settle
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.inputs import Conditions
from jaxmoral.learning.met import Met, check_stored
from jaxmoral.learning.mixture import player_conditions
from jaxmoral.learning.packed import PackedConditions
from jaxmoral.learning.population import Members
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.starting import start_from
from jaxmoral.world.chain import memory_policy
from jaxmoral.world.memory import NUM_ORDERS, Memory

_SHORT = 2.0  # seconds
FIRST, EVERY = "first", "all"  # which prompts are shown, besides a remembered history's


def preview(config: Config, which: str = FIRST) -> Iterator[str]:
    """Lines about a run of this configuration; nothing is written.

    Args:
      config: of the run.
      which: the prompts that are shown in full: the first, all, or those of one history ("CD",
        the agent's move first; the oldest round first where several are remembered).

    Raises:
      UserError: the configuration cannot be trained, or there is no such history.
    """
    resolved = resolve(config)
    check_stored([resolved])
    lines: list[str] = []
    agent = start_from(resolved, make_agent(resolved, 1, lines.append))
    settled = settle(resolved, agent)
    condition = player_conditions(settled, agent.presentation)[0][0]
    memory = condition.presentation.remembers(condition.game)
    texts = agent.prompter.texts(condition)
    yield from [*agent.summary, *lines]
    labels = condition.presentation.labels
    yield f"condition  {condition.game.title}; {labels[0]} is C, {labels[1]} is D"
    yield from _shown(texts, memory, which)
    if isinstance(agent.prompter, Prompter):
        yield from _answers(agent.prompter, condition)
    members = [(settled, agent)]
    met = Met(members)
    yield from _base(Conditions(members, met).packed, condition, memory)
    yield from _seconds(members, met)


def _shown(texts: list[str], memory: Memory, which: str) -> Iterator[str]:
    """Prompts in full, each under its history and order."""
    names = [name for name in memory.names for _ in range(NUM_ORDERS)]
    chosen = [
        index
        for index, name in enumerate(names)
        if which in (EVERY, name) or (which == FIRST and index == 0)
    ]
    if not chosen:
        raise UserError(f"--dry-run: shows {FIRST}, {EVERY} or one of {', '.join(memory.names)}")
    for index in chosen:
        yield f"prompt {index}: after {names[index]}, order {index % NUM_ORDERS}"
        yield from (f"    | {line}" for line in texts[index].splitlines())


def _answers(prompter: Prompter, condition: Condition) -> Iterator[str]:
    """What counts as a legal answer."""
    labels = condition.presentation.labels
    trie = prompter.responses(labels).trie
    tokens = np.append(trie.edge_token, 0)
    for action, label in enumerate(labels):
        spelled = trie.spelling_edges[np.asarray(trie.spelling_action) == action]
        found = {
            prompter.tokenizer.decode(tokens[path[path < trie.no_edge]]): None for path in spelled
        }
        yield (
            f"answer {'CD'[action]}   {label!r} in {len(spelled)} ways of tokens:"
            f" {', '.join(map(repr, list(found)[:6]))}{', ...' if len(found) > 6 else ''}"
        )


def _base(packed: PackedConditions, condition: Condition, memory: Memory) -> Iterator[str]:
    """The untrained policy after each history, the mean over the labels' orders."""
    log_probs = packed.tables(packed.reference, [[condition]])[0]
    table = np.asarray(memory_policy(log_probs), np.float64)
    yield "untrained  history      C       D  illegal"
    for name, shares in zip(memory.names, table, strict=True):
        yield f"           {name:7} {shares[0]:7.2%} {shares[1]:7.2%} {shares[2]:7.2%}"


def _seconds(members: Members, met: Met) -> Iterator[str]:
    """The first update, or the one after it where the first is short and mostly preparation."""
    config = members[0][0]
    started = time.perf_counter()
    state, step = compile_update(members, met)
    compiled = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, 0))
    taken = time.perf_counter() - compiled
    if taken < _SHORT:
        began = time.perf_counter()
        jax.block_until_ready(step(state, min(1, config.updates - 1)))
        taken = time.perf_counter() - began
    total = taken * config.updates / 60
    yield (
        f"time       {compiled - started:.1f} s to compile, {taken:.2f} s an update, about"
        f" {total:.1f} min for {config.updates} updates"
    )
