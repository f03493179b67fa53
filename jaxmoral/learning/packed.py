"""Packed prompts and references of conditions, each made once and kept as long as there is room."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.devices.mesh import map_spread, place
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.policy import reference_table

PyTree = Any


class Packed(NamedTuple):
    """One condition.

    Attributes:
      prompts: `[num_chunks, ...]` in host memory.
      reference: `[num_prompts, 3]` log-probabilities of the untrained policy.
    """

    prompts: PyTree
    reference: np.ndarray


class PackedConditions:
    """Conditions of one shape, so that one compiled program serves all of them."""

    def __init__(self, agent: Agent, room: Any, kept: int, compiler_options: dict):
        """Compiles nothing yet.

        Args:
          agent: whose prompts and reference are made.
          room: of `agent.room`, for all conditions that will be asked for.
          kept: how many are kept.
          compiler_options: of the reference's program.
        """
        self._agent, self._room, self._limit = agent, room, kept
        self._kept: dict[tuple, Packed] = {}
        layout = agent.layout
        # As many at once as the devices take side by side.
        self._at_once = layout.num_places if layout.side_by_side else 1
        self._lead = layout.sharding(layout.lead_axes)

        def refer(frozen, prompts):
            reference = partial(reference_table, agent.policy, frozen)
            if self._at_once == 1:
                return reference(jax.tree.map(lambda leaf: leaf[0], prompts))[None]
            return map_spread(reference, prompts, layout)

        self._refer = jax.jit(
            refer, out_shardings=layout.sharding(), compiler_options=compiler_options
        )

    def stacked(self, groups: Sequence[Sequence[Condition]]) -> tuple[PyTree, np.ndarray]:
        """Groups of as many conditions each.

        Returns:
          Packed prompts `[num_groups, num_chunks, ...]`, a group's following each other, and their
          references `[num_groups, num_prompts, 3]`.
        """
        found = self._find([condition for group in groups for condition in group])
        of_group = [[found[condition.key] for condition in group] for group in groups]
        join = lambda *leaves: np.concatenate(leaves)
        prompts = [jax.tree.map(join, *(own.prompts for own in group)) for group in of_group]
        references = [np.concatenate([own.reference for own in group]) for group in of_group]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *prompts), np.stack(references)

    def _find(self, conditions: Sequence[Condition]) -> dict[tuple, Packed]:
        wanted = {condition.key: condition for condition in conditions}
        found = {key: self._kept[key] for key in wanted if key in self._kept}
        missing = [key for key in wanted if key not in found]
        for start in range(0, len(missing), self._at_once):
            batch = missing[start : start + self._at_once]
            found |= zip(batch, self._make([wanted[key] for key in batch]), strict=True)
        self._kept |= found
        while len(self._kept) > self._limit:  # the oldest goes first
            del self._kept[next(iter(self._kept))]
        return found

    def _make(self, conditions: Sequence[Condition]) -> list[Packed]:
        packed = [self._agent.inputs([[condition]], self._room) for condition in conditions]
        alone = [jax.tree.map(lambda leaf: leaf[0], prompts) for prompts in packed]
        padded = [*alone, *alone[-1:] * (self._at_once - len(alone))]
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
        references = self._refer(self._agent.frozen, place(together, self._lead))
        return list(map(Packed, alone, jax.device_get(references)))
