"""Reads a Gemma 3 text model from a GGUF file with the `gguf` library: sizes, weights, vocabulary.

GGUF stores matrices as `[outputs, inputs]` and the norms' scales with their 1 already added.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.gemma.config import GemmaConfig

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
    """An open GGUF file of architecture "gemma3"."""

    def __init__(self, path: Path):
        """Raises UserError if the file is missing, damaged, or of another architecture."""
        if not path.is_file():
            raise UserError(f"model: no file {path}")
        try:
            self._reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            architecture = self._field("general.architecture")
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise UserError(f"model: {path} is not a complete GGUF file ({error})") from error
        if architecture != "gemma3":
            raise UserError(
                f"model: {path} holds architecture {architecture!r}; only 'gemma3' is supported"
            )

    def _field(self, name: str):
        return self._reader.fields[name].contents()

    def config(self) -> GemmaConfig:
        """The model's sizes from the file's metadata."""
        read = lambda name: self._field(f"gemma3.{name}")
        layers, heads = read("block_count"), read("attention.head_count")
        # The 27B model alone scales its queries by the width per head instead of the head's size.
        query_size = read("embedding_length") // heads if layers == 62 else None
        scaled = "gemma3.rope.scaling.factor" in self._reader.fields
        return GemmaConfig(
            family="gemma3",
            vocab_size=len(self._reader.fields["tokenizer.ggml.tokens"].data),
            embed_dim=read("embedding_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=read("attention.head_count_kv"),
            head_dim=read("attention.key_length"),
            mlp_dim=read("feed_forward_length"),
            sliding_window=read("attention.sliding_window"),
            global_layers=tuple((layer + 1) % 6 == 0 for layer in range(layers)),
            query_scale=(query_size or read("attention.key_length")) ** -0.5,
            rope_base_global=float(read("rope.freq_base")),
            rope_scale=float(read("rope.scaling.factor")) if scaled else 1.0,
            rms_eps=float(read("attention.layer_norm_rms_epsilon")),
        )

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each weight dequantised to float32 under our name, blocks stacked over layers."""
        yield "embedding", self._weight("token_embd")
        yield "final_norm.scale", self._weight("output_norm")
        for name, stored in _BLOCK_TENSORS.items():
            layers = range(self.config().num_layers)
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
