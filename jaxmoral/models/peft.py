"""LoRA adapters in PEFT's layout, in and out: `adapter_config.json` and safetensors."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxmoral.errors import UserError
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.foreign import COMMIT, bare, check_keys, shown
from jaxmoral.models.hf_config import read_settings
from jaxmoral.models.huggingface import check_tensor
from jaxmoral.models.layers import Stack
from jaxmoral.models.lora import Adapter, Lora, Pairs, by_stack, of_stacks
from jaxmoral.models.tensor_names import LINEAR_NAMES

_TARGETS = {name: ours for ours, name in LINEAR_NAMES.items()}
# Whatever wrapped the model (PEFT, TRL's value head, a vision-language model) leaves a prefix, and
# PEFT puts an adapter's name before "weight" in some versions.
_TENSOR = re.compile(
    r"(?:(?:pretrained_model|base_model|model|language_model|module|_orig_mod)\.)*"
    r"layers\.(\d{1,4})\.([\w.]+)\.lora_([AB])(?:\.\w+)?\.weight"
)
_UNUSED = re.compile(  # by texts
    r"(?:\w+\.)*(?:vision_tower|multi_modal_projector|audio_tower|embed_vision|embed_audio)\."
)
# Settings that plain LoRA does not depend on, whatever they are: bookkeeping, how it was trained,
# which tensors there are (the file tells), and what belongs to an option that is off.
_HARMLESS = (
    *("r", "lora_alpha", "use_rslora", "base_model_name_or_path", "revision", "task_type"),
    *("target_modules", "exclude_modules", "inference_mode", "lora_dropout", "peft_version"),
    *("auto_mapping", "layers_pattern", "runtime_config", "qalora_group_size", "eva_config"),
    *("megatron_config", "megatron_core", "ensure_weight_tying", "layers_to_transform"),
)
# How A and B were drawn at first. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change the base besides.
_DRAWN = (True, False, "gaussian", "orthogonal", "eva")
_REVISION = re.compile(r"[\w+-][\w.+-]*(?:/[\w+-][\w.+-]*)*")  # a branch, tag or commit
_BASE = "base"  # in the metadata of the tensors: the base in our own words


def save_peft(
    folder: Path,
    config: DecoderConfig,
    adapter: Adapter,
    lora: Lora,
    base: str,
    *,
    module: str = "model.",
) -> None:
    """Writes an adapter that PEFT loads onto the transformers model.

    Args:
      folder: where the two files go.
      config: of the base.
      adapter: `{target: {"a": [layers, rank, inputs], "b": [layers, rank, outputs]}}`, or that of
        each stack of layers.
      lora: what it was trained with.
      base: the base model's source; PEFT looks a hub id up at the same commit.
      module: of the base, as in `jaxmoral.models.load.LoadedModel`.
    """
    tensors = {}
    parts = by_stack(adapter, config)
    for at, pairs in parts.items():
        for target, pair in pairs.items():
            sides = (np.asarray(pair[side]) for side in "ab")
            for layer, a, b in zip(config.stacks[at].layers, *sides, strict=True):
                name = f"base_model.model.{module}layers.{layer}.{LINEAR_NAMES[target]}"
                tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a)
                tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named_base(base),
        "revision": None if Path(base).exists() else base.partition("@")[2] or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": _target_modules(
            {name for pairs in parts.values() for name in pairs}, module
        ),
        "bias": "none",
        "inference_mode": True,
    }
    about = {"format": "pt", _BASE: base}
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", about)
    (folder / "adapter_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


def named_base(source: str) -> str | None:
    """The base as PEFT looks it up: a hub id or a folder; None for what it could not load."""
    path = Path(source)
    if path.exists():
        return str(path.absolute()) if path.is_dir() else None
    name, _, _ = source.partition("@")
    return name if "/" in name else None


def _target_modules(targets: Iterable[str], module: str) -> list[str] | str:
    """What PEFT adapts; beside a vision tower, whose layers have the same names, a pattern."""
    names = sorted(LINEAR_NAMES[target].rpartition(".")[2] for target in targets)
    if module == "model.":
        return names
    return rf".*{re.escape(module)}layers\.\d+\.(\w+\.)?({'|'.join(names)})"


def is_adapter(folder: Path) -> bool:
    """Whether it holds an adapter in this layout."""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path) -> str:
    """The source of an adapter's base, a hub id with its revision.

    Raises:
      UserError: the adapter cannot be read, or does not say.
    """
    base, revision = _stored_base(folder)
    if base is None:
        base = _metadata(folder / "adapter_model.safetensors").get(_BASE)
    if not base:
        raise UserError(f"lora.adapter: {folder} does not name its base (base_model_name_or_path)")
    return f"{base}@{revision}" if revision and not Path(base).exists() else base


def _read_settings(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, of which the base's name and revision are judged."""
    path = folder / "adapter_config.json"
    if not folder.is_dir():
        raise UserError(f"lora.adapter: there is no folder {folder}")
    settings = read_settings(path, "lora.adapter")
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str | None):
        raise UserError(f"lora.adapter: {path} is damaged (its base is {shown(base)})")
    if revision is not None and not _REVISION.fullmatch(str(revision)):
        raise UserError(f"lora.adapter: {path} is damaged (its revision is {shown(revision)})")
    return settings


def _stored_base(folder: Path) -> tuple[str | None, str | None]:
    """The name and the revision of the base as PEFT stores them."""
    settings = _read_settings(folder)
    return settings.get("base_model_name_or_path"), settings.get("revision")


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except OSError:
        return {}
    except safetensors.SafetensorError as error:
        raise UserError(f"lora.adapter: {path} is damaged ({error})") from None


def at_revision(source: str, folder: Path) -> str:
    """The source of a base, at the revision of it on which the adapter in a folder was made.

    Raises:
      UserError: the adapter cannot be read, or the source says another revision.
    """
    base, revision = _stored_base(folder)
    name, at, given = source.partition("@")
    if not revision or name != base:
        return source
    if COMMIT.fullmatch(given) and not COMMIT.fullmatch(revision):
        return source  # a commit, which the branch or tag may stand for
    if at and given != revision:
        raise UserError(
            f"lora.adapter: {folder} was made on revision {shown(revision)} of {name}, model.source"
            f" says {shown(given)}; leave the revision out of model.source"
        )
    return f"{name}@{revision}"


def load_peft(folder: Path, config: DecoderConfig, dropout: float) -> tuple[Adapter, Lora]:
    """Reads a PEFT LoRA adapter.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      config: of the base model.
      dropout: for further training; the adapter's own is not used.

    Raises:
      UserError: a file is missing or damaged, the adapter is not plain LoRA of all layers, or
        it was made for another model.
    """
    path = folder / "adapter_config.json"
    settings = _read_settings(folder)
    rank: Any = settings.get("r")
    alpha: Any = settings.get("lora_alpha")
    stabilised = settings.get("use_rslora")
    fine = {
        "r": type(rank) is int and 0 < rank < 2**31,
        "lora_alpha": type(alpha) in (int, float) and 0 < alpha < 2**31,
        "use_rslora": stabilised in (None, False, True),
    }
    for key in fine:
        if not fine[key]:
            raise UserError(
                f"lora.adapter: {path} is damaged ({key} is {shown(settings.get(key))})"
            )
    _check_plain(path, settings)
    try:
        adapter = _read_adapter(folder / "adapter_model.safetensors", rank, config)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"lora.adapter: cannot read {folder / 'adapter_model.safetensors'} ({bare(error)}); no"
            " other kind of file is opened"
        ) from None
    found = {name for pairs in by_stack(adapter, config).values() for name in pairs}
    targets = tuple(name for name in config.linear_names if name in found)
    return adapter, Lora(rank, float(alpha), dropout, targets, bool(stabilised))


def _check_plain(path: Path, settings: dict[str, Any]) -> None:
    """Raises UserError unless these are settings of plain LoRA on the base as it is stored."""
    where = f"lora.adapter: {path}"
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type = {shown(settings.get('peft_type'))} is not supported")
    drawn = settings.get("init_lora_weights")
    if drawn is not None and drawn not in _DRAWN:
        raise UserError(
            f"{where}: init_lora_weights = {shown(drawn)} changes the base too; save the adapter"
            " with PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    plain = {"peft_type", "init_lora_weights"} | (
        {"bias"} if settings.get("bias") == "none" else set()
    )
    check_keys(where, settings, (*_HARMLESS, *plain))


def _read_adapter(path: Path, rank: int, config: DecoderConfig) -> Adapter:
    """The adapter in a file; raises UserError if it is not one of this rank for this model."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    with safetensors.safe_open(path, framework="numpy") as file:
        names = _names(path, file.keys())
        asked = {target for _, target, _ in names}
        parts = {
            at: _read_pairs(path, file, names, rank=rank, stack=stack, asked=asked)
            for at, stack in config.stacks.items()
        }
    if names or not any(parts.values()):
        extra = "is empty"
        if names:
            layer, target, _ = max(names)
            extra = f"has layers up to {layer}"
            if layer < config.num_layers:
                extra = f"adapts layer {layer}'s {LINEAR_NAMES[target]}, which the model has not"
        raise UserError(f"lora.adapter: {path.parent} was made for another model: it {extra}")
    return of_stacks(parts)


def _read_pairs(
    path: Path,
    file: Any,
    names: dict[tuple[int, str, str], str],
    *,
    rank: int,
    stack: Stack,
    asked: set[str],
) -> Pairs:
    """The adapter of one stack's layers, whose tensors' names are taken out of `names`."""
    other = f"lora.adapter: {path.parent} was made for another model:"
    part = f"lora.adapter: {path.parent} leaves out layers, which is not supported:"
    pairs: Pairs = {}
    for target in [name for name in stack.linear_shapes if name in asked]:
        inputs, outputs = stack.linear_shapes[target]
        pair = {}
        for side, shape in (("a", (rank, inputs)), ("b", (outputs, rank))):
            tensors = []
            for layer in stack.layers:
                name = names.pop((layer, target, side), None)
                what = f"lora_{side.upper()} of layer {layer}'s {LINEAR_NAMES[target]}"
                if name is None:
                    raise UserError(f"{part} there is no {what}")
                tensors.append(file.get_slice(name))
                try:
                    check_tensor(tensors[-1], what, shape)
                except ValueError as error:
                    raise UserError(f"{other} {error}") from None
            # Read once all are known to be there, into the one array of all layers.
            stacked = np.empty((len(tensors), *shape), np.float32)
            for index, tensor in enumerate(tensors):
                stacked[index] = tensor[:]
            pair[side] = jnp.asarray(stacked if side == "a" else stacked.swapaxes(1, 2))
        pairs[target] = pair
    return pairs


def _names(path: Path, stored: Iterable[str]) -> dict[tuple[int, str, str], str]:
    """`{(layer, our target, "a" or "b"): name}` of an adapter file's tensors."""
    names: dict[tuple[int, str, str], str] = {}
    for name in stored:
        match = _TENSOR.fullmatch(name)
        if _UNUSED.match(name):
            continue
        if not match or match[2] not in _TARGETS:
            raise UserError(f"lora.adapter: {path}: {shown(name)} is not a LoRA weight of a layer")
        key = int(match[1]), _TARGETS[match[2]], match[3].lower()
        if key in names:
            raise UserError(
                f"lora.adapter: {path}: {shown(name)} and {shown(names[key])} are the same weight"
            )
        names[key] = name
    return names


def merge(name: str, kernel: np.ndarray, pairs: Pairs, lora: Lora) -> np.ndarray:
    """A stacked kernel `[layers, inputs, outputs]` with its adapter added, in float32."""
    merged = np.asarray(kernel, np.float32)
    if name in pairs:
        pair = {side: np.asarray(part, np.float32) for side, part in pairs[name].items()}
        merged = merged + lora.scale * np.einsum("lri,lro->lio", pair["a"], pair["b"])
    return merged
