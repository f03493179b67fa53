"""Byte-level BPE: vocabularies whose pieces write each byte of UTF-8 as one visible character.

How a text is cut before its bytes are merged belongs to a model; GGUF files name it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers


class Cutting(NamedTuple):
    """How texts are cut into words, inside which pieces are merged.

    Attributes:
      pattern: of one word; None is GPT-2's.
      digits: whether each digit is cut off first.
      nfc: whether texts are composed (Unicode's NFC) before.
      whole_words: whether a word that is a piece is left whole, whatever the merges are.
      begins: whether texts begin with a BOS unless the file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    begins: bool = False


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTTINGS = {
    "llama-bpe": Cutting(_WORDS % "{1,3}", whole_words=True, begins=True),
    "qwen2": Cutting(_WORDS % "", nfc=True),
    "smollm": Cutting(digits=True),
}


def _byte_characters() -> Mapping[str, int]:
    """The character that writes each byte: itself if Latin-1 shows it, or one after Latin-1."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + index): byte for index, byte in enumerate(hidden)
    }


_BYTES = _byte_characters()


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece writes; a character that writes none stands for itself."""
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in piece)


def decodes_bytes(decoder: decoders.Decoder | None) -> bool:
    """Whether a tokenizer's decoder reads pieces so."""
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def cut(cutting: Cutting) -> pre_tokenizers.PreTokenizer:
    """Cuts texts and writes their bytes as characters."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cutting.pattern is None)
    steps: list[pre_tokenizers.PreTokenizer] = []
    if cutting.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if cutting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(cutting.pattern), "isolated"))
    return pre_tokenizers.Sequence([*steps, to_bytes])


def normalizer(cutting: Cutting) -> normalizers.Normalizer | None:
    """What is done to a text before it is cut."""
    return normalizers.NFC() if cutting.nfc else None


def merging(pieces: list[str], merges: list[str], cutting: Cutting) -> models.BPE:
    """The vocabulary with its merges, each two pieces with a space between them."""
    pairs = [merge.partition(" ")[::2] for merge in merges]
    numbers = {piece: i for i, piece in enumerate(pieces)}
    return models.BPE(numbers, pairs, ignore_merges=cutting.whole_words)
