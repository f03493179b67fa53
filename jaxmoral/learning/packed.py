"""Packed prompts of conditions, and what agents that do not learn say to them, each made once.

They are kept as long as there is room.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.devices.mesh import map_spread, place
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.policy import Policy

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Speaker:
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
      tables: of each speaker asked so far, `[num_prompts, 3]` log-probabilities.
    """

    prompts: PyTree
    tables: dict[Speaker, np.ndarray]


class PackedConditions:
    """Conditions of one shape, so that one compiled program serves all of them."""

    def __init__(self, agent: Agent, room: Any, kept: int):
        """Compiles nothing yet.

        Args:
          agent: whose prompts and reference are made.
          room: of `agent.room`, for all conditions that will be asked for.
          kept: how many are kept.
        """
        self.reference = Speaker(agent.policy, agent.policy.reference_parameters())
        self._agent, self._room, self._limit = agent, room, kept
        self._kept: dict[tuple, Packed] = {}
        self._programs: dict[Policy, Callable] = {}

    def stacked(self, groups: Sequence[Sequence[Condition]]) -> tuple[PyTree, np.ndarray]:
        """Groups of as many conditions each.

        Returns:
          Packed prompts `[num_groups, num_chunks, ...]`, a group's following each other, and their
          references `[num_groups, num_prompts, 3]`.
        """
        found = self._find(self.reference, [c for group in groups for c in group])
        of_group = [[found[condition.key] for condition in group] for group in groups]
        join = lambda *leaves: np.concatenate(leaves)
        prompts = [jax.tree.map(join, *(own.prompts for own in group)) for group in of_group]
        references = [
            np.concatenate([own.tables[self.reference] for own in group]) for group in of_group
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *prompts), np.stack(references)

    def table(self, speaker: Speaker, condition: Condition) -> np.ndarray:
        """What somebody says in a condition, `[num_prompts, 3]` log-probabilities."""
        return self._find(speaker, [condition])[condition.key].tables[speaker]

    def _find(self, speaker: Speaker, conditions: Sequence[Condition]) -> dict[tuple, Packed]:
        """The conditions by key, with what the speaker says in them."""
        wanted = {condition.key: condition for condition in conditions}
        found = {key: self._kept.get(key) or self._pack(c) for key, c in wanted.items()}
        silent = [own for own in found.values() if speaker not in own.tables]
        layout = self._agent.layout
        # As many at once as the devices take side by side.
        at_once = layout.num_places if layout.side_by_side else 1
        for start in range(0, len(silent), at_once):
            batch = silent[start : start + at_once]
            padded = [*batch, *batch[-1:] * (at_once - len(batch))]
            together = jax.tree.map(lambda *x: np.stack(x), *(own.prompts for own in padded))
            tables = self._say(speaker, place(together, layout.stacked(True)))
            for own, table in zip(batch, jax.device_get(tables), strict=False):
                own.tables[speaker] = table
        self._kept |= found
        while len(self._kept) > self._limit:  # the oldest goes first
            del self._kept[next(iter(self._kept))]
        return found

    def _pack(self, condition: Condition) -> Packed:
        prompts = self._agent.inputs([[condition]], self._room)
        return Packed(jax.tree.map(lambda leaf: leaf[0], prompts), {})

    def _say(self, speaker: Speaker, prompts: PyTree) -> jax.Array:
        """The speaker's tables of conditions on a leading axis."""
        layout, policy = self._agent.layout, speaker.policy

        def read(frozen, prompts, trainable):
            table = lambda shown: policy.bind(frozen, shown).table(trainable).log_probs
            if len(jax.tree.leaves(prompts)[0]) == 1:
                return table(jax.tree.map(lambda leaf: leaf[0], prompts))[None]
            return map_spread(table, prompts, layout)

        if policy not in self._programs:
            self._programs[policy] = jax.jit(
                read, out_shardings=layout.sharding(), compiler_options=on_cpu(OFTEN)
            )
        return self._programs[policy](self._agent.frozen, prompts, speaker.trainable)
