"""Reads `config.json` of a Gemma text model as transformers does, key by key.

Each family has keys of its own; a key of another family changes nothing, as in transformers. Every
other key is used, known to be harmless, or refused by name.
"""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from jaxmoral.errors import UserError
from jaxmoral.models.config import GemmaConfig
from jaxmoral.models.foreign import bare, check_keys, shown
from jaxmoral.models.gguf_file import MAX_LAYERS, check_config

FAMILIES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
_CLASSES = {
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
}
# What is read from a file, in its newer and its older spelling.
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
    *("rope_parameters", "rope_scaling", "rope_theta", "use_bidirectional_attention"),
)
_LAYERS = ("sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping")
_READ = {
    "gemma": (*_SIZES, "hidden_act"),
    "gemma2": (*_SIZES, *_LAYERS, "hidden_activation", "attn_logit_softcapping"),
    "gemma3_text": (
        *(*_SIZES, *_LAYERS, "hidden_activation"),
        *("rope_local_base_freq", "sliding_window_pattern"),
    ),
}
# What says nothing about the numbers that a text model computes. Heads are judged by their tensors,
# whatever "tie_word_embeddings" says.
_HARMLESS = (
    *("model_type", "architectures", "transformers_version", "torch_dtype", "dtype"),
    *("_name_or_path", "unsloth_*", "use_cache", "cache_implementation", "initializer_range"),
    *("attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "output_*"),
    *("id2label", "label2id", "num_labels"),
    *("attn_implementation", "_attn_implementation*", "return_dict", "chunk_size_feed_forward"),
    *("tie_word_embeddings", "_sliding_window_pattern"),
)
_VISION = (
    *("text_config", "vision_config", "mm_tokens_per_image"),
    *("image_token_*", "boi_token_*", "eoi_token_*"),
)
_ROPE = ("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings")
_TANH = "gelu_pytorch_tanh"  # the activation that all three families have
_MAX_SETTINGS = 2**24  # bytes of a JSON file or of a chat template


class Described(NamedTuple):
    """What `config.json` says.

    Attributes:
      config: of the text model.
      module: of transformers' model, in which the text model's layers are: "model.", or
        "model.language_model." beside a vision tower.
      tied: whether the output head is the embedding, if no tensor says otherwise.
      tokens: what it says of the tokens that begin, end and pad a text.
    """

    config: GemmaConfig
    module: str
    tied: bool
    tokens: dict[str, Any]


def read_settings(path: Path, key: str) -> dict[str, Any]:
    """The keys and values in a JSON file; raises UserError, naming `key`, if it holds none."""
    try:
        settings = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{key}: cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path} is damaged ({bare(error)})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{key}: {path} is damaged (it must hold keys and values)")
    return settings


def read_text(path: Path) -> str:
    """A file of limited size; raises OSError or ValueError."""
    if not path.is_file():  # nor is a pipe one, which might never end
        raise FileNotFoundError(errno.ENOENT, "no such file")
    with path.open("rb") as file:
        content = file.read(min(path.stat().st_size, _MAX_SETTINGS) + 1)
    if len(content) > _MAX_SETTINGS:
        raise ValueError(f"it is larger than {_MAX_SETTINGS:,} bytes")
    return str(content, "utf-8")


def read_config(folder: Path) -> GemmaConfig:
    """The configuration alone; see `describe`."""
    return describe(folder).config


def describe(folder: Path) -> Described:
    """Reads `config.json`; raises UserError if it is damaged or describes another kind of model."""
    path = folder / "config.json"
    settings = read_settings(path, "model")
    outer: dict[str, Any] = {}
    kind = settings.get("model_type")
    if kind == "gemma3":  # the vision-language layout
        outer, inner = settings, settings.get("text_config")
        if not isinstance(inner, dict):
            raise UserError(f"model: {path} is damaged (text_config is {shown(inner)})")
        settings = inner
        kind = settings.get("model_type", "gemma3_text")
        check_keys(f"model: {path}", outer, (*_HARMLESS, *_VISION))
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"model: {path} is damaged or of an unknown kind: it describes a {shown(kind)} model;"
            f" supported are {', '.join(FAMILIES)}"
        )
    others = [key for keys in _READ.values() for key in keys]
    check_keys(f"model: {path}", settings, (*_READ[kind], *others, *_HARMLESS))
    chosen = {name: settings[name] for name in _READ[kind] if name in settings}
    try:
        if not 0 < chosen.get("num_hidden_layers", 1) <= MAX_LAYERS:  # a list of them is made
            raise ValueError(f"num_hidden_layers: {shown(chosen['num_hidden_layers'])}")
        stored = _CLASSES[kind](**chosen)
        config = _translate(stored, FAMILIES[kind], path)
    except UserError:
        raise
    except Exception as error:  # transformers refuses values with exceptions of many kinds
        raise UserError(f"model: {path} is damaged ({bare(error)})") from None
    if FAMILIES[kind] == "gemma" and settings.get("hidden_activation") not in (None, _TANH):
        raise UserError(
            f"model: {path}: hidden_activation {shown(settings['hidden_activation'])} is not"
            f" supported, only {_TANH}"
        )
    if outer:  # transformers' model of this layout has no cap on its logits
        config = dataclasses.replace(config, final_softcap=None)
    ties = [part.get("tie_word_embeddings") for part in (outer, settings)]
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {name: part[name] for part in (settings, outer) for name in names if name in part}
    module = "model.language_model." if outer else "model."
    return Described(check_config(config, path), module, False not in ties, tokens)


def _translate(stored: Any, family: str, path: Path) -> GemmaConfig:
    """transformers' configuration as ours; raises UserError if it asks for what we lack."""

    def refuse(name: str, value: Any, instead: str) -> None:
        raise UserError(f"model: {path}: {name} {shown(value)} is not supported, only {instead}")

    name = "hidden_act" if family == "gemma" else "hidden_activation"
    if getattr(stored, name) != _TANH:  # transformers reads Gemma 1's legacy "gelu" so
        refuse(name, getattr(stored, name), _TANH)
    if stored.use_bidirectional_attention:
        refuse("use_bidirectional_attention", stored.use_bidirectional_attention, "false")
    kinds = ["full_attention"] * stored.num_hidden_layers
    if family != "gemma":
        kinds = stored.layer_types
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            refuse("layer_types", kind, "full_attention and sliding_attention")
    window = getattr(stored, "sliding_window", None)
    if window is None and "sliding_attention" in kinds:
        refuse("sliding_window", None, "a number of tokens")
    by_kind = stored.rope_parameters
    if family == "gemma3":
        check_keys(f"model: {path}: rope_parameters", by_kind, ("full_*", "sliding_*"))
    else:
        by_kind = dict.fromkeys(("full_attention", "sliding_attention"), by_kind)
    bases, scales = {}, {}
    for kind in ("full_attention", "sliding_attention"):
        rope = by_kind[kind]
        check_keys(f"model: {path}: rotary embedding", rope, _ROPE)
        if rope["rope_type"] not in ("default", "linear"):
            refuse("rope_type", rope["rope_type"], "default and linear")
        bases[kind] = float(rope["rope_theta"])
        scales[kind] = float(rope["factor"]) if rope["rope_type"] == "linear" else 1.0

    def softcap(name: str) -> float | None:
        value = getattr(stored, name)
        return None if value is None else float(value)

    return GemmaConfig(
        family=family,
        vocab_size=stored.vocab_size,
        embed_dim=stored.hidden_size,
        num_layers=stored.num_hidden_layers,
        num_heads=stored.num_attention_heads,
        num_kv_heads=stored.num_key_value_heads,
        head_dim=stored.head_dim,
        mlp_dim=stored.intermediate_size,
        sliding_window=window or stored.max_position_embeddings,
        global_layers=tuple(kind == "full_attention" for kind in kinds),
        query_scale=getattr(stored, "query_pre_attn_scalar", stored.head_dim) ** -0.5,
        rope_base_global=bases["full_attention"],
        rope_base_local=bases["sliding_attention"],
        rope_scale=scales["full_attention"],
        rope_scale_local=scales["sliding_attention"],
        rms_eps=float(stored.rms_norm_eps),
        # transformers' Gemma 3 has this key too, but no cap on its scores.
        attention_softcap=softcap("attn_logit_softcapping") if family == "gemma2" else None,
        final_softcap=None if family == "gemma" else softcap("final_logit_softcapping"),
        post_norms=family != "gemma",
        qk_norm=family == "gemma3",
    )
