"""Reads a Gemma text model from a folder in Hugging Face layout.

`config.json`, safetensors (one file, or shards with an index) and a tokenizer; the vision-language
layout of Gemma 3 is read too, its text part alone. Tensors are read one at a time, so the host
never holds the model twice. No pickle is ever opened.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import transformers

from jaxmoral.errors import UserError
from jaxmoral.gemma.config import GemmaConfig

FAMILIES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
LINEAR_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}

_CHUNK = 2**22  # numbers of the embedding that are read at once


def norm_names(config: GemmaConfig) -> dict[str, str]:
    """Our name of each norm of a block: its name in a checkpoint."""
    names = {"attention_in": "input_layernorm"}
    if config.post_norms:
        names |= {
            "attention_out": "post_attention_layernorm",
            "mlp_in": "pre_feedforward_layernorm",
            "mlp_out": "post_feedforward_layernorm",
        }
    else:
        names["mlp_in"] = "post_attention_layernorm"
    if config.qk_norm:
        names |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return names


def read_config(folder: Path) -> GemmaConfig:
    """Reads `config.json`; raises UserError if it is damaged or describes another kind of model."""
    path = folder / "config.json"
    try:
        json.loads(path.read_text())
        stored = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False
        ).get_text_config()
    except OSError as error:
        raise UserError(f"model: cannot read {path} ({error})".splitlines()[0]) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model: {path} is damaged or of an unknown kind ({error})") from None
    kind = stored.model_type
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"model: {path} describes a {kind!r} model; supported are {known}")
    activation = getattr(stored, "hidden_activation", None) or stored.hidden_act
    if activation not in ("gelu", "gelu_pytorch_tanh") or not stored.tie_word_embeddings:
        raise UserError(
            f"model: {path}: only tied embeddings and a tanh-approximated GELU are known"
        )
    family = FAMILIES[kind]
    kinds = getattr(stored, "layer_types", None) or ["full_attention"] * stored.num_hidden_layers
    rope = stored.rope_parameters
    wide = rope.get("full_attention", rope)
    near = rope.get("sliding_attention", rope)
    if wide.get("rope_type", "default") not in ("default", "linear"):
        raise UserError(f"model: {path}: rope scaling {wide['rope_type']!r} is not supported")
    return GemmaConfig(
        family=family,
        vocab_size=stored.vocab_size,
        embed_dim=stored.hidden_size,
        num_layers=stored.num_hidden_layers,
        num_heads=stored.num_attention_heads,
        num_kv_heads=stored.num_key_value_heads,
        head_dim=stored.head_dim,
        mlp_dim=stored.intermediate_size,
        sliding_window=getattr(stored, "sliding_window", None) or stored.max_position_embeddings,
        global_layers=tuple(kind == "full_attention" for kind in kinds),
        query_scale=getattr(stored, "query_pre_attn_scalar", stored.head_dim) ** -0.5,
        rope_base_global=float(wide["rope_theta"]),
        rope_base_local=float(near["rope_theta"]),
        rope_scale=float(wide.get("factor", 1.0)),
        rms_eps=stored.rms_norm_eps,
        attention_softcap=getattr(stored, "attn_logit_softcapping", None),
        final_softcap=getattr(stored, "final_logit_softcapping", None),
        post_norms=family != "gemma",
        qk_norm=family == "gemma3",
    )


class TensorFiles:
    """The safetensors of a folder: which file holds which tensor."""

    def __init__(self, folder: Path):
        """Raises UserError if there are none, one is missing, or one is damaged."""
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"model: {index} is damaged") from None
        else:
            shards = ["model.safetensors"]
        self.files: dict[str, Path] = {}
        for shard in shards:
            path = folder / shard
            if not path.is_file():
                raise UserError(f"model: {path} is missing")
            for name in self._open(path).keys():  # noqa: SIM118 (not a dict)
                self.files[name] = path
        embeddings = [name for name in self.files if name.endswith("embed_tokens.weight")]
        if not embeddings:
            raise UserError(f"model: {folder} holds no tensor embed_tokens.weight")
        # "model.", or "model.language_model." and the like in a vision-language checkpoint.
        self._prefix = embeddings[0].removesuffix("embed_tokens.weight")

    def _open(self, path: Path):
        try:
            return safetensors.safe_open(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"model: {path} is not a complete safetensors file ({error})") from None

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one tensor of the text model; raises UserError if missing or misshapen."""
        return self._slice(name, shape)[:]

    def read_rows(self, name: str, shape: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads a large matrix some rows at a time; raises UserError if missing or misshapen."""
        stored = self._slice(name, shape)
        step = max(1, _CHUNK // shape[1])
        for start in range(0, shape[0], step):
            rows = slice(start, min(start + step, shape[0]))
            yield rows, stored[rows]

    def _slice(self, name: str, shape: tuple[int, ...]):
        full = f"{self._prefix}{name}"
        if full not in self.files:
            raise UserError(f"model: {self._folder} holds no tensor {full}, expected {shape}")
        path = self.files.pop(full)
        stored = self._open(path).get_slice(full)  # reopened each time: its pages can go
        if tuple(stored.get_shape()) != shape:
            raise UserError(
                f"model: {path}: {full} has shape {tuple(stored.get_shape())}, expected {shape}"
            )
        return stored

    def check_nothing_left(self) -> None:
        """Raises UserError if the text model has tensors nobody asked for."""
        for name, path in self.files.items():
            if name.startswith(self._prefix):
                raise UserError(f"model: {path}: unexpected tensor {name}")


def weights(folder: Path, config: GemmaConfig) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Yields the weights in parts: our name, where in it the part goes, and the numbers.

    A part is a block's matrix or norm, or some rows of the embedding, in the file's dtype; the
    norms' scales are float32 with their 1 added.

    Raises:
      UserError: a tensor is missing, unexpected or misshapen, or a file is damaged.
    """
    files = TensorFiles(folder)
    for rows, part in files.read_rows("embed_tokens.weight", (config.vocab_size, config.embed_dim)):
        yield "embedding", rows, part
    final = files.read("norm.weight", (config.embed_dim,))
    yield "final_norm.scale", ..., 1 + final.astype(np.float32)
    for layer in range(config.num_layers):
        for name, stored in norm_names(config).items():
            scale = files.read(f"layers.{layer}.{stored}.weight", (config.norm_sizes[name],))
            yield f"blocks.{name}.scale", layer, 1 + scale.astype(np.float32)
        for name, stored in LINEAR_NAMES.items():
            inputs, outputs = config.linear_shapes[name]
            kernel = files.read(f"layers.{layer}.{stored}.weight", (outputs, inputs))
            yield f"blocks.{name}", layer, kernel.T
    files.check_nothing_left()


def identity(folder: Path) -> str:
    """A digest of the configuration and of every file's table of contents (not of the values)."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            digest.update(path.name.encode() + file.read(min(size, 2**26)))
            digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()


def read_tokenizer(folder: Path, config: GemmaConfig) -> "transformers.PreTrainedTokenizerFast":
    """Reads the tokenizer; raises UserError if it is missing or has more tokens than the model."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"model: {folder} holds no tokenizer.json")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        pieces = len(tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"model: {folder / 'tokenizer.json'} cannot be read ({line})") from None
    if pieces > config.vocab_size:
        raise UserError(
            f"model: the tokenizer in {folder} has {pieces} tokens, the embedding only"
            f" {config.vocab_size}"
        )
    return tokenizer
