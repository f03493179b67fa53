"""Text to tokens: tokenizer, chat template, and how answers are spelled."""

import string
from collections import ChainMap
from collections.abc import Sequence
from functools import partial

import jinja2
import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.language.responses import Responses, index_pieces, spell
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.tokenizer import byte_pieces

MAX_TRIES = 10_000  # strings that are drawn for random labels
# Llama 3's and Mistral's templates would name today's date, and a prompt must stay the same.
_DATE = "26 Jul 2024"
# transformers leaves out the line's end behind a block.
_ONE_DAY = "{% macro strftime_now(format) %}" + _DATE + "{% endmacro %}\n"
_THINKS = "enable_thinking"
MAX_PREFIXES = 64  # partial responses that can become a label
MAX_OPTION_PREFIXES = 512  # that can become one of a few texts


class Speller:
    """Turns prompts, chats and answers into tokens for one tokenizer and one chat template."""

    def __init__(
        self, model: LoadedModel, template: str, *, opens: str = "", switch: str = "default"
    ):
        """Raises UserError if the tokenizer has no such template.

        Args:
          model: whose tokenizer is used.
          template: "plain" or "chat".
          opens: what the model's turn begins with, unless the template writes it.
          switch: "off" leaves the thought before an answer empty, as the template does it.
        """
        self.tokenizer = model.tokenizer
        self.template = template
        self.opens = opens
        self._vocab_size = model.config.vocab_size
        self._pieces = index_pieces(byte_pieces(self.tokenizer)[: self._vocab_size])
        self._stop_tokens = model.stop_tokens()
        self._bos = model.bos_token()
        self._responses: dict[tuple[str, str], Responses] = {}
        self._options: dict[tuple[str, ...], Responses] = {}
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
            try:
                self._responses[labels] = self._spell(labels, MAX_PREFIXES)
            except ValueError as error:
                raise UserError(
                    f"labels {'/'.join(labels)}: {error}; choose shorter ones"
                ) from error
        return self._responses[labels]

    def options(self, texts: tuple[str, ...]) -> Responses:
        """Every response that is one of some texts, each in as many tokens as it takes.

        Raises:
          UserError: they cannot be spelled, or in too many ways.
        """
        if texts not in self._options:
            try:
                self._options[texts] = self._spell(texts, MAX_OPTION_PREFIXES)
            except ValueError as error:
                raise UserError(f"{error}; shorten the options, or name them by labels") from error
        return self._options[texts]

    def _spell(self, texts: Sequence[str], max_prefixes: int) -> Responses:
        """Every response that is one of some texts, each in as many tokens as it takes."""
        count = lambda text: len(self.tokenizer.encode(text, add_special_tokens=False))
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
            budget=[count(text) for text in texts],
            spaced_budget=[count(f" {text}") for text in texts],
            max_prefixes=max_prefixes,
        )

    def tokens(self, text: str) -> list[int]:
        """The token ids of one prompt, with exactly one BOS if the model has one."""
        return self._turn(text, self.opens)

    def unopened(self, text: str) -> list[int]:
        """The same of a question that is answered without a thought, also by who else thinks."""
        return self._turn(text, "")

    def _turn(self, text: str, opens: str) -> list[int]:
        if self.template == "chat":
            return self.conversation([{"role": "user", "content": text}], opens)
        return self._encode(text + opens)

    def conversation(self, turns: list[dict[str, str]], opens: str = "") -> list[int]:
        """The token ids of a chat up to the model's next turn, begun like a prompt.

        Args:
          turns: of the chat.
          opens: what the model's turn begins with, unless the template writes it.
        """
        render = partial(self.tokenizer.apply_chat_template, turns, tokenize=False)
        if opens:  # templates of models that think on demand know the word
            render = partial(render, enable_thinking=True)
        template = self.tokenizer.get_chat_template()
        try:
            text = render(
                chat_template=_ONE_DAY + template,
                add_generation_prompt=True,
                date_string=_DATE,
                **self._switches,
            )
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
