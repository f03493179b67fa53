"""GGUF files of every family and storage type, written from tiny checkpoints."""

import gguf
import numpy as np
import pytest
from conftest import load_tiny, save_tiny
from flax import nnx

from jaxmoral.errors import UserError
from jaxmoral.gemma.gguf_file import GGUFModel

# What converters call a checkpoint's tensors.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TYPES = gguf.GGMLQuantizationType


def write(path, kind, twin, config, stored):
    """Writes a torch model as converters do: 1 added to the norms' scales."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(64)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    if kind != "gemma":
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attention_softcap)
        writer.add_final_logit_softcapping(config.final_softcap)
    if kind == "gemma3":
        writer.add_rope_freq_base(config.rope_base_global)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    for full, tensor in twin.model.state_dict().items():
        name, array = full.removesuffix(".weight"), tensor.numpy()
        if name.endswith("norm"):
            array = array + 1
        if name == "embed_tokens":
            name = "token_embd"
        elif name == "norm":
            name = "output_norm"
        else:
            _, layer, part = name.split(".", 2)
            after = "ffn_norm" if kind == "gemma" else "post_attention_norm"
            name = f"blk.{layer}.{(NAMES | {'post_attention_layernorm': after})[part]}"
        fits = array.ndim == 2 and array.shape[1] % 32 == 0  # a block of the quantised types
        storage = stored if fits else TYPES.F32
        data = gguf.quants.quantize(array, storage)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
def test_a_gguf_gives_what_the_checkpoint_gives(kind, tmp_path):
    twin = save_tiny(kind, tmp_path)
    config, _, expected = load_tiny(tmp_path)
    write(tmp_path / "model.gguf", kind, twin, config, TYPES.F32)
    model = GGUFModel(tmp_path / "model.gguf")
    ours = model.config()
    every = {"gemma": 1, "gemma2": 2, "gemma3": 6}[kind]
    assert ours.global_layers == tuple((i + 1) % every == 0 for i in range(config.num_layers))
    same = ("family", "embed_dim", "num_heads", "head_dim", "attention_softcap", "final_softcap")
    same += ("post_norms", "qk_norm", "rope_base_global", "rope_base_local", "rms_eps")
    for name in same:
        assert getattr(ours, name) == pytest.approx(getattr(config, name)), name
    found = dict(model.weights())
    params = nnx.to_pure_dict(expected)
    for name, weight in found.items():
        value = params
        for key in name.split("."):
            value = value[key]
        np.testing.assert_allclose(weight, value, atol=1e-6, err_msg=name)
    count = sum(1 for _ in expected.flat_state())
    assert len(found) == count


@pytest.mark.parametrize(
    ("stored", "tolerance"), [("F16", 1e-3), ("BF16", 5e-3), ("Q8_0", 1e-2), ("Q5_0", 0.08)]
)
def test_storage_types_are_dequantised(stored, tolerance, tmp_path):
    twin = save_tiny("gemma3", tmp_path)
    config, _, expected = load_tiny(tmp_path)
    write(tmp_path / "model.gguf", "gemma3", twin, config, TYPES[stored])
    kernel = nnx.to_pure_dict(expected)["blocks"]["gate"]
    found = dict(GGUFModel(tmp_path / "model.gguf").weights())["blocks.gate"]
    assert 0 < np.abs(found - kernel).max() < tolerance


def test_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="'llama'; supported are gemma, gemma2, gemma3"):
        GGUFModel(tmp_path / "model.gguf")
