"""Reads a Gemma text model from a GGUF file with the `gguf` library: sizes, weights, vocabulary.

GGUF stores matrices as `[outputs, inputs]` and the norms' scales with their 1 already added.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.gemma.config import GemmaConfig

FAMILIES = ("gemma", "gemma2", "gemma3")
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


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece vocabulary: `[vocab_size]` each, and the ids of the special tokens."""

    pieces: list[str]
    scores: np.ndarray
    types: np.ndarray
    bos: int
    eos: int
    unk: int
    pad: int


class GGUFModel:
    """An open GGUF file of a Gemma 1, 2 or 3."""

    def __init__(self, path: Path):
        """Raises UserError if the file is missing, damaged, or of another architecture."""
        if not path.is_file():
            raise UserError(f"model: no file {path}")
        try:
            self._reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            self._architecture = self._field("general.architecture")
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise UserError(f"model: {path} is not a complete GGUF file ({error})") from error
        if self._architecture not in FAMILIES:
            raise UserError(
                f"model: {path} holds architecture {self._architecture!r}; supported are"
                f" {', '.join(FAMILIES)}"
            )

    def _field(self, name: str):
        return self._reader.fields[name].contents()

    def config(self) -> GemmaConfig:
        """The model's sizes from the file's metadata."""
        family = self._architecture

        def read(name: str, default: Any = None) -> Any:
            name = f"{family}.{name}"
            return self._field(name) if name in self._reader.fields or default is None else default

        layers, heads = read("block_count"), read("attention.head_count")
        width, head_dim = read("embedding_length"), read("attention.key_length")
        # The 27B models alone scale their queries by the width per head, not by the head's size.
        largest = (family, layers) in (("gemma2", 46), ("gemma3", 62))
        base = float(read("rope.freq_base", 1e4))
        every = {"gemma": 1, "gemma2": 2, "gemma3": 6}[family]  # which layers see everything
        return GemmaConfig(
            family=family,
            vocab_size=len(self._reader.fields["tokenizer.ggml.tokens"].data),
            embed_dim=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=read("attention.head_count_kv"),
            head_dim=head_dim,
            mlp_dim=read("feed_forward_length"),
            sliding_window=read("attention.sliding_window", read("context_length")),
            global_layers=tuple((layer + 1) % every == 0 for layer in range(layers)),
            query_scale=(width // heads if largest else head_dim) ** -0.5,
            rope_base_global=base,
            rope_base_local=1e4 if family == "gemma3" else base,
            rope_scale=float(read("rope.scaling.factor", 1.0)),
            rms_eps=float(read("attention.layer_norm_rms_epsilon")),
            attention_softcap=read("attn_logit_softcapping") if family == "gemma2" else None,
            final_softcap=read("final_logit_softcapping") if family == "gemma2" else None,
            post_norms=family != "gemma",
            qk_norm=family == "gemma3",
        )

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each weight dequantised to float32 under our name, blocks stacked over layers."""
        yield "embedding", self._weight("token_embd")
        yield "final_norm.scale", self._weight("output_norm")
        config = self.config()
        layers = range(config.num_layers)
        for name, stored in _BLOCK_TENSORS.items():
            if name.endswith(".scale") and name.removesuffix(".scale") not in config.norm_sizes:
                continue
            stacked = np.stack([self._weight(f"blk.{layer}.{stored}") for layer in layers])
            if stacked.ndim == 3:
                stacked = np.ascontiguousarray(stacked.swapaxes(1, 2))
            yield f"blocks.{name}", stacked

    def _weight(self, name: str) -> np.ndarray:
        tensor = self._tensors[f"{name}.weight"]
        return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)

    def vocabulary(self) -> Vocabulary:
        """The tokenizer's vocabulary."""
        read = lambda name: self._field(f"tokenizer.ggml.{name}")
        return Vocabulary(
            pieces=read("tokens"),
            scores=np.array(read("scores"), np.float32),
            types=np.array(read("token_type"), np.int32),
            bos=read("bos_token_id"),
            eos=read("eos_token_id"),
            unk=read("unknown_token_id"),
            pad=read("padding_token_id"),
        )
