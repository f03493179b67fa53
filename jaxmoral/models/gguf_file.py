"""Reads a Gemma text model from a GGUF file: sizes, weights, vocabulary.

GGUF stores matrices as `[outputs, inputs]` and the norms' scales with their 1 already added. The
file may be a stranger's, so its head is read here, every length checked against what is left of the
file (the `gguf` library believes them); the library turns quantised blocks into numbers.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.foreign import bare, check_keys, shown

FAMILIES = ("gemma", "gemma2", "gemma3")
# Metadata that is read (after "gemma3." or the like), or that changes nothing.
_READ = (
    *("block_count", "embedding_length", "feed_forward_length", "context_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"),
    *("attention.layer_norm_rms_epsilon", "attention.causal", "attention.sliding_window"),
    *("attention.sliding_window_pattern", "attn_logit_softcapping", "final_logit_softcapping"),
    *("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.dimension_count_swa"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "expert_count"),
    *("vision.*", "mm.*"),  # of a tower that no text goes through
)
_HARMLESS = (
    "tokenizer.chat_template*",
    "tokenizer.huggingface.json",
    "general.*",
    "quantize.*",
    "imatrix.*",
    "split.*",
    "rope.scaling.finetuned",
)
_TOKENIZER = (
    *("tokens", "scores", "token_type", "model", "pre", "token_type_count", "*_token_id"),
    *("add_bos_token", "add_eos_token", "add_sep_token"),  # the prompts' makers decide on these
)
# Our name of each weight of a block: its name in the file.
_BLOCK_TENSORS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attention_in.scale": "attn_norm",
    "attention_out.scale": "post_attention_norm",
    "mlp_in.scale": "ffn_norm",
    "mlp_out.scale": "post_ffw_norm",
    "q_norm.scale": "attn_q_norm",
    "k_norm.scale": "attn_k_norm",
}
_POSITIVE = (
    *("query_scale", "rope_base_global", "rope_base_local", "rope_scale", "rope_scale_local"),
    "rms_eps",
)
MAX_LAYERS = 1000
_MAX_ENTRIES = 2**16  # of the table of metadata and of the table of tensors
_MAX_TEXTS = 2**21  # of all lists of texts together: they cost time, and memory if they are kept
_MAX_DIMENSIONS = 4
# How GGUF numbers the types of metadata, and what numpy calls them.
_U32, _STRING, _ARRAY, _U64 = 4, 8, 9, 10
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", _U32: "<u4", 5: "<i4", 6: "<f4", 7: "?"}
_NUMBERS |= {_U64: "<u8", 11: "<i8", 12: "<f8"}
_TOKENS = "tokenizer.ggml.tokens"  # the only list of texts that is kept


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece vocabulary: `[vocab_size]` each, and the ids of the special tokens.

    Attributes:
      turn_ends: further tokens that end a response.
      template: of chats, in Jinja, or None.
    """

    pieces: list[str]
    scores: np.ndarray
    types: np.ndarray
    bos: int
    eos: int
    unk: int
    pad: int
    turn_ends: tuple[int, ...] = ()
    template: str | None = None

    @property
    def generation(self) -> dict[str, Any]:
        """The same as `generation_config.json` has it."""
        ends = [self.eos, *self.turn_ends]
        return {"bos_token_id": self.bos, "eos_token_id": ends, "pad_token_id": self.pad}


def check_config(config: DecoderConfig, path: Path) -> DecoderConfig:
    """The configuration; raises UserError if no model can have its sizes and constants."""

    def check(fine: bool, name: str) -> None:
        if not fine:
            value = shown(getattr(config, name))
            raise UserError(f"model: {path} is damaged ({name} cannot be {value})")

    sizes = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    for name in (*sizes, "mlp_dim", "sliding_window"):
        value = getattr(config, name)
        check(type(value) is int and 0 < value < 2**31, name)
    check(config.num_layers <= MAX_LAYERS, "num_layers")
    check(config.num_heads % config.num_kv_heads == 0, "num_kv_heads")
    check(config.head_dim % 2 == 0, "head_dim")
    check(len(config.global_layers) == config.num_layers, "global_layers")
    if config.rope_ramp is not None:
        low, high, length = config.rope_ramp
        check(0 < low < high < math.inf and 0 < length < math.inf, "rope_ramp")
    for name in _POSITIVE:
        check(_is_positive(getattr(config, name)), name)
    for name in ("attention_softcap", "final_softcap"):
        value = getattr(config, name)
        check(value is None or _is_positive(value), name)
    return config


def _is_positive(value: Any) -> bool:
    return type(value) is float and 0 < value < math.inf


class _Head:
    """The tables at the start of a GGUF file. Raises ValueError or KeyError if they are damaged.

    Attributes:
      fields: the metadata; of lists of texts other than the vocabulary the length alone.
      tensors: by name, the storage type, the shape (outermost first), and the stored bytes
        `[..., bytes of a row]`.
    """

    def __init__(self, data: np.ndarray):
        self._data, self._at, self._texts = data, 0, 0
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number(_U32)
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 are known")
        num_tensors, num_fields = self._number(_U64), self._number(_U64)
        if max(num_tensors, num_fields) > _MAX_ENTRIES:
            raise ValueError(f"a table has more than {_MAX_ENTRIES:,} entries")
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            name = self._text()
            if name in self.fields:
                raise ValueError(f"{bare(name)} stands in it twice")
            self.fields[name] = self._value(name == _TOKENS)
        described = [self._tensor() for _ in range(num_tensors)]
        alignment = self.fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in [2**n for n in range(16)]:
            raise ValueError(f"its alignment is {shown(alignment)}")
        self._at += -self._at % alignment
        # In the order of their bytes: no two may share some, or a small file could hold large
        # models.
        start, end = self._at, self._at
        self.tensors: dict[str, tuple[gguf.GGMLQuantizationType, tuple, np.ndarray]] = {}
        for name, kind, shape, offset in sorted(described, key=lambda tensor: tensor[3]):
            rows = gguf.quants.quant_shape_to_byte_shape(shape, kind)
            first, last = start + offset, start + offset + math.prod(rows)
            if name in self.tensors or first < end or last > len(data):
                raise ValueError(f"the numbers of {bare(name)} are cut off or not its own")
            self.tensors[name] = kind, shape, data[first:last].reshape(rows)
            end = last

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError("it ends early")
        self._at += size
        return self._data[self._at - size : self._at].tobytes()

    def _number(self, kind: int) -> Any:
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()

    def _text(self) -> str:
        return str(self._take(self._number(_U64)), "utf-8")

    def _value(self, keep_texts: bool) -> Any:
        kind = self._number(_U32)
        if kind == _STRING:
            return self._text()
        return self._array(keep_texts) if kind == _ARRAY else self._number(kind)

    def _array(self, keep_texts: bool) -> Any:
        kind, count = self._number(_U32), self._number(_U64)
        if kind != _STRING:
            dtype = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self._take(count * dtype.itemsize), dtype)
        self._texts += count
        if self._texts > _MAX_TEXTS:
            raise ValueError(f"it holds more than {_MAX_TEXTS:,} texts")
        if keep_texts:
            return [self._text() for _ in range(count)]
        for _ in range(count):
            self._take(self._number(_U64))
        return count

    def _tensor(self) -> tuple[str, gguf.GGMLQuantizationType, tuple[int, ...], int]:
        name, dimensions = self._text(), self._number(_U32)
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"{bare(name)} has {dimensions} dimensions")
        shape = [self._number(_U64) for _ in range(dimensions)]
        kind = gguf.GGMLQuantizationType(self._number(_U32))
        return name, kind, tuple(reversed(shape)), self._number(_U64)


class GGUFModel:
    """An open GGUF file of a Gemma 1, 2 or 3."""

    def __init__(self, path: Path):
        """Raises UserError if the file is missing, damaged, or of another architecture."""
        if not path.is_file():
            raise UserError(f"model: no file {path}")
        self._path = path
        try:
            self._head = _Head(np.memmap(path, mode="r"))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"model: {path} is not a complete GGUF file ({bare(error)})") from None
        self.fields = self._head.fields
        parts = self.fields.get("split.count", 1)
        if parts not in (0, 1):
            raise UserError(
                f"model: {path} is one of {shown(parts)} parts of a model; join them first (with"
                " llama-gguf-split --merge)"
            )
        self._architecture = self._field("general.architecture")
        kind = self.fields.get("general.type", "model")
        if kind != "model":
            self._refuse("general.type", "only model")
        if self._architecture not in FAMILIES:
            raise UserError(
                f"model: {path} holds architecture {shown(self._architecture)}; supported are"
                f" {', '.join(FAMILIES)}"
            )
        known = [f"{self._architecture}.{name}" for name in _READ]
        known += [f"tokenizer.ggml.{name}" for name in _TOKENIZER]
        check_keys(f"model: {path}", self.fields, [*known, *_HARMLESS])

    def _field(self, name: str, kind: type = str) -> Any:
        value = self.fields.get(name)
        if type(value) is not kind:
            found = "is missing" if value is None else f"is {shown(value)}"
            raise UserError(f"model: {self._path} is not a complete GGUF file ({name} {found})")
        return value

    def config(self) -> DecoderConfig:
        """The model's sizes from the file's metadata; raises UserError if they make no model."""
        family, given = self._architecture, self.fields

        def read(name: str, kind: type, default: Any = None) -> Any:
            name = f"{family}.{name}"
            return default if default is not None and name not in given else self._field(name, kind)

        layers, heads = read("block_count", int), read("attention.head_count", int)
        width, head_dim = read("embedding_length", int), read("attention.key_length", int)
        if not (0 < layers <= MAX_LAYERS and heads > 0 and head_dim > 0):
            raise UserError(
                f"model: {self._path} is not a complete GGUF file (it has {layers} layers of"
                f" {heads} heads of {head_dim} numbers)"
            )
        # What some files say besides, and what the model here always has.
        for name, only in {
            "vocab_size": len(self._field(_TOKENS, list)),
            "attention.value_length": head_dim,
            "attention.key_length_swa": head_dim,
            "attention.value_length_swa": head_dim,
            "rope.dimension_count": head_dim,
            "rope.dimension_count_swa": head_dim,
            "attention.causal": True,
            "expert_count": 0,
        }.items():
            if given.get(f"{family}.{name}", only) != only:
                self._refuse(f"{family}.{name}", f"only {only}")
        # The 27B models alone scale their queries by the width per head, not by the head's size.
        largest = (family, layers) in (("gemma2", 46), ("gemma3", 62))
        base, scale = read("rope.freq_base", float, 1e4), self._rope_scale()
        windowed = family != "gemma"
        config = DecoderConfig(
            family=family,
            vocab_size=len(self._field(_TOKENS, list)),
            embed_dim=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=read("attention.head_count_kv", int),
            head_dim=head_dim,
            mlp_dim=read("feed_forward_length", int),
            sliding_window=read("attention.sliding_window" if windowed else "context_length", int),
            global_layers=self._global_layers(layers),
            query_scale=max(1, width // heads if largest else head_dim) ** -0.5,
            rope_base_global=base,
            rope_base_local=read("rope.freq_base_swa", float, 1e4 if family == "gemma3" else base),
            rope_scale=scale,
            rope_scale_local=1.0 if family == "gemma3" else scale,
            rms_eps=read("attention.layer_norm_rms_epsilon", float),
            attention_softcap=(
                read("attn_logit_softcapping", float) if family == "gemma2" else None
            ),
            final_softcap=self._final_softcap(),
            post_norms=family != "gemma",
            qk_norm=family == "gemma3",
        )
        return check_config(config, self._path)

    def _refuse(self, name: str, instead: str) -> NoReturn:
        value = shown(self.fields.get(name))
        raise UserError(f"model: {self._path}: {name} {value} is not supported, {instead}")

    def _rope_scale(self) -> float:
        """What positions are divided by; a factor counts unless the type of scaling is "none"."""
        start = f"{self._architecture}.rope."
        kind = self.fields.get(f"{start}scaling.type", "linear")
        if kind not in ("none", "linear"):
            self._refuse(f"{start}scaling.type", "only none and linear")
        names = [name for name in ("scaling.factor", "scale_linear") if start + name in self.fields]
        factor = self._field(start + names[0], float) if names and kind == "linear" else 1.0
        return factor or 1.0  # 0 says that there is none

    def _final_softcap(self) -> float | None:
        name = f"{self._architecture}.final_logit_softcapping"
        if self._architecture == "gemma2" or (
            self._architecture == "gemma3" and name in self.fields
        ):
            return self._field(name, float) or None
        return None

    def _global_layers(self, layers: int) -> tuple[bool, ...]:
        """Which layers see everything: every n-th, or those that a list does not call sliding."""
        name = f"{self._architecture}.attention.sliding_window_pattern"
        usual = {"gemma": 1, "gemma2": 2, "gemma3": 6}[self._architecture]
        pattern = self.fields.get(name, usual)
        if isinstance(pattern, np.ndarray):
            if self._architecture == "gemma" or len(pattern) != layers:
                self._refuse(name, f"only a number, or a list of {layers}")
            return tuple(not sliding for sliding in pattern.tolist())
        if (
            type(pattern) is not int
            or pattern < 0
            or (self._architecture == "gemma" and pattern != 1)
        ):
            self._refuse(name, "only every how many layers one sees everything")
        return tuple(pattern > 0 and (layer + 1) % pattern == 0 for layer in range(layers))

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each weight dequantised to float32 under our name, blocks stacked over layers.

        Raises:
          UserError: a tensor is missing, misshapen, or stored in an unknown way.
        """
        config = self.config()
        self._check_tensors(config)
        yield "embedding", self._weight("token_embd", (config.vocab_size, config.embed_dim))
        yield "final_norm.scale", self._weight("output_norm", (config.embed_dim,))
        layers = range(config.num_layers)
        norms = {f"{name}.scale": (size,) for name, size in config.norm_sizes.items()}
        matrices = {name: shape[::-1] for name, shape in config.linear_shapes.items()}
        shapes: dict[str, tuple[int, ...]] = {**norms, **matrices}
        for name, stored in _BLOCK_TENSORS.items():
            if name not in shapes:
                continue
            stacked = np.stack(
                [self._weight(f"blk.{layer}.{stored}", shapes[name]) for layer in layers]
            )
            if stacked.ndim == 3:
                stacked = np.ascontiguousarray(stacked.swapaxes(1, 2))
            yield f"blocks.{name}", stacked

    def _check_tensors(self, config: DecoderConfig) -> None:
        """Raises UserError if there is a tensor that nobody asks for and that changes the model."""
        known = {"token_embd.weight", "output_norm.weight"}
        for name, stored in _BLOCK_TENSORS.items():
            if name.removesuffix(".scale") in config.linear_shapes | config.norm_sizes:
                known |= {f"blk.{layer}.{stored}.weight" for layer in range(config.num_layers)}
        embedding = self._head.tensors.get("token_embd.weight")
        for name, tensor in self._head.tensors.items():
            if name == "output.weight" and embedding is not None:
                if tensor[:2] == embedding[:2] and np.array_equal(tensor[2], embedding[2]):
                    continue
                raise UserError(
                    f"model: {self._path}: output.weight is not token_embd.weight again; only"
                    " models whose output head is their embedding are supported"
                )
            if name not in known and not name.startswith(("v.", "mm.")):
                raise UserError(f"model: {self._path}: unexpected tensor {bare(name)}")

    def _weight(self, name: str, expected: tuple[int, ...]) -> np.ndarray:
        kind, shape, rows = self._head.tensors.get(f"{name}.weight", (None, None, None))
        if shape != expected:
            found = "is missing" if shape is None else f"has shape {shape}, expected {expected}"
            raise UserError(f"model: {self._path} is not a complete model ({name}.weight {found})")
        try:
            return gguf.dequantize(rows, kind).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise UserError(f"model: {self._path}: {name}.weight: {error}") from None

    def vocabulary(self) -> Vocabulary:
        """The tokenizer's vocabulary; raises UserError if a part is missing or does not fit."""
        kind = self.fields.get("tokenizer.ggml.model", "llama")
        if kind != "llama":
            self._refuse("tokenizer.ggml.model", "only llama (SentencePiece)")
        pieces = self._field(_TOKENS, list)
        parts = {}
        for name in ("scores", "token_type"):
            part = parts[name] = self._field(f"tokenizer.ggml.{name}", np.ndarray)
            if len(part) != len(pieces):
                raise UserError(
                    f"model: {self._path} is not a complete GGUF file (it has {len(pieces)} tokens"
                    f" and {len(part)} of tokenizer.ggml.{name})"
                )
        ids = {}
        ends = [name for name in ("eot", "eom") if f"tokenizer.ggml.{name}_token_id" in self.fields]
        for name in ("bos", "eos", "unknown", "padding", *ends):
            ids[name] = self._field(f"tokenizer.ggml.{name}_token_id", int)
            if not 0 <= ids[name] < len(pieces):
                raise UserError(
                    f"model: {self._path} is not a complete GGUF file (there is no token"
                    f" {ids[name]}, the {name} one)"
                )
        template = self.fields.get("tokenizer.chat_template")
        if not isinstance(template, str | None):
            self._refuse("tokenizer.chat_template", "only a text")
        return Vocabulary(
            pieces=pieces,
            scores=parts["scores"].astype(np.float32),
            types=parts["token_type"].astype(np.int32),
            bos=ids["bos"],
            eos=ids["eos"],
            unk=ids["unknown"],
            pad=ids["padding"],
            turn_ends=tuple(ids[name] for name in ends),
            template=template,
        )
