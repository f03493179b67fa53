"""Policies: what maps parameters to the response distribution of every prompt, a `PolicyTable`.

A policy holds only static facts. `bind` gives it the arrays that training leaves alone: `frozen`,
and `prompts` (those of one game or of a few that follow each other, in chunks of equal size on a
leading axis). What is bound is a function of the trainable parameters. The update does not know
which policy it has, but for one that thinks (`thinking_policy`), whose table is sampled; what
needs words asks whether a policy is tabular.
"""

from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any


class PolicyTable(NamedTuple):
    """All there is to know about an agent in a game, or in a few that follow each other.

    Attributes:
      log_probs: `[num_prompts, 3]` float32, log-probabilities of C, D and illegal.
      values: `[num_prompts]` float32, the value head's estimates.
    """

    log_probs: jax.Array
    values: jax.Array


class BoundPolicy(Protocol):
    """A policy with its frozen arrays and its prompts; no dropout without a key."""

    def table(self, trainable: PyTree, dropout_key: jax.Array | None = None) -> PolicyTable:
        """What it says to every prompt."""

    def table_and_logits(
        self, trainable: PyTree, dropout_key: jax.Array | None = None
    ) -> tuple[PolicyTable, jax.Array]:
        """The table and what `write` needs, `[num_prompts, num_prefixes, vocab_size]`."""

    def write(
        self,
        trainable: PyTree,
        dropout_key: jax.Array | None = None,
        *,
        logits: jax.Array,
        key: jax.Array,
        prompt: jax.Array,
        outcome: jax.Array,
    ) -> jax.Array:
        """Samples the tokens of whole answers given what they amount to.

        Args:
          trainable, dropout_key: as for `table`.
          logits: from `table_and_logits`.
          key: PRNG key.
          prompt, outcome: `[num_samples]` int32.

        Returns:
          `[num_samples, budget]` int32.
        """

    def score(
        self, trainable: PyTree, *, prompt: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability of and value before each token, `[num_samples, budget]` each."""


class Policy(Protocol):
    """The interface every policy has."""

    def __hash__(self) -> int:
        """Compiled programs are kept by policy: those that are equal compute the same."""

    @property
    def dropout(self) -> bool:
        """Whether dropout keys are used."""

    def init(self, key: jax.Array) -> PyTree:
        """Fresh trainable parameters that leave the reference policy as it is."""

    def reference_parameters(self) -> PyTree:
        """The reference policy's, in the place of trainable ones."""

    def bind(self, frozen: PyTree, prompts: PyTree) -> BoundPolicy:
        """The policy with its arrays."""
