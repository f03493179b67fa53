"""A model with an adapter added to its weights, in Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx

from jaxmoral.models.hf_export import huggingface_config
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.lora import Adapter, Lora, by_stack
from jaxmoral.models.peft import merge
from jaxmoral.models.quantise import dequantise
from jaxmoral.models.tensor_names import TABLE, as_stored, block_tensors, other_tensors


def save_merged(folder: Path, model: LoadedModel, adapter: Adapter, lora: Lora) -> None:
    """Writes a Hugging Face model and tokenizer with the adapter added to the base weights."""
    sizes, tokenizer = model.config, model.tokenizer
    params = nnx.to_pure_dict(model.weights)
    tensors = {"model.embed_tokens.weight": _full(params["embedding"])}
    dtype = tensors["model.embed_tokens.weight"].dtype
    if not sizes.tied:
        tensors["lm_head.weight"] = _full(params["unembedding"])

    def put(name: str, stored: str, weight: np.ndarray) -> None:
        weight = as_stored(name, weight, sizes).astype(dtype)
        tensors[f"model.{stored}"] = np.ascontiguousarray(weight)

    for name, (stored, _) in other_tensors(sizes).items():
        put(name, stored, _weight(params, name))
    if model.beside is not None:
        tensors[f"model.{TABLE}"] = model.beside.rows
    pairs = by_stack(adapter, sizes)
    for at, blocks in by_stack(params["blocks"], sizes).items():
        stack = sizes.stacks[at]
        for name, (stored, _) in block_tensors(sizes, stack).items():
            weight = merge(name, _weight(blocks, name), pairs[at], lora)
            for layer, part in zip(stack.layers, weight, strict=True):
                put(name, f"layers.{layer}.{stored}", part)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    named = folder / "tokenizer_config.json"
    # The class's name in transformers 5 is unknown to earlier versions; all know this one.
    settings = json.loads(named.read_text(encoding="utf-8")) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    named.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    names = [f"{role}_token_id" for role in ("bos", "eos", "pad")]
    tokens = {name: getattr(tokenizer, name) for name in names}
    generation = tokens | {"eos_token_id": model.stop_tokens()} | model.generation
    stops = {name: generation[name] for name in generation if name == "eos_token_id"}
    described = huggingface_config(sizes, tokens) | {"dtype": str(dtype)} | stops
    for name, settings in (("config", described), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(
            json.dumps(settings, indent=2) + "\n", encoding="utf-8"
        )


def _weight(params: Any, name: str) -> np.ndarray:
    """A weight by its name, whose parts are joined by dots."""
    for part in name.split("."):
        params = params[part]
    return _full(params)


def _full(matrix: Any) -> np.ndarray:
    """A matrix, or what its codes and scales stand for."""
    return np.asarray(dequantise(**matrix) if isinstance(matrix, dict) else matrix)
