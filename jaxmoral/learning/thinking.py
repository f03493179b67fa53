"""Learning to think: the gradient of a policy that samples a thought and then answers.

At a prompt x an agent thinks t with probability p(t | x) and then gives each answer o with
probability q(o | t), which is known. So the policy table is a mean, pi(o | x) = E_t q(o | t),
estimated by that over R sampled thoughts. Of a loss L that is a function of the table,

    grad L = sum_o dL/dpi(o)  E_t[ grad q(o | t)  +  q(o | t) grad log p(t | x) ].

The first part is exact given the thoughts: the gradient flows through the answers. The second is a
policy gradient over the thoughts' tokens, in which a thought is worth V(t) = -sum_o q(o | t)
dL/dpi(o): what its answers do for the loss, the KL to the reference and the entropy included. From
that a baseline is taken, the mean worth of the prompt's other thoughts, which no thought of its own
enters; so it changes no expectation. Nothing else of an update knows about thoughts.

Group baselines, and their division by the standard deviation: Shao et al., arXiv 2402.03300
(GRPO); clipped ratios of whole sequences: Zheng et al., arXiv 2507.18071 (GSPO). `docs/thinking.md`
says what is different here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmoral.config import PPOConfig, ThinkingConfig
from jaxmoral.learning.batches import Batch
from jaxmoral.learning.losses import Metrics, exact_entropy
from jaxmoral.learning.policy import PolicyTable

TableLoss = Callable[[PolicyTable, jax.Array], jax.Array]  # and the reference's log-probabilities
_LITTLE = 1e-4  # GRPO's, beside a standard deviation


class Reading(NamedTuple):
    """What a policy makes of given thoughts.

    Attributes:
      answers: `[num_prompts, num_thoughts, 3]` log-probabilities of C, D and illegal after each.
      values: `[num_prompts]`, the value head's estimates before any thought.
      tokens: `[num_prompts, num_thoughts, room]` log-probabilities of the thoughts' own tokens, 0
        where none was sampled.
    """

    answers: jax.Array
    values: jax.Array
    tokens: jax.Array

    @property
    def table(self) -> PolicyTable:
        """What the agent does on average over the thoughts."""
        return PolicyTable(mean_answers(self.answers), self.values)


class ThoughtBatch(NamedTuple):
    """What a gradient step learns about thoughts.

    Attributes:
      visits: `[num_prompts]`, how often each prompt comes in the batch; they add up to 1.
      advantage: `[num_prompts, num_thoughts]` of a thought, each time its prompt comes.
      log_prob: `[num_prompts, num_thoughts, room]` of the tokens by the behaviour policy.
    """

    visits: jax.Array
    advantage: jax.Array
    log_prob: jax.Array


def mean_answers(answers: jax.Array) -> jax.Array:
    """Log of the mean probability over thoughts, `[num_prompts, num_thoughts, 3]` to `[.., 3]`."""
    return jax.nn.logsumexp(answers, axis=1) - jnp.log(answers.shape[1])


def means_of_others(answers: jax.Array) -> jax.Array:
    """`mean_answers` over all thoughts but one, for each, `[num_prompts, num_thoughts, 3]`."""
    num_thoughts = answers.shape[1]
    own = jnp.eye(num_thoughts, dtype=bool)[..., None]
    others = jnp.where(own, -jnp.inf, answers[:, None])
    return jax.nn.logsumexp(others, axis=2) - jnp.log(num_thoughts - 1)


def visits(batch: Batch, num_prompts: int) -> jax.Array:
    """How often each prompt comes in a batch, `[num_prompts]`."""
    if batch.prompt is None:
        return batch.weight.reshape(num_prompts, -1).sum(-1)
    return jnp.zeros(num_prompts, batch.weight.dtype).at[batch.prompt].add(batch.weight)


def worths(loss: TableLoss, reading: Reading, reference: jax.Array) -> jax.Array:
    """What thoughts are worth by a loss that is to be minimised, `[num_prompts, num_thoughts]`.

    The reference answers after the same thoughts, so it changes with them as well.

    Args:
      loss: of a policy table and the reference's log-probabilities.
      reading: of the behaviour policy.
      reference: `[num_prompts, num_thoughts, 3]` log-probabilities after the same thoughts.
    """

    def of_means(own, others):
        return loss(PolicyTable(own, reading.values), others)

    each = reading.answers, reference
    means = tuple(map(mean_answers, each))
    slopes = jax.grad(of_means, (0, 1))(*means)  # by logarithms, which keeps rare answers finite
    worth = jnp.zeros(reading.answers.shape[:2], reading.answers.dtype)
    for answers, mean, slope in zip(each, means, slopes, strict=True):
        worth -= jnp.sum(jnp.exp(answers - mean[:, None]) * slope[:, None], axis=-1)
    return worth


def advantages(worth: jax.Array, baseline: str) -> jax.Array:
    """Thoughts' worth compared with a baseline, `[num_prompts, num_thoughts]`.

    With "value" there is nothing to take: answers' advantages are relative to the value head.
    """
    if baseline == "value":
        return worth
    num_thoughts = worth.shape[1]
    relative = (worth - worth.mean(1, keepdims=True)) * (num_thoughts / (num_thoughts - 1))
    if baseline == "group-std":
        relative = relative / (worth.std(1, ddof=1, keepdims=True) + _LITTLE)
    return relative


def make_thought_batch(
    loss: TableLoss, batch: Batch, reading: Reading, reference: jax.Array, baseline: str
) -> ThoughtBatch:
    """What a batch of answers says about the thoughts before them.

    Args:
      loss: as for `worths`, of this batch.
      batch: of the answers.
      reading, reference: as for `worths`.
      baseline: as in the configuration.
    """
    seen = visits(batch, len(reading.values))
    worth = worths(loss, reading, reference)
    # The loss counts a prompt as often as it comes; a thought's worth is that of one time.
    alone = worth / _weights(seen)[:, None]
    advantage = jax.lax.stop_gradient(advantages(alone, baseline))
    return ThoughtBatch(seen, advantage, reading.tokens)


def _weights(visits: jax.Array) -> jax.Array:
    """What prompts' thoughts count: 1 where nobody comes, as a loss may look there all the same."""
    return jnp.where(visits > 0, visits, 1)


def thought_loss(
    log_prob: jax.Array,
    batch: ThoughtBatch,
    *,
    reference: jax.Array,
    sampled: jax.Array,
    thinking: ThinkingConfig,
    config: PPOConfig,
) -> tuple[jax.Array, Metrics]:
    """The clipped objective over thoughts' tokens with their KL, to be minimised, and its parts.

    A thought counts as the sum over its tokens, however many, since its probability is their
    product; the KL to the reference is estimated from each sampled token as r - 1 - log r, where r
    is the reference's probability over the policy's.

    Args:
      log_prob: `[num_prompts, num_thoughts, room]` of the tokens by the current policy.
      batch: by the behaviour policy.
      reference: like `log_prob`, by the reference policy.
      sampled: likewise, which tokens count.
      thinking, config: the settings.
    """
    weight = batch.visits[:, None] / log_prob.shape[1]
    change = jnp.where(sampled, log_prob - batch.log_prob, 0)
    count = sampled.sum(-1, keepdims=True)
    if thinking.ratio == "sequence":  # each of the tokens has the thought's mean
        change = jnp.broadcast_to(change.sum(-1, keepdims=True) / count, change.shape)
    ratio = jnp.exp(change)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    advantage = batch.advantage[..., None]
    gain = jnp.minimum(ratio * advantage, clipped * advantage)
    gains = jnp.sum(jnp.where(sampled, gain, 0), -1)
    policy_loss = -jnp.sum(_weights(batch.visits)[:, None] / log_prob.shape[1] * gains)
    away = jnp.where(sampled, reference - log_prob, 0)
    kl = jnp.sum(weight * jnp.sum(jnp.exp(away) - 1 - away, -1))
    outside = jnp.where(sampled, jnp.abs(ratio - 1) > config.clip, 0).sum(-1) / count[..., 0]
    return policy_loss + thinking.kl_coef * kl, {
        "thought_loss": policy_loss,
        "thought_kl": kl,
        "thought_clip_fraction": jnp.sum(weight * outside),
    }


def information_values(answers: jax.Array) -> jax.Array:
    """The mutual information of thought and answer given the prompt, in nats, by each thought.

    It is the entropy of the mean answer minus the mean entropy of the answers. Over a sample of
    thoughts it comes out too small, since their mean varies with them: of the jackknife's values,
    which these are, the mean is without the first order of that, and their spread tells its error.

    Args:
      answers: `[num_prompts, num_thoughts, 3]` log-probabilities after each thought.

    Returns:
      `[num_prompts, num_thoughts]`; one thought alone says nothing.
    """
    num_thoughts = answers.shape[1]
    each = exact_entropy(answers)
    if num_thoughts == 1:
        return jnp.zeros_like(each)
    total = each.sum(1, keepdims=True)
    whole = exact_entropy(mean_answers(answers))[:, None] - total / num_thoughts
    without = exact_entropy(means_of_others(answers)) - (total - each) / (num_thoughts - 1)
    return num_thoughts * whole - (num_thoughts - 1) * without
