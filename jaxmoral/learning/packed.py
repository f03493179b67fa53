"""Packed prompts of conditions, and what agents that do not learn say to them, each made once.

They are kept as long as there is room.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout, map_spread, place
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.policy import Policy

PyTree = Any
Groups = Sequence[Sequence[Condition]]  # of as many conditions each


@dataclasses.dataclass(frozen=True, eq=False)
class FixedAgent:
    """Somebody who does not learn; each is only equal to itself.

    Attributes:
      policy: static.
      trainable: its parameters.
    """

    policy: Policy
    trainable: PyTree


class Packed(NamedTuple):
    """One condition.

    Attributes:
      prompts: `[num_chunks, ...]` in host memory.
      tables: of each fixed agent asked so far, `[num_prompts, 3]` log-probabilities.
    """

    prompts: PyTree
    tables: dict[FixedAgent, np.ndarray]


class PackedConditions:
    """Conditions of one shape, so that one compiled program serves all of them.

    Attributes:
      reference: the untrained policy.
    """

    def __init__(self, agent: Agent, room: Any, kept: int):
        """Compiles nothing yet.

        Args:
          agent: whose prompts and reference are made.
          room: of `Prompter.room`, for all conditions that will be asked for.
          kept: how many are kept.
        """
        self.reference = FixedAgent(agent.policy, agent.policy.reference_parameters())
        self._agent, self._room, self._limit = agent, room, kept
        self._kept: dict[tuple, Packed] = {}

    def prompts(self, groups: Groups) -> PyTree:
        """Packed prompts `[num_groups, num_chunks, ...]`, a group's following each other."""
        found = self._find(groups)
        joined = [
            jax.tree.map(lambda *x: np.concatenate(x), *(found[c.key].prompts for c in group))
            for group in groups
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *joined)

    def tables(self, fixed: FixedAgent, groups: Groups) -> np.ndarray:
        """What somebody says, `[num_groups, num_prompts, 3]` log-probabilities."""
        found = self._find(groups)
        missing = [packed for packed in found.values() if fixed not in packed.tables]
        layout = self._agent.layout
        # As many at once as the devices take side by side.
        at_once = layout.num_places if layout.side_by_side else 1
        for start in range(0, len(missing), at_once):
            batch = missing[start : start + at_once]
            padded = [*batch, *batch[-1:] * (at_once - len(batch))]
            together = jax.tree.map(lambda *x: np.stack(x), *(own.prompts for own in padded))
            shown = place(together, layout.stacked(True))
            tables = _reader(fixed.policy, layout)(self._agent.frozen, shown, fixed.trainable)
            for own, table in zip(batch, jax.device_get(tables), strict=False):
                own.tables[fixed] = table
        return np.stack(
            [np.concatenate([found[c.key].tables[fixed] for c in group]) for group in groups]
        )

    def _find(self, groups: Groups) -> dict[tuple, Packed]:
        wanted = {condition.key: condition for group in groups for condition in group}
        found = {key: self._kept.get(key) or self._pack(c) for key, c in wanted.items()}
        self._kept |= found
        while len(self._kept) > self._limit:  # the oldest goes first
            del self._kept[next(iter(self._kept))]
        return found

    def _pack(self, condition: Condition) -> Packed:
        prompts = self._agent.prompter.pack([[condition]], self._room)
        return Packed(jax.tree.map(lambda leaf: leaf[0], prompts), {})


@functools.lru_cache(maxsize=32)
def _reader(policy: Policy, layout: Layout) -> Callable[..., jax.Array]:
    """The program from frozen arrays, prompts and parameters to tables, compiled once.

    Prompts, and the tables' log-probabilities, have a leading axis of conditions.
    """

    def read(frozen, prompts, trainable):
        table = lambda shown: policy.bind(frozen, shown).table(trainable).log_probs
        if len(jax.tree.leaves(prompts)[0]) == 1:
            return table(jax.tree.map(lambda leaf: leaf[0], prompts))[None]
        return map_spread(table, prompts, layout)

    return jit_often(read, layout)
