"""Writes `config.json` of a text model as transformers reads it."""

from typing import Any

from jaxmoral.models.config import DecoderConfig, Ramp
from jaxmoral.models.hf_config import class_of


def huggingface_config(sizes: DecoderConfig, tokens: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of the text model with these sizes; `tokens` begin, end and pad its texts."""
    near = _stored_rope(sizes.rope_base_local, sizes.rope_scale_local, sizes.rope_ramp)
    wide = _stored_rope(sizes.rope_base_global, sizes.rope_scale, sizes.rope_ramp)
    windowed = not all(sizes.global_layers)
    settings: dict[str, Any] = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.embed_dim,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.mlp_dim,
        "rms_norm_eps": sizes.rms_eps,
        "tie_word_embeddings": sizes.tied,
        "rope_parameters": wide,
    }
    names = {True: "full_attention", False: "sliding_attention"}
    kinds = {"layer_types": [names[is_global] for is_global in sizes.global_layers]}
    if sizes.family in ("gemma2", "gemma3"):
        settings |= kinds | {
            "sliding_window": sizes.sliding_window,
            "query_pre_attn_scalar": round(sizes.query_scale**-2),
            "attn_logit_softcapping": sizes.attention_softcap,
            "final_logit_softcapping": sizes.final_softcap,
        }
    if sizes.family == "gemma4":
        settings |= kinds | _gemma4_settings(sizes)
        wide |= {"rope_type": "proportional", "partial_rotary_factor": sizes.rope_share}
    if sizes.family in ("gemma3", "gemma4"):
        settings["rope_parameters"] = {"full_attention": wide, "sliding_attention": near}
    if sizes.family in ("qwen2", "qwen3"):
        settings |= kinds | {"use_sliding_window": windowed}
    if sizes.family in ("mistral", "qwen2", "qwen3"):
        settings["sliding_window"] = sizes.sliding_window if windowed else None
    if not (windowed or sizes.family.startswith("gemma")):
        settings["max_position_embeddings"] = sizes.sliding_window
    if sizes.family in ("llama", "qwen3"):
        settings["attention_bias"] = "q" in sizes.biases
    if sizes.family == "llama":
        settings["mlp_bias"] = "gate" in sizes.biases
    stored = class_of(sizes.family)(**settings, **tokens)
    architecture = type(stored).__name__.removesuffix("Config").removesuffix("Text")
    # What these are earlier versions read from keys of their own.
    named = ("global_head_dim", "num_global_key_value_heads")
    given = {name: settings[name] for name in named if name in settings}
    if sizes.family != "gemma4":  # which versions before 5 do not know
        given |= _earlier_rope(sizes, wide)
    return stored.to_dict() | given | {"architectures": [f"{architecture}ForCausalLM"]}


def _earlier_rope(sizes: DecoderConfig, wide: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding as transformers before version 5 reads it."""
    rope: dict[str, Any] = {"rope_theta": sizes.rope_base_global}
    if sizes.family == "gemma3":
        rope["rope_local_base_freq"] = sizes.rope_base_local
    if wide["rope_type"] != "default":
        rope["rope_scaling"] = {key: value for key, value in wide.items() if key != "rope_theta"}
    return rope


def _gemma4_settings(sizes: DecoderConfig) -> dict[str, Any]:
    return {
        "sliding_window": sizes.sliding_window,
        "final_logit_softcapping": sizes.final_softcap,
        "global_head_dim": sizes.head_dim_global,
        "num_global_key_value_heads": sizes.num_kv_heads_global if sizes.keys_are_values else None,
        "attention_k_eq_v": sizes.keys_are_values,
        "num_kv_shared_layers": sizes.num_shared,
        "use_double_wide_mlp": sizes.mlp_dim_shared is not None,
        "hidden_size_per_layer_input": sizes.per_layer_dim,
        "vocab_size_per_layer_input": sizes.vocab_size,
        "enable_moe_block": sizes.num_experts > 0,
        "num_experts": sizes.num_experts or None,
        "top_k_experts": sizes.experts_per_token or None,
        "moe_intermediate_size": sizes.expert_dim or None,
        "attention_bias": "q" in sizes.biases,
    }


def _stored_rope(base: float, scale: float, ramp: Ramp | None) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if ramp is not None:
        rope |= {"low_freq_factor": ramp.low, "high_freq_factor": ramp.high}
        rope |= {"original_max_position_embeddings": int(ramp.length)}
        return rope | {"rope_type": "llama3", "factor": scale}
    return rope if scale == 1.0 else rope | {"rope_type": "linear", "factor": scale}
