"""Which token sequences spell an action label, and their exact probabilities.

A response is at most `budget` tokens; a stop token ends it early. It is legal when its text,
stripped of ASCII white space, is one of the two labels; everything else is illegal. Several token
sequences spell a label (with a leading space or not, split here or there), so the legal responses
form a small trie. Its inner nodes are the partial responses that can still become a label: the
model's next-token distributions there determine P(C), P(D) and P(illegal) exactly.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

WHITESPACE = b" \t\n\r\x0b\x0c"


class Responses(NamedTuple):
    """The trie of legal responses, as arrays.

    Attributes:
      prefixes: the inner nodes as token sequences; the first is the empty one.
      edge_node, edge_token: `[num_edges]` int32; the continuations of inner nodes that stay legal.
      spelling_edges: `[num_spellings, budget]` int32 edges that make up each spelling, padded
        with `num_edges`.
      spelling_action: `[num_spellings]` int32, the action a spelling stands for (0 or 1).
      prefix_edges: `[num_prefixes, budget]` int32 edges that lead to each inner node, padded with
        `num_edges`.
    """

    prefixes: tuple[tuple[int, ...], ...]
    edge_node: np.ndarray
    edge_token: np.ndarray
    spelling_edges: np.ndarray
    spelling_action: np.ndarray
    prefix_edges: np.ndarray


def spell(
    labels: Sequence[bytes],
    pieces: Sequence[bytes | None],
    stop_tokens: Sequence[int],
    budget: int,
    max_prefixes: int = 64,
) -> Responses:
    """Enumerates every legal response.

    Args:
      labels: the labels of C and D, neither a prefix of the other.
      pieces: `[vocab_size]` what each token adds to the text; None for control tokens, which
        never belong to a legal response.
      stop_tokens: tokens that end a response; they add no text.
      budget: the largest number of tokens of a response.
      max_prefixes: the most partial responses; each costs a row of logits per prompt.

    Raises:
      ValueError: no response within the budget spells one of the labels, or there are too many
        partial ones (a label far shorter than the budget leaves room for white space anywhere).
    """
    useful = {
        token: piece
        for token, piece in enumerate(pieces)
        if piece and token not in stop_tokens and any(piece.strip(WHITESPACE) in x for x in labels)
    }
    complete: list[tuple[tuple[int, ...], int]] = []
    inner: list[tuple[int, ...]] = []

    def can_begin(text: bytes) -> bool:
        return any(_begins(text, label) for label in labels)

    @functools.cache
    def fewest(text: bytes) -> int:
        """A lower bound on the tokens still missing; prunes what cannot fit the budget."""
        if text.rstrip(WHITESPACE) in labels:
            return 0
        steps = (text + piece for piece in useful.values() if piece.strip(WHITESPACE))
        lengths = (fewest(step.lstrip(WHITESPACE)) for step in steps if can_begin(step))
        return 1 + min(lengths, default=budget)

    def extend(prefix: tuple[int, ...], text: bytes) -> None:
        stripped = text.strip(WHITESPACE)
        if stripped in labels:
            action = labels.index(stripped)
            if len(prefix) == budget:
                complete.append((prefix, action))
            else:
                complete.extend(((*prefix, stop), action) for stop in stop_tokens)
        if len(prefix) == budget:
            return
        inner.append(prefix)
        if len(inner) > max_prefixes:
            raise ValueError(
                f"more than {max_prefixes} partial responses of up to {budget} tokens can become"
                f" {labels[0].decode()!r} or {labels[1].decode()!r}; choose two labels of the same"
                " number of tokens"
            )
        for token, piece in useful.items():
            longer = (text + piece).lstrip(WHITESPACE)
            if can_begin(longer) and len(prefix) + 1 + fewest(longer) <= budget:
                extend((*prefix, token), text + piece)

    extend((), b"")
    if {action for _, action in complete} != {0, 1}:
        raise ValueError(f"no response of at most {budget} tokens spells one of {labels!r}")
    return _as_arrays(complete, budget)


def _begins(text: bytes, label: bytes) -> bool:
    """Whether `text` can still become `label` with white space around it."""
    text = text.lstrip(WHITESPACE)
    return label.startswith(text) or (text.startswith(label) and text.rstrip(WHITESPACE) == label)


def _as_arrays(complete: list[tuple[tuple[int, ...], int]], budget: int) -> Responses:
    sequences = [sequence for sequence, _ in complete]
    prefixes = tuple(
        sorted({s[:i] for s in sequences for i in range(len(s))}, key=lambda p: (len(p), p))
    )
    edges = sorted({(prefixes.index(s[:i]), s[i]) for s in sequences for i in range(len(s))})

    def path(sequence: tuple[int, ...]) -> list[int]:
        steps = [edges.index((prefixes.index(sequence[:i]), t)) for i, t in enumerate(sequence)]
        return steps + [len(edges)] * (budget - len(steps))

    return Responses(
        prefixes=prefixes,
        edge_node=np.array([node for node, _ in edges], np.int32),
        edge_token=np.array([token for _, token in edges], np.int32),
        spelling_edges=np.array([path(s) for s in sequences], np.int32),
        spelling_action=np.array([action for _, action in complete], np.int32),
        prefix_edges=np.array([path(p) for p in prefixes], np.int32),
    )


def outcome_log_probs(logits: chex.Array, responses: Responses) -> jax.Array:
    """The exact response distribution.

    P(illegal) is the sum over inner nodes of reaching the node and leaving the trie there, not
    one minus the rest, so it keeps its relative precision when it is tiny.

    Args:
      logits: `[num_prompts, num_prefixes, vocab_size]` next-token logits at the inner nodes.
      responses: the trie.

    Returns:
      `[num_prompts, 3]` float32 log-probabilities of C, D and illegal.
    """
    chex.assert_rank(logits, 3)
    chex.assert_axis_dimension(logits, 1, len(responses.prefixes))
    logits = logits.astype(jnp.float32)
    node, token = responses.edge_node, responses.edge_token
    num_prefixes, vocab_size = logits.shape[1:]
    legal = jnp.zeros((num_prefixes, vocab_size), bool).at[node, token].set(True)
    outside = jax.nn.logsumexp(jnp.where(legal, -jnp.inf, logits), axis=-1)

    # One pass over the vocabulary is enough: the rest of the normaliser is a handful of edges.
    edges = logits[:, node, token]
    own = jnp.where(node == jnp.arange(num_prefixes)[:, None], edges[:, None], -jnp.inf)
    normaliser = jax.nn.logsumexp(jnp.concatenate([outside[..., None], own], -1), axis=-1)

    edges = jnp.pad(edges - normaliser[:, node], ((0, 0), (0, 1)))
    spellings = edges[:, responses.spelling_edges].sum(-1)
    actions = [
        jax.nn.logsumexp(spellings[:, responses.spelling_action == action], axis=-1)
        for action in (0, 1)
    ]
    leaving = outside - normaliser
    reaching = edges[:, responses.prefix_edges].sum(-1)
    illegal = jax.nn.logsumexp(reaching + leaving, axis=-1)
    return jnp.stack([*actions, illegal], axis=-1)
