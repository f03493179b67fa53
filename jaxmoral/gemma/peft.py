"""LoRA adapters in PEFT's layout, in and out: `adapter_config.json` and safetensors."""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxmoral.errors import UserError
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.huggingface import LINEAR_NAMES
from jaxmoral.gemma.lora import Adapter, Lora

_TARGETS = {name.rpartition(".")[2]: ours for ours, name in LINEAR_NAMES.items()}
# Whatever wrapped the model (PEFT, TRL's value head, a vision-language model) leaves a prefix, and
# PEFT puts an adapter's name before "weight" in some versions.
_TENSOR = re.compile(
    r"(?:.*\.)?layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])(?:\.\w+)?\.weight"
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
    try:
        settings = json.loads(path.read_text())
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    except OSError as error:
        raise UserError(f"lora.adapter: cannot read {path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"lora.adapter: {path} is damaged ({error})") from None
    for key, plain in _PLAIN.items():
        if key in settings and settings[key] not in plain:
            raise UserError(f"lora.adapter: {path}: {key} = {settings[key]!r} is not supported")
    tensors = _read_tensors(folder / "adapter_model.safetensors")

    targets = tuple(name for name in LINEAR_NAMES if any(key[1] == name for key in tensors))
    adapter: Adapter = {}
    for target in targets:
        inputs, outputs = config.linear_shapes[target]
        shapes = {"a": (rank, inputs), "b": (outputs, rank)}
        stacked: dict[str, list[np.ndarray]] = {"a": [], "b": []}
        for layer in range(config.num_layers):
            for side, shape in shapes.items():
                tensor = tensors.pop((layer, target, side), None)
                if tensor is None or tensor.shape != shape:
                    found = "is missing" if tensor is None else f"has shape {tensor.shape}"
                    raise UserError(
                        f"lora.adapter: {folder} was made for another model: lora_{side.upper()} of"
                        f" layer {layer}'s {LINEAR_NAMES[target]} {found}, expected {shape}"
                    )
                stacked[side].append(tensor if side == "a" else tensor.T)
        adapter[target] = {
            side: jnp.asarray(np.stack(parts).astype(np.float32)) for side, parts in stacked.items()
        }
    if tensors or not adapter:
        extra = f"has layers up to {max(key[0] for key in tensors)}" if tensors else "is empty"
        raise UserError(f"lora.adapter: {folder} was made for another model: it {extra}")
    stabilised = bool(settings.get("use_rslora"))
    return adapter, Lora(rank, alpha, dropout, targets, stabilised)


def _read_tensors(path: Path) -> dict[tuple[int, str, str], np.ndarray]:
    """`{(layer, our target, "a" or "b"): tensor}` of an adapter file."""
    tensors = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                match = _TENSOR.fullmatch(name)
                if not match or match[2] not in _TARGETS:
                    raise UserError(f"lora.adapter: {path}: {name} is not a LoRA weight of Gemma")
                key = int(match[1]), _TARGETS[match[2]], match[3].lower()
                tensors[key] = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"lora.adapter: cannot read {path} ({error})") from None
    return tensors


def merge(name: str, kernel: np.ndarray, adapter: Adapter, lora: Lora) -> np.ndarray:
    """A stacked kernel `[layers, inputs, outputs]` with its adapter added, in float32."""
    merged = np.asarray(kernel, np.float32)
    if name in adapter:
        pair = {side: np.asarray(part, np.float32) for side, part in adapter[name].items()}
        merged = merged + lora.scale * np.einsum("lri,lro->lio", pair["a"], pair["b"])
    return merged
