"""From conditions to packed token trees."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxmoral.errors import UserError
from jaxmoral.language import prompt_tree, responses
from jaxmoral.language.prompt_tree import merge
from jaxmoral.language.prompts import Condition, all_prompts, number_text
from jaxmoral.language.responses import Responses, TrieSize, size_of
from jaxmoral.language.thought_tree import Grown, grow, paths
from jaxmoral.learning.channel import Thinking
from jaxmoral.learning.language_policy import PackedPrompts
from jaxmoral.learning.speller import Speller
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.sample import Prefixes

_NEAR = 16  # characters beside a number that its tokens may depend on
_MAX_ZEROS = 64
_MAX_KEPT = 32  # conditions whose tokens are kept
_MANY = 500  # conditions that take seconds to measure


class Room(NamedTuple):
    """Sizes to which packed prompts are padded, so that those of several conditions are alike.

    Attributes:
      prompts: of a tree.
      nodes, depth: of a tree.
      longest: tokens of a prompt.
      responses: of the legal responses.
      alone: nodes of a tree of prompts alone, of an agent that thinks.
    """

    prompts: int
    nodes: int
    depth: int
    longest: int
    responses: TrieSize
    alone: int = 0


class Prompter(Speller):
    """A speller that also packs conditions into token trees."""

    def __init__(
        self,
        model: LoadedModel,
        template: str,
        max_nodes: int = 4096,
        multiple: int = 1,
        thinking: Thinking | None = None,
        *,
        switch: str = "default",
    ):
        """Raises UserError if the tokenizer has no such template.

        Args:
          model, template, switch: as a `Speller`'s.
          max_nodes: of one tree; larger prompt sets become several.
          multiple: of which the number of blocks of every tree is one.
          thinking: how the agent thinks, if it does.
        """
        super().__init__(
            model, template, opens="" if thinking is None else thinking.opens, switch=switch
        )
        self.thinking = thinking
        self.max_nodes = max_nodes
        self.multiple = multiple
        self._beside = model.beside
        self._longest: dict[tuple, Condition] = {}
        self._sequences: dict[tuple, list[list[int]]] = {}
        self._rooms: dict[tuple, Room] = {}

    def texts(self, condition: Condition) -> list[str]:
        """The prompts of a condition as texts."""
        return all_prompts(*condition, think=self.thinking is not None)

    def sequences(self, condition: Condition) -> list[list[int]]:
        """The prompts of a condition, each followed by every partial response."""
        if condition.key not in self._sequences:
            while len(self._sequences) >= _MAX_KEPT:
                del self._sequences[next(iter(self._sequences))]
            encoded = [self.tokens(text) for text in self.texts(condition)]
            prefixes = self.responses(condition.presentation.labels).prefixes
            every = [[*ids, *prefix] for ids in encoded for prefix in prefixes]
            self._sequences[condition.key] = every
        return self._sequences[condition.key]

    def longest(self, condition: Condition, points: Sequence[float]) -> Condition:
        """The condition with texts for payoffs whose tree has room for that of any such payoffs.

        Each takes, wherever a prompt shows it, at least as many tokens as any of the points, and no
        two begin alike, so prompts share what they share whatever the payoffs are.
        """
        game, presentation = condition
        key = presentation, game.num_players, points
        if key in self._longest:
            return self._longest[key]
        shown = lambda texts: game._replace(payoffs=np.reshape(texts, game.payoffs.shape))
        size, mark = game.payoffs.size, "\x01"  # which no text of a configuration holds
        places = {("", "")}
        for text in self.texts(Condition(shown([mark] * size), presentation)):
            around = itertools.pairwise(text.split(mark))
            places |= {(before[-_NEAR:], after[:_NEAR]) for before, after in around}

        def counts(numbers: Sequence[str]) -> np.ndarray:
            texts = [before + number + after for before, after in places for number in numbers]
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            return np.reshape([len(one) for one in ids], (len(places), len(numbers)))

        most = counts([number_text(number) for number in points]).max(1)
        first = 10 ** (len(str(size)) - 1)
        for zeros in map("0".__mul__, range(_MAX_ZEROS)):
            texts = [f"{first + index}{zeros}" for index in range(size)]
            if (counts(texts).min(1) >= most).all():
                self._longest[key] = Condition(shown(texts), presentation)
                return self._longest[key]
        raise UserError("env.payoff_draws: the model's tokenizer does not spell numbers by digits")

    def room(self, conditions: Sequence[Condition], points: Sequence[float] = ()) -> Room:
        """Sizes that have room for each of some conditions, and for other payoffs in them.

        Args:
          conditions: that are packed alike.
          points: if given, there is room for every payoff among them.

        Raises:
          UserError: a prompt alone is too long.
        """
        asked = (tuple(condition.key for condition in conditions), tuple(points))
        if asked not in self._rooms:
            self._rooms[asked] = self._measure(conditions, points)
        return self._rooms[asked]

    def _measure(self, conditions: Sequence[Condition], points: Sequence[float]) -> Room:
        shown = list(conditions)
        if points:
            alike = {(c.presentation, c.game.num_players): c for c in conditions}
            shown += [self.longest(condition, points) for condition in alike.values()]
        answers = [self.responses(condition.presentation.labels) for condition in shown]
        total = math.gcd(*(c.presentation.remembers(c.game).num_prompts for c in shown))
        for each in (total // parts for parts in range(1, total + 1) if total % parts == 0):
            nodes, depth, longest, alone = 0, 0, 0, 0
            pairs = zip(shown, answers, strict=True)
            quiet = len(shown) < _MANY or None  # a bar on a terminal only
            bar = tqdm(pairs, "measuring prompts", len(shown), leave=False, disable=quiet)
            for condition, spelled in bar:
                width = len(spelled.prefixes)
                for sequences in _chunks(self.sequences(condition), each * width):
                    sizes = self._size(sequences, spelled)
                    nodes, depth, alone = map(max, (nodes, depth, alone), sizes)
                    longest = max(longest, *(len(ids) for ids in sequences[::width]))
            if nodes <= self.max_nodes:
                size = size_of([spelled.trie for spelled in answers])
                return Room(each, nodes, depth, longest, size, alone)
        raise UserError(self._too_long(nodes))

    def _size(self, sequences: Sequence[list[int]], spelled: Responses) -> tuple[int, int, int]:
        """Nodes and depth of `_grow`'s tree; nodes of the prompts alone, if that is a tree too."""
        thinking = self.thinking
        if thinking is None:
            tree, _ = merge(sequences)
            return len(tree.tokens), int(tree.positions.max()), 0
        prompts = sequences[:: len(spelled.prefixes)]
        tree, _ = merge(prompts)
        chain = thinking.room + len(thinking.cue_tokens)
        behind = thinking.thoughts * (chain + len(spelled.prefixes) - 1)
        depth = int(tree.positions.max()) + chain + max(map(len, spelled.prefixes))
        return len(tree.tokens) + len(prompts) * behind, depth, len(tree.tokens)

    def _too_long(self, nodes: int) -> str:
        if self.thinking is None:
            most = self.max_nodes
            return f"model.max_nodes: one prompt alone is longer than {most} tokens; raise it"
        return (
            f"model.max_nodes: one prompt with {self.thinking.thoughts} thoughts of"
            f" {self.thinking.tokens} tokens makes {nodes:,} nodes, more than {self.max_nodes:,};"
            " lower thinking.thoughts or thinking.tokens, or raise it"
        )

    def _grow(self, sequences: Sequence[list[int]], spelled: Responses) -> Grown:
        """The tree of some of a condition's sequences, and of the thoughts there will be."""
        width, thinking = len(spelled.prefixes), self.thinking
        if thinking is None:
            tree, last = merge(sequences)
            return Grown(tree, None, last.reshape(-1, width))
        return grow(
            sequences[::width],  # the first of each is the empty response
            spelled.prefixes,
            num_thoughts=thinking.thoughts,
            room=thinking.room,
            cue=thinking.cue_tokens,
            first_free=self._vocab_size,
        )

    def pack(
        self, groups: Sequence[Sequence[Condition]], room: Room | None = None
    ) -> PackedPrompts:
        """Packed prompts, a group of conditions on each place of a leading axis.

        A group's prompts follow each other; they are chunks on the second axis. Everything is
        padded alike: to the room there is, or to the largest.

        Args:
          groups: of as many conditions each.
          room: of `room`, which conditions of one shape share.
        """
        conditions = [condition for group in groups for condition in group]
        room = room or self.room(conditions)
        chunks = [chunk for condition in conditions for chunk in self._packed(condition, room)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *chunks)
        lead = (len(groups), len(chunks) // len(groups))
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), stacked)

    def beside(self, tokens: np.ndarray | jax.Array) -> np.ndarray | None:
        """What layers look up of tokens, if the model's do; see `PackedPrompts`."""
        return None if self._beside is None else self._beside.read(tokens)

    def _packed(self, condition: Condition, room: Room) -> list[PackedPrompts]:
        """A condition's prompts in chunks of the room's size."""
        spelled = self.responses(condition.presentation.labels)
        width, packed = len(spelled.prefixes), []
        trie = responses.pad(spelled.trie, room.responses)
        for sequences in _chunks(self.sequences(condition), room.prompts * width):
            grown = self._grow(sequences, spelled)
            spare = (0, room.responses.prefixes - width)  # what pads the rows is never reached
            prompts = sequences[::width]
            tokens = np.zeros((room.prompts, room.longest), np.int32)
            for row, ids in zip(tokens, prompts, strict=True):
                row[: len(ids)] = ids
            tree = prompt_tree.pad(grown.tree, room.nodes, room.depth, self.multiple)
            packed.append(
                PackedPrompts(
                    tree=tree,
                    nodes=np.pad(grown.nodes, ((0, 0), spare), mode="edge"),
                    trie=trie,
                    tokens=tokens,
                    lengths=np.array([len(ids) for ids in prompts], np.int32),
                    beside=self.beside(tree.tokens),
                    branches=None if grown.branches is None else grown.branches.padded(spare),
                    alone=self._prompts_alone(prompts, room),
                )
            )
        return packed

    def _prompts_alone(self, prompts: Sequence[list[int]], room: Room) -> Prefixes | None:
        """The prompts alone, for an agent that continues them."""
        if self.thinking is None:
            return None
        tree, last = merge(prompts)
        padded = prompt_tree.pad(tree, room.alone, room.longest - 1, self.multiple)
        lengths = np.array([len(ids) for ids in prompts], np.int32)
        return Prefixes(padded, paths(tree, last, room.longest), lengths)


def _chunks(sequences: Sequence[list[int]], size: int) -> list[Sequence[list[int]]]:
    return [sequences[start : start + size] for start in range(0, len(sequences), size)]
