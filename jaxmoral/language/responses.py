"""Which token sequences spell one of several labels, and their exact probabilities.

A response is legal when its text is one of the labels, perhaps with one space before it and with
ASCII white space behind it; everything else is illegal. It is read for as many tokens as a label
has at most, its budget, which may be another one after a space ("7" in a vocabulary without " 7");
a stop token ends it early. Several token sequences spell a label (with a space or not, split here
or there), so the legal responses form a small trie. Its inner nodes are the partial responses that
can still become a label: the model's next-token distributions there determine the probability of
each label, and P(illegal), exactly. In a game the labels are those of C and D; a choice among N
options has N.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

WHITESPACE = b" \t\n\r\x0b\x0c"


class Trie(NamedTuple):
    """The legal responses as arrays; tries of several label pairs are padded alike.

    Paths are filled up with `no_edge`; those of padding are made of the number after it, the closed
    edge, which cannot be taken.

    Attributes:
      edge_node, edge_token: `[num_edges]` int32; the continuations of inner nodes that stay legal.
        Padding edges leave `no_node`.
      spelling_edges: `[num_spellings, budget]` int32 edges that make up each spelling.
      spelling_action: `[num_spellings]` int32, the action (or option) a spelling stands for.
      prefix_edges: `[num_prefixes, budget]` int32 edges that lead to each inner node.
    """

    edge_node: np.ndarray | jax.Array
    edge_token: np.ndarray | jax.Array
    spelling_edges: np.ndarray | jax.Array
    spelling_action: np.ndarray | jax.Array
    prefix_edges: np.ndarray | jax.Array

    @property
    def no_edge(self) -> int:
        """Takes nothing; it follows the end of a path."""
        return self.edge_node.shape[-1]

    @property
    def no_node(self) -> int:
        """Does not exist; padding edges leave it."""
        return self.prefix_edges.shape[-2]


class Responses(NamedTuple):
    """Every legal response.

    Attributes:
      prefixes: the trie's inner nodes as token sequences; the first is the empty one.
      trie: the same and its edges as arrays.
    """

    prefixes: tuple[tuple[int, ...], ...]
    trie: Trie


Pieces = Mapping[bytes, Mapping[int, bytes]]


def index_pieces(pieces: Sequence[bytes | None]) -> Pieces:
    """What tokens add to a text, by that without white space around it and by the token's number.

    Args:
      pieces: `[vocab_size]`; None for control tokens, which never belong to a legal response.
    """
    found: dict[bytes, dict[int, bytes]] = {}
    for token, piece in enumerate(pieces):
        if piece:
            found.setdefault(piece.strip(WHITESPACE), {})[token] = piece
    return found


def _within(labels: Sequence[bytes]) -> set[bytes]:
    """Every part of the labels, the empty one too."""
    return {
        label[start:end]
        for label in labels
        for start in range(len(label) + 1)
        for end in range(start, len(label) + 1)
    }


def spell(
    labels: Sequence[bytes],
    pieces: Pieces,
    stop_tokens: Sequence[int],
    budget: int | Sequence[int],
    spaced_budget: int | Sequence[int] | None = None,
    max_prefixes: int = 64,
) -> Responses:
    """Enumerates every legal response.

    Args:
      labels: what may be written, e.g. the labels of C and D; none a prefix of another.
      pieces: from `index_pieces`.
      stop_tokens: tokens that end a response; they add no text.
      budget: the largest number of tokens of a response, or for each label.
      spaced_budget: the same after a space, if that is another number.
      max_prefixes: the most partial responses; each costs a row of logits per prompt.

    Raises:
      ValueError: no response within the budget spells one of the labels, or there are too many
        partial ones (a label far shorter than its budget leaves room for white space).
    """
    candidates = (pieces.get(part, {}).items() for part in _within(labels))
    useful = dict(sorted(itertools.chain.from_iterable(candidates)))
    for token in stop_tokens:
        useful.pop(token, None)
    budgets = np.broadcast_to(budget, len(labels)).tolist()
    spaced_budgets = budgets
    if spaced_budget is not None:
        spaced_budgets = np.broadcast_to(spaced_budget, len(labels)).tolist()
    longest = max(*budgets, *spaced_budgets)
    complete: list[tuple[tuple[int, ...], int]] = []
    inner: list[tuple[int, ...]] = []

    def most(text: bytes) -> list[int]:
        return spaced_budgets if text.startswith(b" ") else budgets

    @functools.cache
    def fewest(text: bytes, label: bytes) -> int:
        """The tokens missing after a text without the space before it."""
        if text.rstrip(WHITESPACE) == label:
            return 0
        steps = {text + piece for piece in useful.values()}
        lengths = (fewest(step, label) for step in steps if _begins(step, label))
        return 1 + min(lengths, default=longest)

    def fits(size: int, text: bytes) -> bool:
        """Whether so many tokens of this text can still become a label within its budget."""
        written = text.removeprefix(b" ")
        return any(
            _begins(written, label) and size + fewest(written, label) <= budget
            for label, budget in zip(labels, most(text), strict=True)
        )

    def extend(prefix: tuple[int, ...], text: bytes) -> None:
        written = text.removeprefix(b" ")
        stripped = written.rstrip(WHITESPACE)
        if stripped in labels:
            action = labels.index(stripped)
            if len(prefix) >= most(text)[action]:
                complete.append((prefix, action))
                return
            complete.extend(((*prefix, stop), action) for stop in stop_tokens)
        if not any(
            len(prefix) < budget and _begins(written, label)
            for label, budget in zip(labels, most(text), strict=True)
        ):
            return
        inner.append(prefix)
        if len(inner) > max_prefixes:
            shown = " or ".join(repr(label.decode()) for label in labels)
            raise ValueError(
                f"more than {max_prefixes} partial responses of up to {longest} tokens can"
                f" become {shown}"
            )
        for token, piece in useful.items():
            if fits(len(prefix) + 1, text + piece):
                extend((*prefix, token), text + piece)

    extend((), b"")
    if {action for _, action in complete} != {*range(len(labels))}:
        raise ValueError(f"no response of at most {longest} tokens spells one of {labels!r}")
    return _as_arrays(complete, longest)


def _begins(text: bytes, label: bytes) -> bool:
    """Whether `text` can still become `label` with white space behind it."""
    return label.startswith(text) or (text.startswith(label) and text.rstrip(WHITESPACE) == label)


def _as_arrays(complete: list[tuple[tuple[int, ...], int]], budget: int) -> Responses:
    sequences = [sequence for sequence, _ in complete]
    prefixes = tuple(
        sorted({s[:i] for s in sequences for i in range(len(s))}, key=lambda p: (len(p), p))
    )
    edges = sorted({(prefixes.index(s[:i]), s[i]) for s in sequences for i in range(len(s))})

    no_edge = len(edges)

    def path(sequence: tuple[int, ...]) -> list[int]:
        steps = [edges.index((prefixes.index(sequence[:i]), t)) for i, t in enumerate(sequence)]
        return steps + [no_edge] * (budget - len(steps))

    trie = Trie(
        edge_node=np.array([node for node, _ in edges], np.int32),
        edge_token=np.array([token for _, token in edges], np.int32),
        spelling_edges=np.array([path(s) for s in sequences], np.int32),
        spelling_action=np.array([action for _, action in complete], np.int32),
        prefix_edges=np.array([path(p) for p in prefixes], np.int32),
    )
    return Responses(prefixes, trie)


class TrieSize(NamedTuple):
    """Numbers of a trie's parts; of several tries the largest of each."""

    edges: int
    spellings: int
    prefixes: int
    budget: int


def size_of(tries: Sequence[Trie]) -> TrieSize:
    """The size that has room for each of some tries."""
    sizes = [
        TrieSize(trie.no_edge, len(trie.spelling_action), *trie.prefix_edges.shape)
        for trie in tries
    ]
    return TrieSize(*map(max, zip(*sizes, strict=True)))


def pad(trie: Trie, size: TrieSize) -> Trie:
    """A trie of a size; what pads it can neither be reached nor taken."""
    no_edge, closed_edge, no_node = size.edges, size.edges + 1, size.prefixes

    def paths(edges: np.ndarray | jax.Array, rows: int) -> np.ndarray:
        padded = np.full((rows, size.budget), no_edge, np.int32)
        padded[len(edges) :] = closed_edge
        padded[: len(edges), : edges.shape[1]] = np.where(edges < trie.no_edge, edges, no_edge)
        return padded

    spare = (0, no_edge - trie.no_edge)
    return Trie(
        edge_node=np.pad(trie.edge_node, spare, constant_values=no_node),
        edge_token=np.pad(trie.edge_token, spare),
        spelling_edges=paths(trie.spelling_edges, size.spellings),
        spelling_action=np.pad(
            trie.spelling_action, (0, size.spellings - len(trie.spelling_action))
        ),
        prefix_edges=paths(trie.prefix_edges, no_node),
    )


class Paths(NamedTuple):
    """Log-probabilities of the ways an answer can go, for each prompt.

    Attributes:
      spellings: `[num_prompts, num_spellings]` of every legal answer.
      leaving: `[num_prompts, num_prefixes]` of becoming illegal right after each inner node.
    """

    spellings: jax.Array
    leaving: jax.Array


def legal_tokens(trie: Trie, vocab_size: int) -> jax.Array:
    """What can follow at each inner node, `[num_prefixes, vocab_size]` bool."""
    legal = jnp.zeros((len(trie.prefix_edges), vocab_size), bool)
    return legal.at[trie.edge_node, trie.edge_token].set(True, mode="drop")


def edge_sources(trie: Trie) -> jax.Array:
    """The inner node each edge leaves, `[num_edges]` int32; the last one of padding edges."""
    return jnp.minimum(jnp.asarray(trie.edge_node), trie.no_node - 1)


def follow(edges: chex.Array, outside: chex.Array, trie: Trie) -> Paths:
    """Follows next-token distributions through the trie.

    Args:
      edges: `[num_prompts, num_edges]` logits of the edges at the nodes they leave.
      outside: `[num_prompts, num_prefixes]`, the log of the summed exponentials of the logits of
        all tokens that do not stay legal.
      trie: the legal responses.
    """
    chex.assert_axis_dimension(outside, 1, len(trie.prefix_edges))
    node = jnp.asarray(trie.edge_node)
    own = jnp.where(node == jnp.arange(outside.shape[1])[:, None], edges[:, None], -jnp.inf)
    normaliser = jax.nn.logsumexp(jnp.concatenate([outside[..., None], own], -1), axis=-1)

    taken = edges - normaliser[:, edge_sources(trie)]
    # `no_edge` is sure to be taken, the closed edge never.
    sure, never = jnp.zeros((len(edges), 1)), jnp.full((len(edges), 1), -jnp.inf)
    taken = jnp.concatenate([taken, sure, never], -1)
    reaching = taken[:, trie.prefix_edges].sum(-1)
    return Paths(taken[:, trie.spelling_edges].sum(-1), reaching + outside - normaliser)


def path_log_probs(logits: chex.Array, trie: Trie) -> Paths:
    """`follow`, given all of the next-token logits at the inner nodes.

    Args:
      logits: `[num_prompts, num_prefixes, vocab_size]`.
      trie: the legal responses.
    """
    chex.assert_rank(logits, 3)
    chex.assert_axis_dimension(logits, 1, len(trie.prefix_edges))
    logits = logits.astype(jnp.float32)
    legal = legal_tokens(trie, logits.shape[-1])
    outside = jax.nn.logsumexp(jnp.where(legal, -jnp.inf, logits), axis=-1)
    return follow(logits[:, edge_sources(trie), trie.edge_token], outside, trie)


def outcome_log_probs(logits: chex.Array, trie: Trie) -> jax.Array:
    """`outcomes`, given all next-token logits `[num_prompts, num_prefixes, vocab_size]`."""
    return outcomes(path_log_probs(logits, trie), trie)


def outcomes(paths: Paths, trie: Trie, num_options: int = 2) -> jax.Array:
    """The exact response distribution, `[num_prompts, num_options + 1]` log-probabilities.

    They are those of C, D and illegal, or of some options and illegal; an option that nothing
    spells has none.

    P(illegal) is the sum over inner nodes of reaching the node and leaving the trie there, not
    one minus the rest, so it keeps its relative precision when it is tiny.
    """
    actions = [
        jax.nn.logsumexp(
            jnp.where(trie.spelling_action == action, paths.spellings, -jnp.inf), axis=-1
        )
        for action in range(num_options)
    ]
    return jnp.stack([*actions, jax.nn.logsumexp(paths.leaving, axis=-1)], axis=-1)


def sample_answer(
    key: jax.Array, logits: jax.Array, trie: Trie, prompt: jax.Array, outcome: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Samples the part of an answer that decides its outcome, given the outcome.

    Args:
      key: PRNG key.
      logits: `[num_prompts, num_prefixes, vocab_size]`, as for `path_log_probs`.
      trie: the legal responses.
      prompt, outcome: `[num_samples]` int32.

    Returns:
      Tokens, `[num_samples, budget]` int32, and how many of them are decided, `[num_samples]`.
    """
    paths = path_log_probs(logits, trie)
    spelling_key, leaving_key, token_key = jax.random.split(key, 3)
    fits = trie.spelling_action == outcome[:, None]
    spelling = jax.random.categorical(
        spelling_key, jnp.where(fits, paths.spellings[prompt], -jnp.inf)
    )
    prefix = jax.random.categorical(leaving_key, paths.leaving[prompt])
    legal = legal_tokens(trie, logits.shape[-1])
    outside = jax.random.categorical(
        token_key, jnp.where(legal[prefix], -jnp.inf, logits[prompt, prefix])
    )

    is_legal = outcome < 2
    edges = jnp.where(
        is_legal[:, None],
        jnp.asarray(trie.spelling_edges)[spelling],
        jnp.asarray(trie.prefix_edges)[prefix],
    )
    known = jnp.sum(edges < trie.no_edge, axis=-1)
    tokens = jnp.asarray(trie.edge_token)[jnp.minimum(edges, trie.no_edge - 1)]
    place = jnp.arange(tokens.shape[1])
    wrong = (place == known[:, None]) & ~is_legal[:, None]
    tokens = jnp.where(wrong, outside[:, None], tokens)
    return tokens.astype(jnp.int32), jnp.where(is_legal, known, known + 1)
