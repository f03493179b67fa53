"""What a decoder's weights are called in a Hugging Face checkpoint, and their shapes there."""

import re

import numpy as np

from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.layers import Stack

LINEAR_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "router": "router.proj",
    "layer_gate": "per_layer_input_gate",
    "layer_out": "per_layer_projection",
}
_NORM_NAMES = {
    "attention_in": "input_layernorm.weight",
    "attention_out": "post_attention_layernorm.weight",
    "mlp_in": "pre_feedforward_layernorm.weight",
    "mlp_out": "post_feedforward_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "router_in": "router.scale",
    "experts_in": "pre_feedforward_layernorm_2.weight",
    "dense_out": "post_feedforward_layernorm_1.weight",
    "experts_out": "post_feedforward_layernorm_2.weight",
    "layer_norm": "post_per_layer_input_norm.weight",
}
_OTHER_NAMES = {
    "layer_scalar": "layer_scalar",
    "expert_scale": "router.per_expert_scale",
    "expand": "experts.gate_up_proj",
    "shrink": "experts.down_proj",
}
TABLE = "embed_tokens_per_layer.weight"  # which is only looked up
# Tensors of parts that no text goes through, or that nothing reads.
_TOWERS = {
    "gemma3": r"(?:model\.)?(?:vision_tower|multi_modal_projector)\..*",
    "gemma4": (
        r"(?:model\.)?(?:vision_tower|audio_tower|vision_embedder|embed_vision|embed_audio)\..*"
    ),
}


def block_tensors(config: DecoderConfig, stack: Stack) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name of each weight of a block: its name and shape in a checkpoint."""
    norms = dict(_NORM_NAMES)
    if not config.post_norms:
        norms["mlp_in"] = norms["attention_out"]
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, size in stack.norm_sizes.items():
        found[f"{name}.scale"] = norms[name], (size,)
    for name, (inputs, outputs) in stack.linear_shapes.items():
        found[name] = f"{LINEAR_NAMES[name]}.weight", (outputs, inputs)
    for name, size in stack.vector_sizes.items():
        layer = LINEAR_NAMES.get(name.removesuffix("_bias"))
        found[name] = _OTHER_NAMES[name] if layer is None else f"{layer}.bias", (size,)
    for name, (experts, inputs, outputs) in stack.expert_shapes.items():
        found[name] = _OTHER_NAMES[name], (experts, outputs, inputs)
    return found


def other_tensors(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The same of the weights outside blocks, but the embedding, the head and the lookup table."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "final_norm.scale": ("norm.weight", (config.embed_dim,))
    }
    if config.per_layer_dim:
        outputs = config.num_layers * config.per_layer_dim
        found["beside_projection"] = (
            "per_layer_model_projection.weight",
            (outputs, config.embed_dim),
        )
        found["beside_norm.scale"] = "per_layer_projection_norm.weight", (config.per_layer_dim,)
    return found


def stored_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a text model but the head, by its name in a checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, config.embed_dim),
        **dict(other_tensors(config).values()),
    }
    if config.per_layer_dim:
        shapes[TABLE] = config.vocab_size, config.num_layers * config.per_layer_dim
    for stack in config.stacks.values():
        for stored, shape in block_tensors(config, stack).values():
            shapes |= {f"layers.{layer}.{stored}": shape for layer in stack.layers}
    return shapes


def unused(config: DecoderConfig) -> re.Pattern[str] | None:
    """What the tensors are called that nothing here reads."""
    parts = [_TOWERS[config.family]] if config.family in _TOWERS else []
    # Layers that take another's keys and values come with the layers that would make them.
    for stack in config.stacks.values():
        if not stack.own_keys:
            layers = "|".join(map(str, stack.layers))
            parts.append(rf"(?:.*\.)?layers\.(?:{layers})\.self_attn\.(?:[kv]_proj|[kv]_norm)\.\w+")
    return re.compile("|".join(parts)) if parts else None


def as_stored(name: str, weight: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """A weight as checkpoints have it: outputs before inputs, Gemma's norms without their 1."""
    if name.endswith(".scale"):
        return weight - config.norm_offset
    return weight if weight.ndim == 1 else weight.swapaxes(-1, -2)


def as_ours(name: str, stored: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """A weight as we have it: inputs before outputs, Gemma's norms with their 1."""
    if name.endswith(".scale"):
        return config.norm_offset + stored.astype(np.float32)
    return stored if stored.ndim == 1 else stored.swapaxes(-1, -2)
