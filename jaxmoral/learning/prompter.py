"""From conditions to packed token trees: tokenizer, chat template, and what answers are legal."""

import itertools
import math
import string
from collections import ChainMap
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jinja2
import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.language import prompt_tree, prompts
from jaxmoral.language.prompt_tree import merge
from jaxmoral.language.prompts import Condition
from jaxmoral.language.responses import Responses, TrieSize, index_pieces, pad, size_of, spell
from jaxmoral.language.thought_tree import Grown, grow, paths
from jaxmoral.learning.channel import Thinking
from jaxmoral.learning.language_policy import PackedPrompts
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.sample import Prefixes
from jaxmoral.models.tokenizer import byte_pieces

MAX_TRIES = 10_000  # strings that are drawn for random labels
_DATE = "26 Jul 2024"  # Llama 3's templates would name today's, and a prompt must stay the same
_THINKS = "enable_thinking"
_NEAR = 16  # characters beside a number that its tokens may depend on
_MAX_ZEROS = 64
_MAX_KEPT = 32  # conditions whose tokens are kept
MAX_PREFIXES = 64  # partial responses that can become a label
MAX_OPTION_PREFIXES = 512  # that can become one of a few texts


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


class Prompter:
    """Turns conditions into packed token trees for one tokenizer and one chat template."""

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
          model: whose tokenizer is used.
          template: "plain" or "chat".
          max_nodes: of one tree; larger prompt sets become several.
          multiple: of which the number of blocks of every tree is one.
          thinking: how the agent thinks, if it does.
          switch: "off" leaves the thought before an answer empty, as the template does it.
        """
        self.thinking = thinking
        self.max_nodes = max_nodes
        self.multiple = multiple
        self.tokenizer = model.tokenizer
        self.template = template
        self._vocab_size = model.config.vocab_size
        self._pieces = index_pieces(byte_pieces(self.tokenizer)[: self._vocab_size])
        self._stop_tokens = model.stop_tokens()
        self._bos = model.bos_token()
        self._beside = model.beside
        self._responses: dict[tuple[str, str], Responses] = {}
        self._options: dict[tuple[str, ...], Responses] = {}
        self._longest: dict[tuple, Condition] = {}
        self._sequences: dict[tuple, list[list[int]]] = {}
        self._rooms: dict[tuple, Room] = {}
        # Qwen's and Gemma's templates have this switch; others would not notice it.
        self._switches = {} if switch == "default" else {_THINKS: False}
        if self._switches and _THINKS not in (self.tokenizer.chat_template or ""):
            raise UserError(
                f"prompt.thinking: the chat template of {model.source} has no switch for it"
                f" ({_THINKS}); leave it out"
            )
        if template == "chat" and not self.tokenizer.chat_template:
            raise UserError(
                f"prompt.template: {model.source} has no chat template; use --prompt.template plain"
            )

    def responses(self, labels: tuple[str, str]) -> Responses:
        """Every legal response; raises UserError if the labels cannot be spelled."""
        if labels not in self._responses:
            # Both may take as many tokens as the longer one.
            budget, spaced = (max(counts) for counts in self._token_counts(labels))
            try:
                spelled = self._spell(labels, budget, spaced)
            except ValueError as error:
                raise UserError(
                    f"labels {'/'.join(labels)}: {error}; choose two labels of the same number of"
                    " tokens"
                ) from error
            self._responses[labels] = spelled
        return self._responses[labels]

    def options(self, texts: tuple[str, ...]) -> Responses:
        """Every response that is one of some texts, each in as many tokens as it takes.

        Raises:
          UserError: they cannot be spelled, or in too many ways.
        """
        if texts not in self._options:
            try:
                spelled = self._spell(texts, *self._token_counts(texts), MAX_OPTION_PREFIXES)
            except ValueError as error:
                raise UserError(f"{error}; shorten the options, or name them by labels") from error
            self._options[texts] = spelled
        return self._options[texts]

    def _token_counts(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        """How many tokens each takes, and how many after a space."""
        count = lambda text: len(self.tokenizer.encode(text, add_special_tokens=False))
        return [count(text) for text in texts], [count(f" {text}") for text in texts]

    def _spell(
        self,
        texts: Sequence[str],
        budget: int | list[int],
        spaced_budget: int | list[int],
        max_prefixes: int = MAX_PREFIXES,
    ) -> Responses:
        own: dict[bytes, dict[int, bytes]] = {}
        for text in texts:
            tokens, label = self.tokenizer.encode(text, add_special_tokens=False), text.encode()
            if len(tokens) == 1 and tokens[0] not in self._stop_tokens:
                # An unused control token is a label too.
                own[label] = {**self._pieces.get(label, {}), tokens[0]: label}
        return spell(
            [text.encode() for text in texts],
            ChainMap(own, self._pieces),  # type: ignore[arg-type]
            self._stop_tokens,
            budget,
            spaced_budget,
            max_prefixes,
        )

    def tokens(self, text: str) -> list[int]:
        """The token ids of one prompt, with exactly one BOS if the model has one."""
        opens = "" if self.thinking is None else self.thinking.opens
        if self.template == "chat":
            return self.conversation([{"role": "user", "content": text}], opens)
        return self._encode(text + opens)

    def texts(self, condition: Condition) -> list[str]:
        """The prompts of a condition as texts."""
        return prompts.all_prompts(*condition, think=self.thinking is not None)

    def conversation(self, turns: list[dict[str, str]], opens: str = "") -> list[int]:
        """The token ids of a chat up to the model's next turn, begun like a prompt.

        Args:
          turns: of the chat.
          opens: what the model's turn begins with, unless the template writes it.
        """
        render = partial(self.tokenizer.apply_chat_template, turns, tokenize=False)
        if opens:  # templates of models that think on demand know the word
            render = partial(render, enable_thinking=True)
        try:
            text = render(add_generation_prompt=True, date_string=_DATE, **self._switches)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise UserError(f"prompt.template: the model's chat template fails ({error})") from None
        return self._encode(text if text.endswith(opens) else text + opens)

    def text_tokens(self, text: str) -> tuple[list[int], list[int]]:
        """What begins every text, and the text's tokens, without a chat template."""
        begin = [] if self._bos is None else [self._bos]
        return begin, self._encode(text)[len(begin) :]

    def _encode(self, text: str) -> list[int]:
        """BOS and the text's tokens, whatever the tokenizer would put around a text."""
        begin = [] if self._bos is None else [self._bos]
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if begin and ids[:1] == begin:  # a chat template writes it
            ids = ids[1:]
        if self._bos in ids:
            raise UserError(
                f"prompt: it holds {self.tokenizer.bos_token}, with which only a prompt's beginning"
                " is marked, in another place; take it out of the wording, the persona, the labels"
                " or the chat template"
            )
        if max(ids, default=0) >= self._vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(f"prompt: it holds {token}, for which the model has no embedding")
        return [*begin, *ids]

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

        most = counts([prompts.number_text(number) for number in points]).max(1)
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
        responses = [self.responses(condition.presentation.labels) for condition in shown]
        total = math.gcd(*(c.presentation.remembers(c.game).num_prompts for c in shown))
        for each in (total // parts for parts in range(1, total + 1) if total % parts == 0):
            nodes, depth, longest, alone = 0, 0, 0, 0
            for condition, spelled in zip(shown, responses, strict=True):
                width = len(spelled.prefixes)
                for branches in _chunks(self.sequences(condition), each * width):
                    sizes = self._size(branches, spelled)
                    nodes, depth, alone = map(max, (nodes, depth, alone), sizes)
                    longest = max(longest, *(len(ids) for ids in branches[::width]))
            if nodes <= self.max_nodes:
                size = size_of([spelled.trie for spelled in responses])
                return Room(each, nodes, depth, longest, size, alone)
        raise UserError(self._too_long(nodes))

    def _size(self, branches: Sequence[list[int]], spelled: Responses) -> tuple[int, int, int]:
        """Nodes and depth of `_grow`'s tree; nodes of the prompts alone, if that is a tree too."""
        thinking = self.thinking
        if thinking is None:
            tree, _ = merge(branches)
            return len(tree.tokens), int(tree.positions.max()), 0
        prompts = branches[:: len(spelled.prefixes)]
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

    def _grow(self, branches: Sequence[list[int]], spelled: Responses) -> Grown:
        """The tree of some of a condition's sequences, and of the thoughts there will be."""
        width, thinking = len(spelled.prefixes), self.thinking
        if thinking is None:
            tree, last = merge(branches)
            return Grown(tree, None, last.reshape(-1, width))
        return grow(
            branches[::width],  # the first of each is the empty response
            spelled.prefixes,
            num_thoughts=thinking.thoughts,
            room=thinking.room,
            cue=thinking.cue_tokens,
            first_free=self._vocab_size,
        )

    def inputs(
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
        chunks = [chunk for condition in conditions for chunk in self._pack(condition, room)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *chunks)
        lead = (len(groups), len(chunks) // len(groups))
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), stacked)

    def _pack(self, condition: Condition, room: Room) -> list[PackedPrompts]:
        """A condition's prompts in chunks of the room's size."""
        spelled = self.responses(condition.presentation.labels)
        width, packed = len(spelled.prefixes), []
        trie = pad(spelled.trie, room.responses)
        for branches in _chunks(self.sequences(condition), room.prompts * width):
            grown = self._grow(branches, spelled)
            spare = (0, room.responses.prefixes - width)  # what pads the rows is never reached
            prompts = branches[::width]
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
                    rows=None if self._beside is None else self._beside.read(tree.tokens),
                    branches=None if grown.branches is None else grown.branches.padded(spare),
                    prefixes=self._prefixes(prompts, room),
                )
            )
        return packed

    def _prefixes(self, prompts: Sequence[list[int]], room: Room) -> Prefixes | None:
        """The prompts alone, for an agent that continues them."""
        if self.thinking is None:
            return None
        tree, last = merge(prompts)
        padded = prompt_tree.pad(tree, room.alone, room.longest - 1, self.multiple)
        lengths = np.array([len(ids) for ids in prompts], np.int32)
        return Prefixes(padded, paths(tree, last, room.longest), lengths)


def _chunks(branches: Sequence[list[int]], size: int) -> list[Sequence[list[int]]]:
    return [branches[start : start + size] for start in range(0, len(branches), size)]


def random_labels(model: LoadedModel, num_tokens: int, seed: int) -> tuple[str, str]:
    """Two different strings of letters and digits, each of so many tokens.

    Raises:
      UserError: the tokenizer hardly makes any.
    """
    random = np.random.default_rng([seed, num_tokens])
    characters = list(string.ascii_letters + string.digits)
    labels: list[str] = []
    for _ in range(MAX_TRIES):
        label = "".join(random.choice(characters, num_tokens))
        tokens = model.tokenizer.encode(label, add_special_tokens=False)
        if len(tokens) == num_tokens and label not in labels:
            labels.append(label)
        if len(labels) == 2:
            return labels[0], labels[1]
    raise UserError(
        f"prompt.random_labels: {MAX_TRIES:,} strings of {num_tokens} characters were tried, and no"
        f" two have {num_tokens} tokens; ask for fewer"
    )
