"""Reads a text model from a GGUF file: sizes, weights, vocabulary.

GGUF stores matrices as `[outputs, inputs]` and the norms' scales with Gemma's 1 already added. The
`gguf` library turns quantised blocks into numbers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.models.byte_level import CUTTINGS
from jaxmoral.models.config import (
    MAX_LAYERS,
    DecoderConfig,
    Ramp,
    biased_layers,
    check_config,
)
from jaxmoral.models.foreign import bare, check_keys, shown
from jaxmoral.models.gguf_head import MERGES, TOKENS, Head
from jaxmoral.models.tokenizer import Vocabulary

FAMILIES = ("gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen3")
# Metadata that is read (after "gemma3." or the like), or that changes nothing.
_READ = (
    *("block_count", "embedding_length", "feed_forward_length", "context_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.layer_norm_rms_epsilon", "attention.causal"),
    *("rope.freq_base", "rope.dimension_count", "expert_count"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
)
_READ_OF_GEMMA = (
    *("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"),
    *("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
    *("vision.*", "mm.*"),  # of a tower that no text goes through
)
_RAMP = Ramp(1.0, 4.0, 8192.0)  # of Llama 3.1 to 3.3; a file has its divisors alone
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
_ROLES = ("bos", "eos", "unknown", "padding", "eot", "eom")
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


class GGUFModel:
    """An open GGUF file of a model of `FAMILIES`."""

    def __init__(self, path: Path):
        """Raises UserError if the file is missing, damaged, or of another architecture."""
        if not path.is_file():
            raise UserError(f"model: no file {path}")
        self._path = path
        try:
            self._head = Head(np.memmap(path, mode="r"))
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
        self._is_gemma = self._architecture.startswith("gemma")
        names = (*_READ, *(_READ_OF_GEMMA if self._is_gemma else ()))
        known = [f"{self._architecture}.{name}" for name in names]
        known += [f"tokenizer.ggml.{name}" for name in _TOKENIZER]
        known += [] if self._is_gemma else [MERGES]
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
        width, is_gemma = read("embedding_length", int), self._is_gemma
        head_dim = read("attention.key_length", int, None if is_gemma else width // max(heads, 1))
        if not (0 < layers <= MAX_LAYERS and heads > 0 and head_dim > 0):
            raise UserError(
                f"model: {self._path} is not a complete GGUF file (it has {layers} layers of"
                f" {heads} heads of {head_dim} numbers)"
            )
        self._check_constants(head_dim)
        # The 27B models alone scale their queries by the width per head, not by the head's size.
        largest = (family, layers) in (("gemma2", 46), ("gemma3", 62))
        base, scale = read("rope.freq_base", float, 1e4), self._rope_scale()
        ramp_scale = self._ramp_scale(base, head_dim)
        windowed = family in ("gemma2", "gemma3")
        config = DecoderConfig(
            family=family,
            vocab_size=len(self._field(TOKENS, list)),
            embed_dim=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=read("attention.head_count_kv", int, None if is_gemma else heads),
            head_dim=head_dim,
            mlp_dim=read("feed_forward_length", int),
            sliding_window=read("attention.sliding_window" if windowed else "context_length", int),
            global_layers=self._global_layers(layers),
            query_scale=max(1, width // heads if largest else head_dim) ** -0.5,
            rope_base_global=base,
            rope_base_local=read("rope.freq_base_swa", float, 1e4 if family == "gemma3" else base),
            rope_scale=ramp_scale or scale,
            rope_scale_local=1.0 if family == "gemma3" else ramp_scale or scale,
            rope_ramp=None if ramp_scale is None else _RAMP,
            rms_eps=read("attention.layer_norm_rms_epsilon", float),
            attention_softcap=(
                read("attn_logit_softcapping", float) if family == "gemma2" else None
            ),
            final_softcap=self._final_softcap(),
            post_norms=windowed,
            qk_norm=family in ("gemma3", "qwen3"),
            activation="gelu_tanh" if is_gemma else "silu",
            scaled_embedding=is_gemma,
            tied=is_gemma or "output.weight" not in self._head.tensors,
            biases=() if is_gemma else biased_layers(family, *self._has_biases()),
        )
        return check_config(config, self._path)

    def _check_constants(self, head_dim: int) -> None:
        """Raises UserError unless what some files say besides is what the model here always has."""
        for name, only in {
            "vocab_size": len(self._field(TOKENS, list)),
            "attention.value_length": head_dim,
            "attention.key_length_swa": head_dim,
            "attention.value_length_swa": head_dim,
            "rope.dimension_count": head_dim,
            "rope.dimension_count_swa": head_dim,
            "attention.causal": True,
            "expert_count": 0,
        }.items():
            name = f"{self._architecture}.{name}"
            if self.fields.get(name, only) != only:
                self._refuse(name, f"only {only}")

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

    def _ramp_scale(self, base: float, head_dim: int) -> float | None:
        """The scale of Llama 3's rotary frequencies, of which the file has the divisors."""
        has_divisors = "rope_freqs.weight" in self._head.tensors
        if self._architecture != "llama" or not has_divisors or not base > 0:
            return None
        if self._rope_scale() != 1.0:
            self._refuse("llama.rope.scaling.factor", "beside rope_freqs.weight")
        found = self._weight("rope_freqs.weight", (head_dim // 2,))
        scale = float(found.max())
        frequencies = base ** (-np.arange(head_dim // 2) / (head_dim // 2))
        error = np.abs(found / _RAMP.divisors(frequencies, scale) - 1).max() if scale > 0 else 1.0
        if not error < 1e-3:
            raise UserError(
                f"model: {self._path}: rope_freqs.weight is not supported, only Llama 3's (a ramp"
                f" from {_RAMP.low} to {_RAMP.high} turns in {_RAMP.length:,.0f} positions)"
            )
        return None if scale == 1 else scale

    def _has_biases(self) -> tuple[bool, bool]:
        """Whether the linear layers of the attention have biases, and those of the MLP."""
        first = (f"blk.0.{_BLOCK_TENSORS[name]}.bias" for name in ("q", "gate"))
        attention, mlp = (name in self._head.tensors for name in first)
        return attention, mlp and self._architecture == "llama"

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
        usual = {"gemma2": 2, "gemma3": 6}.get(self._architecture, 1)
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
        embedding = (config.vocab_size, config.embed_dim)
        yield "embedding", self._weight("token_embd.weight", embedding)
        if not config.tied:
            yield "unembedding", self._weight("output.weight", embedding)
        yield "final_norm.scale", self._weight("output_norm.weight", (config.embed_dim,))
        for name, (stored, shape) in _block_tensors(config).items():
            every = [
                self._weight(f"blk.{layer}.{stored}", shape) for layer in range(config.num_layers)
            ]
            rotated = {"q": config.num_heads, "k": config.num_kv_heads}
            heads = rotated.get(name.removesuffix("_bias"))
            if self._architecture == "llama" and heads is not None:
                every = [_split_halves(weight, heads) for weight in every]
            stacked = np.stack(every)
            if stacked.ndim == 3:
                stacked = np.ascontiguousarray(stacked.swapaxes(1, 2))
            yield f"blocks.{name}", stacked

    def _check_tensors(self, config: DecoderConfig) -> None:
        """Raises UserError if there is a tensor that nobody asks for and that changes the model."""
        known = {"token_embd.weight", "output_norm.weight"}
        known |= set() if config.tied else {"output.weight"}
        known |= {"rope_freqs.weight"} if self._architecture == "llama" else set()
        for stored, _ in _block_tensors(config).values():
            known |= {f"blk.{layer}.{stored}" for layer in range(config.num_layers)}
        embedding = self._head.tensors.get("token_embd.weight")
        for name, tensor in self._head.tensors.items():
            if name == "output.weight" and config.tied and embedding is not None:
                if tensor[:2] == embedding[:2] and np.array_equal(tensor[2], embedding[2]):
                    continue
                raise UserError(
                    f"model: {self._path}: output.weight is not token_embd.weight again; the"
                    f" output head of {self._architecture} is its embedding"
                )
            if name not in known and not name.startswith(("v.", "mm.")):
                raise UserError(f"model: {self._path}: unexpected tensor {bare(name)}")

    def _weight(self, name: str, expected: tuple[int, ...]) -> np.ndarray:
        kind, shape, rows = self._head.tensors.get(name, (None, None, None))
        if shape != expected:
            found = "is missing" if shape is None else f"has shape {shape}, expected {expected}"
            raise UserError(f"model: {self._path} is not a complete model ({name} {found})")
        try:
            return gguf.dequantize(rows, kind).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise UserError(f"model: {self._path}: {name}: {error}") from None

    def vocabulary(self) -> Vocabulary:
        """The tokenizer's vocabulary; raises UserError if a part is missing or does not fit."""
        kind = self.fields.get("tokenizer.ggml.model", "llama")
        if kind != ("llama" if self._is_gemma else "gpt2"):
            usual = "llama (SentencePiece)" if self._is_gemma else "gpt2 (byte-level BPE)"
            self._refuse("tokenizer.ggml.model", f"only {usual}")
        cutting = None if self._is_gemma else self._field("tokenizer.ggml.pre")
        if cutting is not None and cutting not in CUTTINGS:
            self._refuse("tokenizer.ggml.pre", f"only {', '.join(CUTTINGS)}")
        pieces = self._field(TOKENS, list)
        parts = {"scores": np.zeros(len(pieces))}
        for name in ("scores", "token_type") if self._is_gemma else ("token_type",):
            part = parts[name] = self._field(f"tokenizer.ggml.{name}", np.ndarray)
            if len(part) != len(pieces):
                raise UserError(
                    f"model: {self._path} is not a complete GGUF file (it has {len(pieces)} tokens"
                    f" and {len(part)} of tokenizer.ggml.{name})"
                )
        ids: dict[str, Any] = dict.fromkeys(("bos", "unknown", "padding"))
        needed = ("bos", "eos", "unknown", "padding") if self._is_gemma else ("eos",)
        for name in _ROLES:
            if name not in needed and f"tokenizer.ggml.{name}_token_id" not in self.fields:
                continue
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
            turn_ends=tuple(ids[name] for name in ("eot", "eom") if name in ids),
            template=template,
            cutting=cutting,
            merges=[] if cutting is None else self._field(MERGES, list),
            begins=cutting is None or self._begins(cutting, ids["bos"]),
        )

    def _begins(self, cutting: str, bos: int | None) -> bool:
        """Whether a text of a byte-level vocabulary begins with a BOS."""
        name = "tokenizer.ggml.add_bos_token"
        begins = self.fields.get(name, CUTTINGS[cutting].begins)
        if begins not in (True, False) or (begins and bos is None):
            self._refuse(name, "only true and false, and true with a bos_token_id")
        return begins


def _block_tensors(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name of each weight of a block: its name and shape in the file."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    (stack,) = config.stacks.values()
    for name, stored in _BLOCK_TENSORS.items():
        norm = name.removesuffix(".scale")
        if name in stack.linear_shapes:
            found[name] = f"{stored}.weight", stack.linear_shapes[name][::-1]
        elif norm in stack.norm_sizes:
            found[name] = f"{stored}.weight", (stack.norm_sizes[norm],)
        if name in config.biases:
            found[f"{name}_bias"] = f"{stored}.bias", stack.linear_shapes[name][1:]
    return found


def _split_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Orders each head's outputs `[num_heads * head_dim, ...]` by halves, which are rotated.

    The file has the two numbers that are rotated together side by side.
    """
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
