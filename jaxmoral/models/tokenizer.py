"""Tokenizers: built from a GGUF's vocabulary, cached, and read as byte pieces.

SentencePiece's BPE merges by score, Hugging Face's by a list of merges; the list is recovered by
splitting every piece into all pairs of pieces, better pieces first.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from jaxmoral.errors import UserError
from jaxmoral.models import byte_level
from jaxmoral.models.foreign import bare, shown

if TYPE_CHECKING:
    import transformers

SPACE = "\u2581"  # how SentencePiece writes a space
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF
_LONGEST = 1000  # characters of a piece; all its splits are tried


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece or byte-level vocabulary, `[vocab_size]`, and the ids of special tokens.

    Attributes:
      scores: of SentencePiece, which merges by them.
      turn_ends: further tokens that end a response.
      template: of chats, in Jinja, or None.
      cutting: of a byte-level vocabulary, a name in `jaxmoral.models.byte_level.CUTTINGS`; None is
        SentencePiece.
      merges: of a byte-level vocabulary, two pieces with a space between them each.
      begins: whether a text begins with a BOS.
    """

    pieces: list[str]
    scores: np.ndarray
    types: np.ndarray
    bos: int | None
    eos: int
    unk: int | None
    pad: int | None
    turn_ends: tuple[int, ...] = ()
    template: str | None = None
    cutting: str | None = None
    merges: list[str] = dataclasses.field(default_factory=list)
    begins: bool = True

    @property
    def generation(self) -> dict[str, Any]:
        """The same as `generation_config.json` has it."""
        ends = [self.eos, *self.turn_ends]
        return {"bos_token_id": self.bos, "eos_token_id": ends, "pad_token_id": self.pad}


def merges(pieces: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way a piece is made of two others, best piece first."""
    index = {piece: i for i, piece in enumerate(pieces)}
    found: list[tuple[float, int, int, int]] = []
    for piece, merged in index.items():
        for cut in range(1, len(piece)):
            left, right = index.get(piece[:cut]), index.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-scores[merged], merged, left, right))
    found.sort()
    return [(pieces[left], pieces[right]) for _, _, left, right in found]


def build(vocabulary: Vocabulary) -> "transformers.PreTrainedTokenizerFast":
    """Builds the tokenizer; encoding with special tokens puts one BOS in front, if it has one.

    Raises:
      UserError: a piece is empty, too long, or stands in the vocabulary twice.
    """
    pieces = vocabulary.pieces
    if vocabulary.cutting is None:
        # Some converters store runs of spaces as they are; merging needs SentencePiece's spelling.
        pieces = [piece.replace(" ", SPACE) for piece in pieces]
    known: set[str] = set()
    for number, piece in enumerate(pieces):
        if not 0 < len(piece) <= _LONGEST or piece in known:
            raise UserError(f"model: the vocabulary cannot hold {shown(piece)} as token {number}")
        known.add(piece)
    try:
        return _build(pieces, vocabulary)
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"model: the vocabulary makes no tokenizer ({bare(error)})") from None


def _build(pieces: list[str], vocabulary: Vocabulary) -> "transformers.PreTrainedTokenizerFast":
    if vocabulary.cutting is None:
        tokenizer = _sentencepiece(pieces, vocabulary)
    else:
        cutting = byte_level.CUTTINGS[vocabulary.cutting]
        tokenizer = Tokenizer(byte_level.merging(pieces, vocabulary.merges, cutting))
        tokenizer.normalizer = byte_level.normalizer(cutting)
        tokenizer.pre_tokenizer = byte_level.cut(cutting)
        tokenizer.decoder = decoders.ByteLevel()
    kinds = vocabulary.types.tolist()
    tokenizer.add_special_tokens(
        [AddedToken(pieces[i], special=True) for i, kind in enumerate(kinds) if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [
            AddedToken(pieces[i], normalized=False, special=False)
            for i, kind in enumerate(kinds)
            if kind == _USER_DEFINED and pieces[i].strip(SPACE)
        ]
    )
    ids = {"bos": vocabulary.bos, "unk": vocabulary.unk, "pad": vocabulary.pad}
    roles = {f"{role}_token": None if i is None else pieces[i] for role, i in ids.items()}
    bos = roles["bos_token"]
    if vocabulary.begins:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary.bos)]
        )
    from transformers import PreTrainedTokenizerFast  # slow to import

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=pieces[vocabulary.eos],
        chat_template=vocabulary.template,
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _sentencepiece(pieces: list[str], vocabulary: Vocabulary) -> Tokenizer:
    # SentencePiece keeps user-defined pieces (runs of spaces and newlines, tags) whole: rank first.
    scores = np.where(vocabulary.types == _USER_DEFINED, np.inf, vocabulary.scores).tolist()
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            merges(pieces, scores),
            unk_token=None if vocabulary.unk is None else pieces[vocabulary.unk],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def save(tokenizer: "transformers.PreTrainedTokenizerFast", folder: Path) -> None:
    """Writes the tokenizer's files to a folder."""
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> "transformers.PreTrainedTokenizerFast":
    """Reads what `save` wrote.

    `from_pretrained` would read the vocabulary twice, in Python too: a second of every start.

    Raises:
      OSError, ValueError: a file is missing or damaged.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import

    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = folder / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    names = [f"{role}_token" for role in ("bos", "eos", "unk", "pad")]
    try:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"),
            chat_template=settings.get("chat_template"),
            clean_up_tokenization_spaces=False,
            **{name: settings[name] for name in names if name in settings},
        )
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"tokenizer.json: {bare(error)}") from error


def byte_pieces(tokenizer: "transformers.PreTrainedTokenizerFast") -> list[bytes | None]:
    """What each token adds to a decoded text, `[vocab_size]`; None for control tokens.

    None as well for an id that no token has, and for a byte token whose character has a piece of
    its own: no model spells with it, and counting it would double the spellings of a label with
    every character.
    """
    special = set(tokenizer.all_special_tokens) | {
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    added = tokenizer.added_tokens_decoder
    by_bytes = byte_level.decodes_bytes(tokenizer.backend_tokenizer.decoder)
    byte = re.compile(r"<0x([0-9A-F]{2})>")
    vocabulary = tokenizer.get_vocab()
    pieces: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for piece, token in vocabulary.items():
        if piece in special:
            continue
        if by_bytes:
            pieces[token] = piece.encode() if token in added else byte_level.piece_bytes(piece)
        elif match := byte.fullmatch(piece):
            code = int(match[1], 16)
            character = chr(code).replace(" ", SPACE)
            pieces[token] = None if code < 128 and character in vocabulary else bytes([code])
        else:
            pieces[token] = piece.replace(SPACE, " ").encode()
    return pieces
