"""A model with an adapter added to its weights, in Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import transformers
from flax import nnx

from jaxmoral.models.config import DecoderConfig
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
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": (np.asarray(params["final_norm"]["scale"]) - 1).astype(dtype),
    }
    for name, stored in norm_names(sizes).items():
        for layer, scale in enumerate(np.asarray(params["blocks"][name]["scale"])):
            tensors[f"model.layers.{layer}.{stored}.weight"] = (scale - 1).astype(dtype)
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
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad")}
    generation = {**tokens, "eos_token_id": model.stop_tokens()} | model.generation
    stops = {name: generation[name] for name in generation if name == "eos_token_id"}
    described = huggingface_config(sizes, tokenizer) | {"dtype": str(dtype)} | stops
    for name, settings in (("config", described), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")


def _full(matrix: Any) -> np.ndarray:
    """A matrix, or what its codes and scales stand for."""
    return np.asarray(dequantise(**matrix) if isinstance(matrix, dict) else matrix)


def huggingface_config(sizes: DecoderConfig, tokenizer: Any) -> dict[str, Any]:
    """`config.json` of the text model with these sizes."""
    kinds = {
        "gemma": (transformers.GemmaConfig, "GemmaForCausalLM"),
        "gemma2": (transformers.Gemma2Config, "Gemma2ForCausalLM"),
        "gemma3": (transformers.Gemma3TextConfig, "Gemma3ForCausalLM"),
    }
    make, architecture = kinds[sizes.family]
    near = {"rope_type": "default", "rope_theta": sizes.rope_base_local}
    wide = {"rope_type": "default", "rope_theta": sizes.rope_base_global}
    for rope, scale in ((near, sizes.rope_scale_local), (wide, sizes.rope_scale)):
        if scale != 1.0:
            rope |= {"rope_type": "linear", "factor": scale}
    settings: dict[str, Any] = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.embed_dim,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.mlp_dim,
        "rms_norm_eps": sizes.rms_eps,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": wide,
    }
    if sizes.family != "gemma":
        names = {True: "full_attention", False: "sliding_attention"}
        settings |= {
            "sliding_window": sizes.sliding_window,
            "layer_types": [names[is_global] for is_global in sizes.global_layers],
            "query_pre_attn_scalar": round(sizes.query_scale**-2),
            "attn_logit_softcapping": sizes.attention_softcap,
            "final_logit_softcapping": sizes.final_softcap,
        }
    if sizes.family == "gemma3":
        settings["rope_parameters"] = {"full_attention": wide, "sliding_attention": near}
    return make(**settings).to_dict() | {"architectures": [architecture]}
