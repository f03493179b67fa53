"""How a thought begins and ends for a model: what opens it, what stops it, what cue follows it.

A plain text asks for a thought as it asks for an answer, and a line is one. In a chat the model's
turn begins with the thought; a model that learned to think between marks of its own gets those.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import thinking_cue
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.tokenizer import byte_pieces

MAX_CUE = 64  # tokens


class Channel(NamedTuple):
    """Texts around a thought; what is None the configuration or the wording says."""

    opens: str
    stop: str
    cue: str | None = None


PLAIN = Channel("\nThought:", "\n")
CHAT = Channel("", "\n")
# Of models that were trained to think in a chat; a mark that stops is a token of its own.
OWN = (
    Channel("<think>\n", "</think>", "\n</think>\n\n"),
    Channel("<|channel>thought\n", "<channel|>", "\n<channel|>"),
)


class Thinking(NamedTuple):
    """How an agent thinks; static.

    Attributes:
      tokens: the most of a thought; without any the cue follows at once.
      thoughts: of each prompt.
      opens: the text behind the prompt.
      stop, cue: texts.
      stops: tokens that end a thought.
      cue_tokens: of the cue.
    """

    tokens: int
    thoughts: int
    opens: str
    stop: str
    cue: str
    stops: tuple[int, ...]
    cue_tokens: tuple[int, ...]

    @property
    def room(self) -> int:
        """Tokens that a tree has room for; there is a node even for no thought."""
        return max(self.tokens, 1)


def own_channel(model: LoadedModel, template: str) -> Channel:
    """The texts around a model's thoughts with a template, "plain" or "chat"."""
    if template == "plain":
        return PLAIN
    vocabulary = model.tokenizer.get_vocab()
    return next((channel for channel in OWN if channel.stop in vocabulary), CHAT)


def make_thinking(config: Config, model: LoadedModel, wordings: Sequence[str]) -> Thinking | None:
    """How a configuration's agent thinks; None if it does not.

    Args:
      config: of the agent.
      model: with its tokenizer.
      wordings: names or texts of all it is trained on.

    Raises:
      UserError: there is no cue or no stop, or the model's tokenizer cannot write it.
    """
    settings = config.thinking
    if not settings.tokens:
        return None
    channel = own_channel(model, config.prompt.template)
    cue = channel.cue if settings.cue is None else settings.cue
    cues = list(dict.fromkeys(thinking_cue(wording, cue) for wording in wordings))
    if len(cues) > 1:
        raise UserError(
            f"thinking.cue: after {{think}} the wordings have {cues[0]!r} and {cues[1]!r}; set it"
        )
    (cue,) = cues
    cue_tokens = model.tokenizer.encode(cue, add_special_tokens=False)
    if not 0 < len(cue_tokens) <= MAX_CUE:
        raise UserError(
            f"thinking.cue: {cue!r} is {len(cue_tokens)} tokens of the model, not 1 to {MAX_CUE}"
        )
    stop = channel.stop if settings.stop is None else settings.stop
    return Thinking(
        tokens=settings.tokens,
        thoughts=settings.thoughts,
        opens=channel.opens,
        stop=stop,
        cue=cue,
        stops=_stops(stop, model),
        cue_tokens=tuple(cue_tokens),
    )


def _stops(stop: str, model: LoadedModel) -> tuple[int, ...]:
    """Every token that holds the text, that is the text, or that ends a response."""
    size, text = model.config.vocab_size, stop.encode()
    pieces = byte_pieces(model.tokenizer)[:size]
    holding = {token for token, piece in enumerate(pieces) if piece and text in piece}
    mark = model.tokenizer.get_vocab().get(stop)
    found = holding | ({mark} if mark is not None and mark < size else set())
    if not found:
        raise UserError(
            f"thinking.stop: no token of the model holds {stop!r}, and a thought ends with one;"
            " take a shorter text"
        )
    return tuple(sorted(found | set(model.stop_tokens())))
