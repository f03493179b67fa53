"""Folders as other people's tools leave them: the numbers of transformers, or a refusal by name."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from conftest import load_tiny, save_tiny
from test_huggingface import logits

from jaxmoral.errors import UserError
from jaxmoral.models import hf_config
from jaxmoral.models import load as gemma_load

TOKENS = list(range(3, 23))


@pytest.fixture
def make(tmp_path):
    """Saves a tiny model of a family in one file, with keys of its config.json changed."""

    def save(kind, drop=(), **changes):
        save_tiny(kind, tmp_path, max_shard_size="1GB")
        path = tmp_path / "config.json"
        settings = json.loads(path.read_text())
        kept = {key: value for key, value in settings.items() if key not in drop}
        path.write_text(json.dumps(kept | changes))
        return tmp_path

    return save


def theirs(folder):
    """transformers' log-probabilities after each token."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    vision = transformers.AutoModelForImageTextToText
    auto = vision if kind == "gemma3" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([TOKENS])).logits[0]
    return torch.log_softmax(found, -1).numpy()


def ours(folder):
    found, _ = logits(load_tiny(folder), [TOKENS])
    return torch.log_softmax(torch.tensor(found), -1).numpy()


def rewrite(folder, change, name="model.safetensors"):
    tensors = safetensors.torch.load_file(folder / name)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / name, {"format": "pt"})


# Heads and other tensors


def add_head(tensors, noise):
    embedding = next(v for k, v in tensors.items() if k.endswith("embed_tokens.weight"))
    torch.manual_seed(1)
    tensors["lm_head.weight"] = embedding + noise * torch.randn_like(embedding)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "gemma3-vision", "llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_the_embedding_or_said_to_be_another(make, kind, tied):
    folder = make(kind, tie_word_embeddings=tied)
    rewrite(folder, lambda tensors: add_head(tensors, 0.0))
    equal = ours(folder)
    np.testing.assert_allclose(equal, theirs(folder), atol=1e-3)
    rewrite(folder, lambda tensors: add_head(tensors, 0.2))
    if tied:  # versions of transformers differ in what they make of it
        with pytest.raises(UserError, match=r"lm_head\.weight differs from the embedding"):
            load_tiny(folder)
    else:
        np.testing.assert_allclose(ours(folder), theirs(folder), atol=1e-3)
        assert np.abs(ours(folder) - equal).max() > 0.01


@pytest.mark.parametrize("kind", ["gemma", "gemma3-vision", "qwen3"])
def test_an_untied_model_without_a_head_is_refused(make, kind):
    folder = make(kind, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"tie_word_embeddings false, but there is no lm_head"):
        load_tiny(folder)


def test_keys_and_values_that_a_layer_takes_from_another_are_passed_over(make):
    """Published checkpoints have them in layers that share; in others they are unexpected."""
    folder = make("gemma4-sharing")
    expected = theirs(folder)
    parts = ("k_proj", "v_proj", "k_norm")
    names = [f"model.layers.9.self_attn.{part}.weight" for part in parts]
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(3) for name in names}))
    np.testing.assert_allclose(ours(folder), expected, atol=1e-4)
    wrong = "model.layers.9.self_attn.o_bias.weight"
    rewrite(folder, lambda tensors: tensors.update({wrong: torch.ones(3)}))
    with pytest.raises(UserError, match=f"unexpected tensor {wrong}"):
        load_tiny(folder)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "model.audio_tower.norm.weight"])
def test_a_tensor_outside_the_text_model_is_refused_by_name(make, name):
    folder = make("gemma3-vision")
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(3)}))
    with pytest.raises(UserError, match=f"unexpected tensor {name}"):
        load_tiny(folder)


# Rotary embeddings

NEAR = {"rope_type": "default", "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "factor": 4.0}
HALF = {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 50.0}
STRETCHED = HALF | {"factor": 4.0}
RAMP = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0}
RAMP |= {"original_max_position_embeddings": 12}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"rope_parameters": LINEAR | {"rope_theta": 1e4}}),
        ("gemma", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": NEAR | {"factor": 8.0},  # not a factor of this type
                    "sliding_attention": LINEAR | {"rope_theta": 500.0},
                }
            },
        ),
        (
            "gemma3",
            {
                "rope_parameters": None,
                "rope_scaling": LINEAR,
                "rope_theta": 5e3,
                "rope_local_base_freq": 700.0,
            },
        ),
        ("qwen3", {"rope_parameters": LINEAR | {"rope_theta": 1e4}}),
        (
            "mistral",
            {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": RAMP},
        ),
        ("qwen2", {"rope_parameters": RAMP | {"rope_theta": 100.0}}),
    ],
)
def test_rotary_settings_of_each_kind_of_layer_in_both_spellings(make, kind, changes):
    dropped = [key for key, value in changes.items() if value is None]
    given = {key: value for key, value in changes.items() if value is not None}
    plain = ours(make(kind))
    folder = make(kind, dropped, **given)
    found = ours(folder)
    assert np.abs(found - plain).max() > 0.01
    np.testing.assert_allclose(found, theirs(folder), atol=1e-3)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, "rope_type 'yarn' is not supp"),
        (NEAR | {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        (NEAR | {"type": "linear", "factor": 8.0}, "type 'linear' is not supported, only the same"),
        (
            RAMP | {"rope_theta": 1e4},
            "rope_type 'llama3' is not supported, only default and linear",
        ),
    ],
)
def test_rotary_settings_that_are_not_implemented_are_refused(make, rope, message):
    folder = make("gemma2", rope_parameters=rope)
    with pytest.raises(UserError, match=message):
        hf_config.read_config(folder)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            {"rope_type": "yarn", "factor": 4.0},
            "rope_type 'yarn' .* only default, linear and llama",
        ),
        ({"rope_type": "dynamic", "factor": 4.0}, "rope_type 'dynamic' is not supported"),
        (RAMP | {"low_freq_factor": 3.0}, r"is damaged \(rope_ramp cannot be"),
        (RAMP | {"beta_fast": 32}, "beta_fast = 32 is not supported"),
    ],
)
def test_rotary_settings_of_llamas_that_are_not_implemented(make, rope, message):
    folder = make("llama", rope_parameters=rope | {"rope_theta": 1e4})
    with pytest.raises(UserError, match=message):
        hf_config.read_config(folder)


# Keys of config.json


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma3", {"attn_logit_softcapping": 5.0}),
        ("gemma", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
        ("gemma", {"query_pre_attn_scalar": 32}),
        ("gemma", {"sliding_window": 4, "layer_types": ["sliding_attention"] * 4}),
        ("gemma", {"hidden_act": "gelu"}),  # its first releases said this and meant tanh
        ("gemma3", {"final_logit_softcapping": 3.0}),
        ("gemma3", {"unsloth_fixed": True, "num_experts": None, "attention_bias": False}),
        ("gemma3", {"model_name": "owner/name", "temperature": 1.0, "diversity_penalty": 0.0}),
        ("llama", {"sliding_window": 4, "layer_types": ["sliding_attention"] * 4}),
        ("llama", {"pretraining_tp": 2, "is_llama_config": True, "rope_interleaved": False}),
        ("llama", {"query_pre_attn_scalar": 2, "use_sliding_window": True}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"attention_bias": True, "max_window_layers": 2}),
        ("qwen2", {"use_sliding_window": False, "layer_types": None}),
        ("qwen2", {"max_window_layers": 3, "layer_types": None}),
        ("qwen2", {"attention_bias": False, "use_mrope": False}),
        ("qwen3", {"rope_parameters": None, "rope_theta": 50.0, "rope_scaling": None}),
        ("gemma4", {"use_bidirectional_attention": "vision", "num_experts": 8}),
        ("gemma4", {"final_logit_softcapping": None, "query_pre_attn_scalar": 9}),
        ("gemma4", {"rope_parameters": {"full_attention": HALF, "sliding_attention": NEAR}}),
        ("gemma4-sharing", {"use_double_wide_mlp": True, "attention_k_eq_v": False}),
    ],
)
def test_keys_mean_what_they_mean_in_transformers(make, kind, changes):
    folder = make(kind, **changes)
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=1e-3)


def test_a_vision_model_has_no_cap_on_its_logits(make):
    folder = make("gemma3-vision")
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["final_logit_softcapping"] = 3.0
    (folder / "config.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported"),
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported"),
        ("gemma2", {"attention_bias": True}, "attention_bias = True is not supported"),
        ("gemma2", {"quantization_config": {"bits": 4}}, "quantization_config = .* is not supp"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("gemma3", {"sliding_window": None}, "sliding_window None is not supported"),
        ("gemma3", {"sliding_window": 0}, "sliding_window cannot be 0"),
        ("gemma3-vision", {"logit_scale": 2.0}, "logit_scale = 2.0 is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only silu"),
        ("llama", {"num_local_experts": 8}, "num_local_experts = 8 is not supported"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "layer_types .* a Mistral without"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True is not supported"),
        ("qwen2", {"use_sliding_window": False}, "sliding_window None is not supported"),
        ("qwen3", {"head_dim": 31}, "is damaged"),
        ("qwen3", {"num_experts": 8}, "num_experts = 8 is not supported"),
        ("gemma3", {"enable_moe_block": True}, "enable_moe_block = True is not supported"),
        ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all'"),
        ("gemma4", {"per_layer_config": {"2": {"head_dim": 32}}}, "per_layer_config .* one shape"),
        (
            "gemma4",
            {"per_layer_config": {"0": {"intermediate_size": 8}}},
            "per_layer_config: 0: intermediate_size = 8 is not supported",
        ),
        ("gemma4", {"query_scale": 0.5}, "query_scale = 0.5 is not supported"),
        (
            "gemma4-sharing",
            {"vocab_size_per_layer_input": 128},
            "vocab_size_per_layer_input 128 is not supported, only the same as vocab_size",
        ),
        (
            "gemma4",
            {"rope_parameters": {"full_attention": STRETCHED, "sliding_attention": NEAR}},
            "factor = 4.0 is not supported",
        ),
        ("gemma4-sharing", {"num_kv_shared_layers": 9}, "damaged"),
        ("gemma4-experts", {"top_k_experts": 9}, "experts_per_token cannot be 9"),
    ],
)
def test_other_keys_are_refused_by_name(make, kind, changes, message):
    with pytest.raises(UserError, match=message):
        hf_config.read_config(make(kind, **changes))


# Which file is the model


def test_one_whole_file_goes_before_an_index(make):
    folder = make("gemma3")
    save_tiny("gemma3", folder)  # shards and their index, beside the whole file
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].add_(1.0))
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=1e-3)
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()  # an index without its shards
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=1e-3)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    save_tiny("gemma3", tmp_path)
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(safetensors.torch.load_file(first).items()))
    rewrite(tmp_path, lambda tensors: tensors.update({name: tensor}), second.name)
    with pytest.raises(UserError, match=rf"{name} stands in .*00001.* and in .*00002"):
        load_tiny(tmp_path)


def test_a_folder_with_an_adapter_is_no_model(make):
    folder = make("gemma3")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a PEFT adapter; give its base as model.source"):
        gemma_load.load(str(folder))


def test_a_hub_id_is_the_commit_that_its_name_stood_for():
    commit = "0123456789abcdef0123456789abcdef01234567"
    read = f"owner/name@{commit}"
    for asked in ("owner/name", "owner/name@v1", read):
        assert gemma_load.same_base(asked, read)
    for asked in ("owner/other", f"owner/name@{commit[::-1]}", "gemma3-270m"):
        assert not gemma_load.same_base(asked, read)


@pytest.mark.parametrize("source", ["./nowhere", "../models/mine", "some/where/else", "a.gguf"])
def test_a_missing_folder_is_called_that(source):
    with pytest.raises(UserError, match=f"there is no file or folder {source}"):
        gemma_load.load(source)
