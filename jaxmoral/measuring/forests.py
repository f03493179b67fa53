"""Questions with a few legal answers each, packed into forests of one shape.

A question is any text and the labels that may answer it. The questions of an item (its orders and
label sets) share a beginning and lie in one tree; items share little and lie side by side, so that
one program reads many of them at once. A forest's questions are grouped by their labels: those of a
group have one trie.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout
from jaxmoral.errors import UserError
from jaxmoral.language import prompt_tree
from jaxmoral.language.prompt_tree import PromptTree, merge
from jaxmoral.language.responses import Responses, TrieSize, pad, size_of
from jaxmoral.learning.language_policy import LanguagePolicy, PackedPrompts
from jaxmoral.learning.prompter import Prompter

PyTree = Any


class Question(NamedTuple):
    """A prompt's text, without a chat template, and the answers that are legal."""

    text: str
    labels: tuple[str, ...]


class Place(NamedTuple):
    """Where a forest has a question."""

    group: int
    row: int


class Forest(NamedTuple):
    """Packed items, not padded yet.

    Attributes:
      tree: their tokens, without paths.
      nodes: of each group `[num_rows, num_prefixes]` int32, where each partial answer ends.
      responses: of each group.
      places: of each item's questions.
    """

    tree: PromptTree
    nodes: list[np.ndarray]
    responses: list[Responses]
    places: list[list[Place]]


class Size(NamedTuple):
    """The parts of a padded forest."""

    nodes: int
    depth: int
    groups: int
    rows: int
    trie: TrieSize


def encode(prompter: Prompter, question: Question, longest: int) -> list[int]:
    """A question's tokens; raises UserError if there are more than `longest`, with an answer's."""
    ids = prompter.unopened(question.text)
    answer = prompter.options(question.labels).trie.prefix_edges.shape[1]
    if len(ids) + answer > longest:
        raise UserError(
            f"text: it takes {len(ids):,} tokens and an answer {answer}, more than the {longest:,}"
            " that are read at once (model.max_nodes, or the tokenizer's own limit)"
        )
    return ids


def plant(prompter: Prompter, items: Sequence[Sequence[tuple[Question, list[int]]]]) -> Forest:
    """Packs items, each some questions with their tokens."""
    groups: dict[tuple[str, ...], list[list[int]]] = {}
    places: list[list[Place]] = []
    for questions in items:
        places.append([])
        for question, ids in questions:
            rows = groups.setdefault(question.labels, [])
            place = Place(list(groups).index(question.labels), len(rows))
            places[-1].append(place)
            rows.append(ids)
    responses = [prompter.options(labels) for labels in groups]
    branches = [
        [[*ids, *prefix] for ids in rows for prefix in spelled.prefixes]
        for rows, spelled in zip(groups.values(), responses, strict=True)
    ]
    tree, last = merge([branch for group in branches for branch in group])
    ends = np.split(last, np.cumsum([len(group) for group in branches])[:-1])
    nodes = [
        end.reshape(-1, len(spelled.prefixes)) for end, spelled in zip(ends, responses, strict=True)
    ]
    return Forest(tree, nodes, responses, places)


def size(forests: Sequence[Forest]) -> Size:
    """The size that has room for each of some forests."""
    return Size(
        nodes=max(len(forest.tree.tokens) for forest in forests),
        depth=max(int(forest.tree.positions.max()) for forest in forests),
        groups=max(len(forest.nodes) for forest in forests),
        rows=max(len(rows) for forest in forests for rows in forest.nodes),
        trie=size_of([spelled.trie for forest in forests for spelled in forest.responses]),
    )


def padded(forest: Forest, size: Size, prompter: Prompter) -> PackedPrompts:
    """A forest of a size; what pads it repeats rows and groups.

    Args:
      forest: of `plant`.
      size: of `size`.
      prompter: what the forest was planted with.

    Returns:
      One tree with `nodes` `[groups, rows, prefixes]` and a trie a group. Nothing is written after
      the prompts, so their own tokens are left out.
    """
    nodes, tries = [], []
    for own, spelled in zip(forest.nodes, forest.responses, strict=True):
        missing = (size.rows - len(own), size.trie.prefixes - own.shape[1])
        nodes.append(np.pad(own, [(0, number) for number in missing], mode="edge"))
        tries.append(pad(spelled.trie, size.trie))
    spare = size.groups - len(nodes)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tries, *([tries[-1]] * spare))
    tree = prompt_tree.pad(forest.tree, size.nodes, size.depth, prompter.multiple)
    return PackedPrompts(
        tree=tree,
        nodes=np.stack([*nodes, *([nodes[-1]] * spare)]).astype(np.int32),
        trie=stacked,
        tokens=np.zeros((0, 0), np.int32),
        lengths=np.zeros(0, np.int32),
        beside=prompter.beside(tree.tokens),
    )


@functools.cache
def reader(policy: LanguagePolicy, num_options: int, layout: Layout) -> Any:
    """The program from frozen arrays, a padded forest and parameters to what is answered.

    It returns `[groups, rows, num_options + 1]` log-probabilities of the options and of illegal.
    """

    def read(frozen: PyTree, inputs: PackedPrompts, trainable: PyTree) -> jax.Array:
        model = policy.bind(frozen, inputs)
        hidden = model.hidden(inputs.tree, trainable, None, inputs.beside)

        def decide(group):
            nodes, trie = group
            return model.decide(hidden[nodes], trie, num_options)

        return jax.lax.map(decide, (inputs.nodes, inputs.trie))

    return jit_often(read, layout)
