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
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.gguf_file import bare, shown
from jaxmoral.gemma.huggingface import LINEAR_NAMES, check_tensor, read_settings
from jaxmoral.gemma.lora import Adapter, Lora

_TARGETS = {name.rpartition(".")[2]: ours for ours, name in LINEAR_NAMES.items()}
# Whatever wrapped the model (PEFT, TRL's value head, a vision-language model) leaves a prefix, and
# PEFT puts an adapter's name before "weight" in some versions.
_TENSOR = re.compile(
    r"(?:.*\.)?layers\.(\d{1,4})\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])(?:\.\w+)?\.weight"
)
# Settings of other kinds of adapters, and the values that leave plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "modules_to_save": ([], None),
    "trainable_token_indices": (None,),
    "target_parameters": ([], None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
}


def save_peft(folder: Path, adapter: Adapter, lora: Lora, base: str) -> None:
    """Writes an adapter that PEFT loads onto the transformers model.

    Args:
      folder: where the two files go.
      adapter: `{target: {"a": [layers, rank, inputs], "b": [layers, rank, outputs]}}`.
      lora: what it was trained with.
      base: the base model's source; PEFT looks a hub id up at the same commit.
    """
    tensors = {}
    for target, pair in adapter.items():
        for layer, (a, b) in enumerate(
            zip(np.asarray(pair["a"]), np.asarray(pair["b"]), strict=True)
        ):
            name = f"base_model.model.model.layers.{layer}.{LINEAR_NAMES[target]}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    hub_id, _, commit = (base, "", "") if Path(base).exists() else base.partition("@")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub_id,
        "revision": commit or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": sorted(LINEAR_NAMES[target].rpartition(".")[2] for target in adapter),
        "bias": "none",
        "inference_mode": True,
    }
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_peft(folder: Path, config: GemmaConfig, dropout: float) -> tuple[Adapter, Lora]:
    """Reads a PEFT LoRA adapter.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      config: of the base model.
      dropout: for further training; the adapter's own is not used.

    Raises:
      UserError: a file is missing or damaged, the adapter is not plain LoRA, or it was made for
        another model.
    """
    path = folder / "adapter_config.json"
    settings = read_settings(path, "lora.adapter")
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
    for key, plain in _PLAIN.items():
        if key in settings and settings[key] not in plain:
            raise UserError(
                f"lora.adapter: {path}: {key} = {shown(settings[key])} is not supported"
            )
    try:
        adapter = _read_adapter(folder / "adapter_model.safetensors", rank, config)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"lora.adapter: cannot read {folder / 'adapter_model.safetensors'} ({bare(error)}); no"
            " other kind of file is opened"
        ) from None
    return adapter, Lora(rank, float(alpha), dropout, tuple(adapter), bool(stabilised))


def _read_adapter(path: Path, rank: int, config: GemmaConfig) -> Adapter:
    """The adapter in a file; raises UserError if it is not one of this rank for this model."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    other = f"lora.adapter: {path.parent} was made for another model:"
    adapter: Adapter = {}
    with safetensors.safe_open(path, framework="numpy") as file:
        names = _names(path, file.keys())
        for target in [name for name in LINEAR_NAMES if any(key[1] == name for key in names)]:
            inputs, outputs = config.linear_shapes[target]
            pair = {}
            for side, shape in (("a", (rank, inputs)), ("b", (outputs, rank))):
                tensors = []
                for layer in range(config.num_layers):
                    name = names.pop((layer, target, side), None)
                    what = f"lora_{side.upper()} of layer {layer}'s {LINEAR_NAMES[target]}"
                    if name is None:
                        raise UserError(f"{other} {what} is missing, expected {shape}")
                    tensors.append(file.get_slice(name))
                    try:
                        check_tensor(tensors[-1], what, shape)
                    except ValueError as error:
                        raise UserError(f"{other} {error}") from None
                # Read once all are known to be there, into the one array of all layers.
                stacked = np.empty((config.num_layers, *shape), np.float32)
                for layer, tensor in enumerate(tensors):
                    stacked[layer] = tensor[:]
                pair[side] = jnp.asarray(stacked if side == "a" else stacked.swapaxes(1, 2))
            adapter[target] = pair
    if names or not adapter:
        extra = f"has layers up to {max(key[0] for key in names)}" if names else "is empty"
        raise UserError(f"{other} it {extra}")
    return adapter


def _names(path: Path, stored: Iterable[str]) -> dict[tuple[int, str, str], str]:
    """`{(layer, our target, "a" or "b"): name}` of an adapter file's tensors."""
    names: dict[tuple[int, str, str], str] = {}
    for name in stored:
        match = _TENSOR.fullmatch(name)
        if not match or match[2] not in _TARGETS:
            raise UserError(f"lora.adapter: {path}: {shown(name)} is not a LoRA weight of Gemma")
        key = int(match[1]), _TARGETS[match[2]], match[3].lower()
        if key in names:
            raise UserError(
                f"lora.adapter: {path}: {shown(name)} and {shown(names[key])} are the same weight"
            )
        names[key] = name
    return names


def merge(name: str, kernel: np.ndarray, adapter: Adapter, lora: Lora) -> np.ndarray:
    """A stacked kernel `[layers, inputs, outputs]` with its adapter added, in float32."""
    merged = np.asarray(kernel, np.float32)
    if name in adapter:
        pair = {side: np.asarray(part, np.float32) for side, part in adapter[name].items()}
        merged = merged + lora.scale * np.einsum("lri,lro->lio", pair["a"], pair["b"])
    return merged
