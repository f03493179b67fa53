"""The language policy of an agent that thinks before it answers; see `thinking` for how it learns.

Every prompt is read once and so many thoughts are sampled after it. Then one pass over the tree of
prompts, thoughts, cues and answers gives the exact answers after each thought and the
log-probabilities of the thoughts' tokens, whoever's parameters read it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxmoral.language.thought_tree import Thoughts, fill, sources
from jaxmoral.learning.channel import Thinking
from jaxmoral.learning.language_policy import (
    LanguagePolicy,
    PackedPrompts,
    PromptedModel,
    PyTree,
    value,
)
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.thinking import Reading
from jaxmoral.models.lora import prepare
from jaxmoral.models.sample import Branching, sample

_KEY = 0  # of thoughts where nobody gives a key
NORMALISED_AT_ONCE = 512  # tokens of thoughts


@dataclasses.dataclass(frozen=True)
class ThinkingPolicy(LanguagePolicy):
    """A language policy whose answers follow sampled thoughts.

    Attributes:
      thinking: how it thinks.
    """

    thinking: Thinking = dataclasses.field(kw_only=True)

    def bind(self, frozen: PyTree, prompts: PackedPrompts) -> "ThinkingModel":
        return ThinkingModel(self, frozen, prompts)


@dataclasses.dataclass(frozen=True)
class ThinkingModel(PromptedModel):
    """A thinking policy with its weights and prompts; see `policy.BoundPolicy`."""

    policy: ThinkingPolicy

    def table(self, trainable: PyTree, dropout_key: jax.Array | None = None) -> PolicyTable:
        """The mean over thoughts, always sampled from the same random numbers."""
        thoughts = self.think(trainable, jax.random.key(_KEY))
        return self.read(trainable, thoughts, dropout_key).table

    def think(self, trainable: PyTree, key: jax.Array) -> Thoughts:
        """Samples every prompt's thoughts, without dropout."""
        how, num_chunks = self.policy.thinking, len(self.prompts.lengths)
        branching = Branching(how.thoughts, how.room, how.stops, self.policy.max_logits)
        adapter = prepare(trainable["adapter"], self.policy.config, self.policy.lora, None)

        def continued(chunk, key):
            if not how.tokens:
                nothing = jnp.zeros((len(chunk.lengths), how.thoughts), jnp.int32)
                return Thoughts(nothing[..., None], nothing)
            made = sample(self.model(), adapter, chunk.alone, key, branching, self.policy.beside)
            return Thoughts(*made)

        return self.over_chunks(continued, jax.random.split(key, num_chunks))

    def read(
        self, trainable: PyTree, thoughts: Thoughts, dropout_key: jax.Array | None = None
    ) -> Reading:
        """Answers after thoughts, whoever's they are, and the log-probabilities of their tokens."""
        num_chunks = len(self.prompts.lengths)
        by_chunk = jax.tree.map(lambda x: x.reshape(num_chunks, -1, *x.shape[1:]), thoughts)

        def read_chunk(chunk, thoughts):
            tree = fill(chunk.tree, chunk.branches.slots, thoughts)
            hidden = self.hidden(tree, trainable, dropout_key, self.look_up(tree.tokens))
            answers = self.decide(self.rows(hidden, chunk.nodes), chunk.trie)
            return Reading(
                answers.reshape(*thoughts.lengths.shape, 3),
                value(trainable, hidden[chunk.branches.ends]),
                self._token_log_probs(hidden, chunk, thoughts),
            )

        return self.over_chunks(read_chunk, by_chunk)

    def _token_log_probs(
        self, hidden: jax.Array, chunk: PackedPrompts, thoughts: Thoughts
    ) -> jax.Array:
        """Of the thoughts' own tokens, `[num_prompts, num_thoughts, room]`, without all logits."""
        model, config = self.model(), self.policy.config
        assert chunk.branches is not None
        num_prompts, num_thoughts, room = thoughts.tokens.shape
        at = sources(chunk.branches, room)
        before = hidden[at].reshape(-1, config.embed_dim)
        logits = model.chosen_logits(before, thoughts.tokens.ravel())
        # A prompt's last node is the same for all of its thoughts.
        each = jnp.concatenate([at[:, 0, :1], at[..., 1:].reshape(num_prompts, -1)], axis=1)
        later = thoughts.sampled[..., 1:].reshape(num_prompts, -1)
        used = jnp.concatenate([jnp.ones((num_prompts, 1), bool), later], axis=1)
        normaliser = self._normalisers(hidden[each.ravel()], used.ravel()).reshape(each.shape)
        first = jnp.broadcast_to(normaliser[:, :1, None], (num_prompts, num_thoughts, 1))
        rest = normaliser[:, 1:].reshape(num_prompts, num_thoughts, room - 1)
        log_probs = logits.reshape(thoughts.tokens.shape) - jnp.concatenate([first, rest], axis=-1)
        return jnp.where(thoughts.sampled, log_probs, 0)

    def _normalisers(self, hidden: jax.Array, used: jax.Array) -> jax.Array:
        """Logs of the summed exponentials of all logits, `[num_rows]`, 0 where they are not used.

        Thoughts often end early, so what is used is put first and done in parts until there is no
        more.

        Args:
          hidden: `[num_rows, embed_dim]`.
          used: `[num_rows]` bool.
        """
        model, num_rows = self.model(), len(hidden)
        size = min(NORMALISED_AT_ONCE, num_rows)
        order, count = jnp.argsort(~used), used.sum()
        padded = jnp.pad(hidden[order], ((0, -num_rows % size), (0, 0)))
        parts = padded.reshape(-1, size, 1, hidden.shape[-1])

        def sums(rows):
            return model.log_sum_exp(rows, self.policy.max_logits)[:, 0]

        def part(numbered):
            first, rows = numbered
            return jax.lax.cond(first < count, sums, lambda rows: jnp.zeros(size), rows)

        firsts = jnp.arange(0, num_rows, size)
        found = jax.lax.map(part, (firsts, parts)).ravel()[:num_rows]
        return jnp.zeros_like(found).at[order].set(found)
