"""A model with an adapter added to its weights, in Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx

from jaxmoral.models.hf_config import huggingface_config
from jaxmoral.models.huggingface import LINEAR_NAMES, norm_names
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.lora import Adapter, Lora
from jaxmoral.models.peft import merge
from jaxmoral.models.quantise import dequantise


def save_merged(folder: Path, model: LoadedModel, adapter: Adapter, lora: Lora) -> None:
    """Writes a Hugging Face model and tokenizer with the adapter added to the base weights."""
    sizes, tokenizer = model.config, model.tokenizer
    params = nnx.to_pure_dict(model.weights)
    embedding = _full(params["embedding"])
    dtype = embedding.dtype
    norm = lambda part: (np.asarray(part["scale"]) - sizes.norm_offset).astype(dtype)
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": norm(params["final_norm"]),
    }
    if not sizes.tied:
        tensors["lm_head.weight"] = _full(params["unembedding"])
    for name, stored in norm_names(sizes).items():
        for layer, scale in enumerate(norm(params["blocks"][name])):
            tensors[f"model.layers.{layer}.{stored}.weight"] = scale
    for name in sizes.biases:
        for layer, bias in enumerate(np.asarray(params["blocks"][f"{name}_bias"])):
            tensors[f"model.layers.{layer}.{LINEAR_NAMES[name]}.bias"] = bias.astype(dtype)
    for name, stored in LINEAR_NAMES.items():
        kernel = merge(name, _full(params["blocks"][name]), adapter, lora).astype(dtype)
        for layer, matrix in enumerate(kernel):
            tensors[f"model.layers.{layer}.{stored}.weight"] = np.ascontiguousarray(matrix.T)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    named = folder / "tokenizer_config.json"
    # The class's name in transformers 5 is unknown to earlier versions; all know this one.
    settings = json.loads(named.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    named.write_text(json.dumps(settings, indent=2) + "\n")
    names = [f"{role}_token_id" for role in ("bos", "eos", "pad")]
    tokens = {name: getattr(tokenizer, name) for name in names}
    generation = tokens | {"eos_token_id": model.stop_tokens()} | model.generation
    stops = {name: generation[name] for name in generation if name == "eos_token_id"}
    described = huggingface_config(sizes, tokens) | {"dtype": str(dtype)} | stops
    for name, settings in (("config", described), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")


def _full(matrix: Any) -> np.ndarray:
    """A matrix, or what its codes and scales stand for."""
    return np.asarray(dequantise(**matrix) if isinstance(matrix, dict) else matrix)
