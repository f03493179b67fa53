"""GGUF files of every family and storage type, written from tiny checkpoints."""

import math

import gguf
import numpy as np
import pytest
import torch
import transformers
from conftest import CONFIGS, RAMP, Tiny, load_tiny, random_twin, save_tiny
from flax import nnx
from test_huggingface import logits

from jaxmoral.errors import UserError
from jaxmoral.models import hf_config
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.gguf_file import GGUFModel
from jaxmoral.models.load import assemble

TOKENS = list(range(3, 23))

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


def write(path, kind, twin, config, stored, *, given=None, tensors=None):
    """Writes a torch model as converters do: 1 added to the norms' scales of Gemma, and of Llama
    the two numbers of a head that are rotated together side by side.

    `given` is further metadata, `tensors` are further tensors.
    """
    is_gemma = kind.startswith("gemma")
    writer = gguf.GGUFWriter(path, config.family)
    writer.add_context_length(64)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    if kind in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attention_softcap)
        writer.add_final_logit_softcapping(config.final_softcap)
    if kind == "gemma3":
        writer.add_rope_freq_base(config.rope_base_global)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    for key, value in (given or {}).items():
        add = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
        getattr(writer, f"add_{add[type(value)]}")(key, value)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, np.asarray(array, np.float32))
    stored_tensors = twin.model.state_dict()
    if not config.tied:
        stored_tensors["lm_head.weight"] = twin.lm_head.weight.detach()
    for full, tensor in stored_tensors.items():
        (name, _, part), array = full.rpartition("."), tensor.numpy()
        if name.endswith("norm") and is_gemma:
            array = array + 1
        if config.family == "llama" and name.endswith(("q_proj", "k_proj")):
            heads = config.num_heads if name.endswith("q_proj") else config.num_kv_heads
            halves = array.reshape(heads, 2, config.head_dim // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if name == "embed_tokens":
            name = "token_embd"
        elif name == "norm":
            name = "output_norm"
        elif name == "lm_head":
            name = "output"
        else:
            _, layer, inner = name.split(".", 2)
            after = "post_attention_norm" if config.post_norms else "ffn_norm"
            name = f"blk.{layer}.{(NAMES | {'post_attention_layernorm': after})[inner]}"
        fits = array.ndim == 2 and array.shape[1] % 32 == 0  # a block of the quantised types
        storage = stored if fits else TYPES.F32
        data = gguf.quants.quantize(array, storage)
        writer.add_tensor(f"{name}.{part}", data, raw_dtype=storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
def test_a_gguf_gives_what_the_checkpoint_gives(kind, tmp_path):
    twin = save_tiny(kind, tmp_path)
    config, _, expected, _ = load_tiny(tmp_path)
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
    config, _, expected, _ = load_tiny(tmp_path)
    write(tmp_path / "model.gguf", "gemma3", twin, config, TYPES[stored])
    kernel = nnx.to_pure_dict(expected)["blocks"]["gate"]
    found = dict(GGUFModel(tmp_path / "model.gguf").weights())["blocks.gate"]
    assert 0 < np.abs(found - kernel).max() < tolerance


def test_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen3moe")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="'qwen3moe'; supported are gemma, gemma2, gemma3, lla"):
        GGUFModel(tmp_path / "model.gguf")


SLIDING, FULL = "sliding_attention", "full_attention"


def scaled(factor, base):
    kind = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
    return kind | {"rope_theta": base}


@pytest.mark.parametrize(
    ("kind", "given", "means"),
    [
        ("gemma3", {"attention.sliding_window_pattern": 2}, {"layer_types": [SLIDING, FULL] * 2}),
        (
            "gemma3",
            {"attention.sliding_window_pattern": [False, True, True, False]},
            {"layer_types": [FULL, SLIDING, SLIDING, FULL]},
        ),
        ("gemma2", {"attention.sliding_window_pattern": 1}, {"layer_types": [FULL] * 4}),
        (
            "gemma3",
            {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 300.0},
            {
                "layer_types": [SLIDING, FULL] * 2,
                "rope_parameters": {FULL: scaled(1, 1e6), SLIDING: scaled(1, 300.0)},
            },
        ),
        (
            "gemma3",
            {"attention.sliding_window_pattern": 2, "rope.scaling.factor": 4.0},
            {
                "layer_types": [SLIDING, FULL] * 2,
                "rope_parameters": {FULL: scaled(4, 1e6), SLIDING: scaled(1, 1e4)},
            },
        ),
        (
            "gemma2",  # one rotary embedding for all layers
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"layer_types": [SLIDING, FULL] * 2, "rope_parameters": scaled(4, 1e4)},
        ),
        (
            "gemma",
            {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
            {"rope_parameters": scaled(1, 1e4)},
        ),
        (
            "gemma3",
            {"final_logit_softcapping": 2.0, "attention.sliding_window_pattern": 1},
            {"layer_types": [FULL] * 4, "final_logit_softcapping": 2.0},
        ),
        ("gemma", {"vocab_size": 96, "expert_count": 0, "rope.dimension_count": 8}, {}),
        ("gemma", {"mm.tokens_per_image": 256, "vision.block_count": 27}, {}),
        ("llama", {"rope.freq_base": 50.0}, {"rope_parameters": scaled(1, 50.0)}),
        ("llama", {}, {"rope_parameters": scaled(1, 1e4), "tie_word_embeddings": False}),
        (
            "llama-biased",
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 1e6},
            {},
        ),
        ("qwen2", {}, {"use_sliding_window": False, "layer_types": [FULL] * 4}),
        ("qwen3", {"rope.dimension_count": 32}, {}),
        ("qwen3", {"rope.freq_base": 70.0}, {"rope_parameters": scaled(1, 70.0)}),
    ],
)
def test_metadata_that_changes_the_model_is_read(kind, given, means, tmp_path):
    """Against transformers' model of the configuration that the metadata stands for."""
    described = CONFIGS[kind]().to_dict() | means
    if kind.startswith("gemma"):
        described["query_pre_attn_scalar"] = 8  # the head's size
    config = type(CONFIGS[kind]())(**described, attn_implementation="eager")
    twin = random_twin(config)
    twin.save_pretrained(tmp_path)
    sizes = hf_config.read_config(tmp_path)
    given = {f"{sizes.family}.{key}": value for key, value in given.items()}
    write(tmp_path / "model.gguf", kind, twin, sizes, TYPES.F32, given=given)
    file = GGUFModel(tmp_path / "model.gguf")
    parts = ((name, ..., weight) for name, weight in file.weights())
    model = Tiny(file.config(), *assemble(file.config(), parts, "float32"), None)
    found, _ = logits(model, [TOKENS])
    with torch.no_grad():
        expected = twin(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def llama(folder, **changes):
    """A tiny torch model and its sizes."""
    config = transformers.LlamaConfig(**CONFIGS["llama"]().to_dict() | changes)
    twin = random_twin(config)
    twin.save_pretrained(folder)
    return twin, hf_config.read_config(folder)


def test_rotary_divisors_are_llama_3s(tmp_path):
    """As converters compute them; the model is the one with these settings in transformers."""
    rope = RAMP | {"factor": 32.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5}
    twin, sizes = llama(tmp_path, rope_parameters=rope)
    divisors = []
    for index in range(8):
        length = 2 * math.pi * 5e5 ** (index / 8)
        share = (8192 / length - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - share) / 32.0 + share)
        divisors.append(1.0 if length < 8192 / 4 else 32.0 if length > 8192 else between)
    assert len({*divisors}) > 2
    path = tmp_path / "model.gguf"
    given = {"llama.rope.freq_base": 5e5}
    tensors = {"rope_freqs.weight": divisors}
    write(path, "llama", twin, sizes, TYPES.F32, given=given, tensors=tensors)
    found = GGUFModel(path).config()
    assert (found.rope_scale, found.rope_ramp) == (32.0, sizes.rope_ramp)
    assert dict(GGUFModel(path).weights())
    tensors["rope_freqs.weight"][-3] *= 1.1
    write(path, "llama", twin, sizes, TYPES.F32, given=given, tensors=tensors)
    with pytest.raises(UserError, match=r"rope_freqs.weight is not supported, only Llama 3's"):
        GGUFModel(path).config()


def read_all(path):
    return GGUFModel(path).config(), GGUFModel(path).vocabulary()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn' is not supported"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count 8 is not supported, only 16"),
        ({"llama.attention.sliding_window": 4}, "attention.sliding_window = 4 is not supported"),
        ({"llama.expert_count": 8}, "llama.expert_count 8 is not supported, only 0"),
        ({"llama.logit_scale": 2.0}, "llama.logit_scale = 2.0 is not supported"),
        ({"tokenizer.ggml.model": "llama"}, r"only gpt2 \(byte-level BPE\)"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix = True is not supported"),
        ({"tokenizer.ggml.pre": "gpt-4o"}, "pre 'gpt-4o' is not supported, only llama-bpe, qwen2,"),
        ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token True is not supported, only"),
    ],
)
def test_other_metadata_of_llamas_is_refused_by_name(given, message, tmp_path):
    twin, sizes = llama(tmp_path, rope_parameters=scaled(1, 1e4))
    usual = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    usual |= {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.token_type": [1] * 96}
    usual["tokenizer.ggml.merges"] = ["a b"]
    path = tmp_path / "model.gguf"
    write(path, "llama", twin, sizes, TYPES.F32, given=usual | given)
    with pytest.raises(UserError, match=message):
        read_all(path)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    """A tiny torch model and its sizes."""
    folder = tmp_path_factory.mktemp("gemma3")
    twin = save_tiny("gemma3", folder)
    return twin, hf_config.read_config(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gemma3.rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn' is not supported"),
        ({"gemma3.logit_scale": 2.0}, "gemma3.logit_scale = 2.0 is not supported"),
        ({"gemma3.attention.value_length": 16}, "value_length 16 is not supported, only 8"),
        ({"gemma3.attention.causal": False}, "causal False is not supported"),
        ({"gemma3.attention.sliding_window_pattern": [True, False]}, "or a list of 4"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix = True is not supported"),
        ({"tokenizer.ggml.merges": ["a b"]}, "tokenizer.ggml.merges = .* is not supported"),
        ({"split.count": 3, "split.no": 0}, "is one of 3 parts of a model; join them first"),
        ({"general.type": "adapter"}, "general.type 'adapter' is not supported"),
        ({"a.key.of.tomorrow": "yes"}, "a.key.of.tomorrow = 'yes' is not supported"),
    ],
)
def test_other_metadata_is_refused_by_name(gemma3, given, message, tmp_path):
    twin, sizes = gemma3
    write(tmp_path / "model.gguf", "gemma3", twin, sizes, TYPES.F32, given=given)
    with pytest.raises(UserError, match=message):
        GGUFModel(tmp_path / "model.gguf").config()


def test_tensors_that_nobody_asks_for_are_refused(gemma3, tmp_path):
    twin, sizes = gemma3
    embedding = twin.model.embed_tokens.weight.detach().numpy()
    write(
        tmp_path / "same.gguf",
        "gemma3",
        twin,
        sizes,
        TYPES.F32,
        tensors={"output.weight": embedding, "v.blk.0.attn_q.weight": np.ones((2, 2))},
    )
    assert dict(GGUFModel(tmp_path / "same.gguf").weights())
    for name, array, message in (
        ("output.weight", 2 * embedding, "output.weight is not token_embd.weight again"),
        ("blk.0.attn_q.bias", np.ones(32), "unexpected tensor blk.0.attn_q.bias"),
        ("blk.0.ffn_gate.scale", [3.0], "unexpected tensor blk.0.ffn_gate.scale"),
        ("rope_freqs.weight", np.ones(4), "unexpected tensor rope_freqs.weight"),
    ):
        path = tmp_path / f"{name}.gguf"
        write(path, "gemma3", twin, sizes, TYPES.F32, tensors={name: array})
        with pytest.raises(UserError, match=message):
            dict(GGUFModel(path).weights())


def test_the_chat_template_and_the_ends_of_a_turn_come_along(gemma3, tmp_path):
    twin, sizes = gemma3
    ids = {"bos": 2, "eos": 1, "unknown": 3, "padding": 0, "eot": 7}
    given = {f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items()}
    given |= {"tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.model": "llama"}
    given |= {"tokenizer.ggml.scores": [0.0] * 96, "tokenizer.ggml.token_type": [1] * 96}
    write(tmp_path / "model.gguf", "gemma3", twin, sizes, TYPES.F32, given=given)
    vocabulary = GGUFModel(tmp_path / "model.gguf").vocabulary()
    assert vocabulary.generation["eos_token_id"] == [1, 7]
    assert tokenizers.build(vocabulary).chat_template == "{{ messages }}"
