"""Reads a Gemma text model from a folder in Hugging Face layout.

`config.json`, safetensors (one file, or shards with an index) and a tokenizer; the vision-language
layout of Gemma 3 is read too, its text part alone. Tensors are read one at a time, so the host
never holds the model twice.

The folder may be a stranger's: no pickle is opened, no code of its is run, and no file outside it
is read, whatever its files ask for. Only symbolic links are followed; the hub's cache is made so.
"""

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import transformers
from tokenizers import Tokenizer

from jaxmoral.errors import UserError
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.gguf_file import MAX_LAYERS, bare, check_config, shown

FAMILIES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
_CLASSES = {
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
}
# What is taken from `config.json`, in its newer and its older spelling.
_SETTINGS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
    *("hidden_act", "hidden_activation", "tie_word_embeddings", "query_pre_attn_scalar"),
    *("sliding_window", "sliding_window_pattern", "layer_types", "use_bidirectional_attention"),
    *("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)
# The special tokens that have a role, and what Gemma calls them if the folder does not say.
_ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
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
_MAX_SETTINGS = 2**24  # bytes of a JSON file or of a chat template
_FLOATS = ("F64", "F32", "F16", "BF16")  # what safetensors calls the numbers that weights can be


def read_settings(path: Path, key: str) -> dict[str, Any]:
    """The keys and values in a JSON file; raises UserError, naming `key`, if it holds none."""
    try:
        settings = json.loads(_read_text(path))
    except OSError as error:
        raise UserError(f"{key}: cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path} is damaged ({bare(error)})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{key}: {path} is damaged (it must hold keys and values)")
    return settings


def _read_text(path: Path) -> str:
    """A file of limited size; raises OSError or ValueError."""
    if not path.is_file():  # nor is a pipe one, which might never end
        raise FileNotFoundError(errno.ENOENT, "no such file")
    with path.open("rb") as file:
        content = file.read(min(path.stat().st_size, _MAX_SETTINGS) + 1)
    if len(content) > _MAX_SETTINGS:
        raise ValueError(f"it is larger than {_MAX_SETTINGS:,} bytes")
    return str(content, "utf-8")


def check_tensor(tensor: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless an open tensor has this shape and holds floating-point numbers."""
    if tuple(tensor.get_shape()) != shape:
        raise ValueError(f"{name} has shape {shown(tuple(tensor.get_shape()))}, expected {shape}")
    if tensor.get_dtype() not in _FLOATS:
        raise ValueError(f"{name} holds {tensor.get_dtype()}, expected {', '.join(_FLOATS)}")


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
    settings = read_settings(path, "model")
    kind = settings.get("model_type")
    if kind == "gemma3":  # the vision-language layout
        kind, settings = "gemma3_text", settings.get("text_config", {})
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"model: {path} is damaged or of an unknown kind: it describes a {shown(kind)} model;"
            f" supported are {', '.join(FAMILIES)}"
        )
    try:
        chosen = {name: settings[name] for name in _SETTINGS if name in settings}
        if not 0 < chosen.get("num_hidden_layers", 1) <= MAX_LAYERS:  # a list of them is made
            raise ValueError(f"num_hidden_layers: {shown(chosen['num_hidden_layers'])}")
        config = _translate(_CLASSES[kind](**chosen), FAMILIES[kind], path)
    except UserError:
        raise
    except Exception as error:  # transformers refuses values with exceptions of many kinds
        raise UserError(f"model: {path} is damaged ({bare(error)})") from None
    return check_config(config, path)


def _translate(stored: Any, family: str, path: Path) -> GemmaConfig:
    """transformers' configuration as ours; raises UserError if it asks for what we lack."""
    activation = getattr(stored, "hidden_activation", None) or stored.hidden_act
    if activation not in ("gelu", "gelu_pytorch_tanh") or not stored.tie_word_embeddings:
        raise UserError(
            f"model: {path}: only tied embeddings and a tanh-approximated GELU are known"
        )
    if getattr(stored, "use_bidirectional_attention", None):
        raise UserError(f"model: {path}: use_bidirectional_attention is not supported")
    kinds = getattr(stored, "layer_types", None) or ["full_attention"] * stored.num_hidden_layers
    if not {*kinds} <= {"full_attention", "sliding_attention"}:
        raise UserError(f"model: {path}: layer_types {shown(kinds)} are not supported")
    rope = stored.rope_parameters
    wide = rope.get("full_attention", rope)
    near = rope.get("sliding_attention", rope)
    if wide.get("rope_type", "default") not in ("default", "linear"):
        raise UserError(f"model: {path}: rope scaling {shown(wide['rope_type'])} is not supported")

    def softcap(name: str) -> float | None:
        value = getattr(stored, name, None)
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
        sliding_window=getattr(stored, "sliding_window", None) or stored.max_position_embeddings,
        global_layers=tuple(kind == "full_attention" for kind in kinds),
        query_scale=getattr(stored, "query_pre_attn_scalar", stored.head_dim) ** -0.5,
        rope_base_global=float(wide["rope_theta"]),
        rope_base_local=float(near["rope_theta"]),
        rope_scale=float(wide.get("factor", 1.0)),
        rms_eps=float(stored.rms_norm_eps),
        attention_softcap=softcap("attn_logit_softcapping"),
        final_softcap=softcap("final_logit_softcapping"),
        post_norms=family != "gemma",
        qk_norm=family == "gemma3",
    )


class TensorFiles:
    """The safetensors of a folder: which file holds which tensor."""

    def __init__(self, folder: Path):
        """Raises UserError if there are none, one is missing, or one is damaged."""
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        shards = ["model.safetensors"]
        if index.is_file():
            listed = read_settings(index, "model").get("weight_map")
            names: list[Any] = list(listed.values()) if isinstance(listed, dict) else [listed]
            for name in names:
                if not isinstance(name, str) or Path(name).name != name:
                    raise UserError(
                        f"model: {index} is damaged: it names the file {shown(name)}, but a shard"
                        " must be in the same folder"
                    )
            shards = sorted({*names})
        self.files: dict[str, Path] = {}
        for shard in shards:
            path = folder / shard
            if not shard.endswith(".safetensors") or not path.is_file():
                raise UserError(
                    f"model: {folder / bare(shard)} is missing or no safetensors file (the"
                    " only kind that is opened)"
                )
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
            raise UserError(
                f"model: {path} is not a complete safetensors file ({bare(error)})"
            ) from None

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises UserError unless the text model's tensors are these, all of floats.

        Nothing is read, or made room for, before it is known that everything is there.
        """
        opened = {path: self._open(path) for path in set(self.files.values())}
        expected = {self._prefix + name: shape for name, shape in shapes.items()}
        for name, shape in expected.items():
            if name not in self.files:
                raise UserError(
                    f"model: {self._folder} holds no tensor {bare(name)}, expected {shape}"
                )
            path = self.files[name]
            try:
                check_tensor(opened[path].get_slice(name), bare(name), shape)
            except ValueError as error:
                raise UserError(f"model: {path}: {error}") from None
        for name, path in self.files.items():
            if name.startswith(self._prefix) and name not in expected:
                raise UserError(f"model: {path}: unexpected tensor {bare(name)}")

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor of the text model."""
        return self._slice(name)[:]

    def read_rows(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads a large matrix some rows at a time."""
        stored = self._slice(name)
        rows, width = stored.get_shape()
        step = max(1, _CHUNK // width)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            yield part, stored[part]

    def _slice(self, name: str):
        full = f"{self._prefix}{name}"
        return self._open(self.files[full]).get_slice(full)  # reopened: its pages can go


def _stored_shapes(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a text model, by its name in a checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, config.embed_dim),
        "norm.weight": (config.embed_dim,),
    }
    for layer in range(config.num_layers):
        for name, stored in norm_names(config).items():
            shapes[f"layers.{layer}.{stored}.weight"] = (config.norm_sizes[name],)
        for name, stored in LINEAR_NAMES.items():
            shapes[f"layers.{layer}.{stored}.weight"] = config.linear_shapes[name][::-1]
    return shapes


def weights(folder: Path, config: GemmaConfig) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Yields the weights in parts: our name, where in it the part goes, and the numbers.

    A part is a block's matrix or norm, or some rows of the embedding, in the file's dtype; the
    norms' scales are float32 with their 1 added.

    Raises:
      UserError: a tensor is missing, unexpected or misshapen, or a file is damaged.
    """
    files = TensorFiles(folder)
    files.check(_stored_shapes(config))
    for rows, part in files.read_rows("embed_tokens.weight"):
        yield "embedding", rows, part
    final = files.read("norm.weight")
    yield "final_norm.scale", ..., 1 + final.astype(np.float32)
    # Weight by weight, not layer by layer: each is complete, and on its device, before the next.
    layers = range(config.num_layers)
    for name, stored in norm_names(config).items():
        for layer in layers:
            scale = files.read(f"layers.{layer}.{stored}.weight")
            yield f"blocks.{name}.scale", layer, 1 + scale.astype(np.float32)
    for name, stored in LINEAR_NAMES.items():
        for layer in layers:
            kernel = files.read(f"layers.{layer}.{stored}.weight")
            yield f"blocks.{name}", layer, kernel.T


def identity(folder: Path) -> str:
    """A digest of the configuration and of every file's table of contents (not of the values)."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(filter(Path.is_file, folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            stored = path.stat().st_size
            size = int.from_bytes(file.read(8), "little")
            digest.update(path.name.encode() + file.read(min(size, stored, 2**26)))
            digest.update(str(stored).encode())
    return digest.hexdigest()


def read_tokenizer(folder: Path, config: GemmaConfig) -> "transformers.PreTrainedTokenizerFast":
    """Reads the tokenizer; raises UserError if it is missing or has more tokens than the model.

    `tokenizer.json` is the tokenizer, `tokenizer_config.json` names the special tokens, and either
    it or `chat_template.jinja` holds the chat template. transformers' own loader would follow what
    the settings ask for: other classes, other files.
    """
    path, named = folder / "tokenizer.json", folder / "tokenizer_config.json"
    jinja = folder / "chat_template.jinja"
    if not path.is_file():
        raise UserError(f"model: {folder} holds no tokenizer.json")
    settings = read_settings(named, "model") if named.is_file() else {}
    try:
        backend = Tokenizer.from_file(str(path))
        vocabulary = backend.get_vocab()
        if {*vocabulary.values()} != {*range(len(vocabulary))}:  # all up to the last would be tried
            raise ValueError("its tokens are not numbered from 0 without gaps")
        roles = {
            role: _content(settings.get(role, usual if usual in vocabulary else None))
            for role, usual in _ROLES.items()
        }
        for role, token in roles.items():
            optional = role != "bos_token" and token is None
            if not optional and not (isinstance(token, str) and token in vocabulary):
                raise ValueError(f"there is no token {shown(token)} to be the {role}")
        template = _read_text(jinja) if jinja.is_file() else _template(settings)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=template,
            clean_up_tokenization_spaces=False,
            **roles,
        )
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"model: {path} cannot be read ({bare(error)})") from None
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model: the tokenizer in {folder} has {len(tokenizer)} tokens, the embedding only"
            f" {config.vocab_size}"
        )
    return tokenizer


def _content(token: Any) -> Any:
    """A token that may be written with its properties."""
    return token.get("content") if isinstance(token, dict) else token


def _template(settings: dict[str, Any]) -> str | None:
    """The chat template, or the default one of several."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    if not isinstance(template, str | None):
        raise ValueError(f"the chat template is {shown(template)}")
    return template
