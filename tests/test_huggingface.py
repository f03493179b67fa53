"""Hugging Face checkpoints of every family: parity with torch, and what damaged ones get."""

import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import CONFIGS, load_tiny, save_tiny
from flax import nnx

from jaxmoral.errors import UserError
from jaxmoral.language.prompt_tree import pack, pad, sight
from jaxmoral.models import hf_config
from jaxmoral.models import load as gemma_load
from jaxmoral.models.lora import NO_LORA, prepare
from jaxmoral.models.sizes import num_parameters

SEQUENCES = [list(range(3, 23)), [3, 4, 5, 6, 40, 41, 42, 43, 44, 45, 46], [3, 4, 5, 60]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folder and torch model of each family."""
    made = {}
    for kind in CONFIGS:
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = folder, save_tiny(kind, folder)
    return made


def ancestors(tree, node):
    """The nodes from the root to this one."""
    return np.flatnonzero(node < tree.subtree_end[: node + 1])


def logits(model, sequences):
    """Logits at every node of the packed tree, and each sequence's nodes."""
    return reader(model, sequences)(sequences)


def reader(model, largest):
    """`logits` of some sequences, compiled once for trees as large as that of the largest."""
    config, definition, weights, _ = model
    adapter = prepare({}, config, NO_LORA, None)
    size = len(pack(largest)[0].tokens)

    @jax.jit
    def compute(weights, tree, rows):
        module, seen = nnx.merge(definition, weights), sight(tree, config.sliding_window)
        return module.logits(
            module.hidden(tree.tokens, tree.positions, seen, adapter, "elementwise", rows)
        )

    def read(sequences):
        tree, last = pack(sequences)
        padded = pad(tree, size, max(map(len, largest)))
        found = compute(weights, jax.tree.map(jnp.asarray, padded), model.rows(padded.tokens))
        return np.asarray(found), [ancestors(tree, node) for node in last]

    return read


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_equal_torch_flat_and_in_the_tree(checkpoints, kind):
    """Longer than the window; soft caps, post-norms, rope scaling and query scaling all matter."""
    folder, twin = checkpoints[kind]
    read = reader(load_tiny(folder), SEQUENCES)
    packed, nodes = read(SEQUENCES)
    for sequence, path in zip(SEQUENCES, nodes, strict=True):
        with torch.no_grad():
            expected = twin(input_ids=torch.tensor([sequence])).logits[0].numpy()
        np.testing.assert_allclose(packed[path], expected, atol=1e-4)
        flat, _ = read([sequence])
        np.testing.assert_allclose(flat[: len(sequence)], expected, atol=1e-4)


def test_families_differ_where_they_should(checkpoints):
    configs = {kind: hf_config.read_config(folder) for kind, (folder, _) in checkpoints.items()}
    families = ["gemma", "gemma2", "gemma3", "gemma3", "llama", "llama", "mistral"]
    families += ["qwen2", "qwen3", *["gemma4"] * 5]
    assert [config.family for config in configs.values()] == families
    assert configs["gemma"].global_layers == (True,) * 4
    assert configs["gemma2"].attention_softcap == 3.0
    assert configs["gemma2"].final_softcap == 2.0
    assert configs["gemma3-vision"].rope_scale == 8.0
    assert not configs["gemma"].post_norms
    assert {kind for kind in CONFIGS if configs[kind].qk_norm} == {
        *("gemma3", "gemma3-vision", "qwen3"),
        *(kind for kind in CONFIGS if kind.startswith("gemma4")),
    }
    assert configs["llama"].rope_ramp == (1.0, 4.0, 8.0)
    assert configs["llama-biased"].biases == ("q", "k", "v", "o", "gate", "up", "down")
    assert configs["qwen2"].biases == ("q", "k", "v")
    assert configs["qwen2"].global_layers == (True, False, False, False)
    assert configs["mistral"].global_layers == (False,) * 4
    assert not any(configs[kind].tied for kind in ("llama-biased", "mistral", "qwen2"))
    assert all(configs[kind].tied for kind in ("gemma3", "llama", "qwen3"))


LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
USUAL = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02}
USUAL |= {"torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": True}
QWEN = {
    "attention_dropout": 0.0,
    "rope_theta": 1e6,
    "use_sliding_window": False,
    "use_mrope": False,
}


def sizes(width, mlp, layers, heads, kv_heads, vocabulary):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(
        zip(
            (*names, "num_key_value_heads", "vocab_size"),
            (width, mlp, layers, heads, kv_heads, vocabulary),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("kind", "shape", "more", "count"),
    [
        (  # Llama 3.2 1B
            "llama",
            sizes(2048, 8192, 16, 32, 8, 128256),
            {
                "attention_bias": False,
                "mlp_bias": False,
                "head_dim": 64,
                "eos_token_id": [128001, 128008, 128009],
                "max_position_embeddings": 131072,
                "pretraining_tp": 1,
                "rope_scaling": LLAMA3,
                "rope_theta": 5e5,
                "tie_word_embeddings": True,
            },
            1_235_814_400,
        ),
        (  # Llama 3.1 8B
            "llama",
            sizes(4096, 14336, 32, 32, 8, 128256),
            {"rope_scaling": LLAMA3 | {"factor": 8.0}, "rope_theta": 5e5, "pretraining_tp": 1},
            8_030_261_248,
        ),
        (  # SmolLM2 135M
            "llama",
            sizes(576, 1536, 30, 9, 3, 49152),
            {
                "is_llama_config": True,
                "rope_interleaved": False,
                "rope_scaling": None,
                "rope_theta": 100000,
                "tie_word_embeddings": True,
                "pad_token_id": 2,
                "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            },
            134_515_008,
        ),
        (  # Mistral 7B v0.3
            "mistral",
            sizes(4096, 14336, 32, 32, 8, 32768),
            {"sliding_window": None, "rope_theta": 1e6, "tie_word_embeddings": False},
            7_248_023_552,
        ),
        (  # Qwen2.5 0.5B
            "qwen2",
            sizes(896, 4864, 24, 14, 2, 151936),
            QWEN | {"sliding_window": 32768, "max_window_layers": 24, "tie_word_embeddings": True},
            494_032_768,
        ),
        (  # Qwen3 0.6B
            "qwen3",
            sizes(1024, 3072, 28, 16, 8, 151936),
            QWEN | {"head_dim": 128, "sliding_window": None, "tie_word_embeddings": True},
            596_049_920,
        ),
    ],
)
def test_published_configurations_have_the_published_parameters(kind, shape, more, count, tmp_path):
    settings = {"model_type": kind, "architectures": ["X"], "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(settings | USUAL | shape | more))
    assert num_parameters(hf_config.read_config(tmp_path)) == count


def test_bfloat16_keeps_norms_in_float32(checkpoints):
    _, _, weights, _ = load_tiny(checkpoints["gemma2"][0], "bfloat16")
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(weights)}
    assert kinds == {"bfloat16", "float32"}


@pytest.fixture
def broken(checkpoints, tmp_path):
    """A copy of the Gemma 2 checkpoint to spoil."""
    return shutil.copytree(checkpoints["gemma2"][0], tmp_path / "model")


def rewrite(folder, change):
    """Applies `change` to the tensors of the file that holds the last layer's q projection."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = "model.layers.3.self_attn.q_proj.weight"
    path = folder / index["weight_map"][name]
    tensors = safetensors.numpy.load_file(path)
    change(tensors, name)
    safetensors.numpy.save_file(tensors, path)


def test_a_truncated_shard(broken):
    path = sorted(broken.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model-00001-of-.*not a complete safetensors file"):
        load_tiny(broken)


def test_a_missing_shard(broken):
    sorted(broken.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"model-00002-of-\d+.safetensors is missing"):
        load_tiny(broken)


def test_a_missing_tensor(broken):
    rewrite(broken, lambda tensors, name: tensors.pop(name))
    with pytest.raises(UserError, match=r"no tensor model\.layers\.3\.self_attn\.q_proj\.weight"):
        load_tiny(broken)


def test_a_misshapen_tensor(broken):
    def halve(tensors, name):
        tensors[name] = tensors[name][:16].copy()

    rewrite(broken, halve)
    with pytest.raises(UserError, match=r"q_proj.weight has shape \(16, 32\), expected \(32, 32\)"):
        load_tiny(broken)


def test_an_unexpected_tensor(broken):
    def add(tensors, name):
        tensors["model.layers.3.self_attn.q_proj.bias"] = np.zeros(32, np.float32)

    rewrite(broken, add)
    with pytest.raises(
        UserError, match=r"unexpected tensor model\.layers\.3\.self_attn\.q_proj\.b"
    ):
        load_tiny(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_moe"}, "'qwen3_moe' model; supported are gemma, gemma2, gemma3_"),
        ({"model_type": "nonsense"}, "damaged or of an unknown kind"),
        (
            {"hidden_activation": "relu"},
            "hidden_activation 'relu' is not supported, only gelu_pytorch_tanh",
        ),
        ({"is_causal": False}, "is_causal False is not supported, only true"),
        ({"is_causal": None}, "is_causal None is not supported, only true"),
    ],
)
def test_a_config_of_another_family(broken, change, message):
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        hf_config.read_config(broken)


def test_a_config_that_is_not_json(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        hf_config.read_config(broken)


def test_a_folder_without_a_tokenizer(broken):
    with pytest.raises(UserError, match="holds no tokenizer"):
        gemma_load.load(str(broken))


def test_a_tokenizer_of_another_model(broken, real):
    real.tokenizer.save_pretrained(broken)
    with pytest.raises(UserError, match="has 262144 tokens, the embedding only 96"):
        gemma_load.load(str(broken))


def test_pickles_are_not_opened(broken):
    for path in broken.glob("*.safetensors*"):
        path.unlink()
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_tiny(broken)


def test_no_network_says_what_to_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"there is no folder google/none, and it cannot be had .*that folder"
    ):
        gemma_load.load("google/none")


def test_the_hubs_cache_serves_offline_and_names_the_commit(tmp_path, checkpoints, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--owner--tiny"
    shutil.copytree(checkpoints["gemma2"][0], home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "v1").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source, folder = gemma_load._from_hub("owner/tiny@v1")
    assert source == f"owner/tiny@{commit}"
    assert hf_config.read_config(folder).family == "gemma2"
    with pytest.raises(
        UserError, match="owner/tiny@v2, and it cannot be had from the Hugging Face"
    ):
        gemma_load._from_hub("owner/tiny@v2")


def test_a_text_model_that_is_tied_by_the_whole_alone_is_refused(tmp_path):
    save_tiny("gemma3-vision", tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["tie_word_embeddings"]
    assert hf_config.describe(tmp_path).config.tied
    stored["text_config"]["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"text_config\.tie_word_embeddings False"):
        hf_config.describe(tmp_path)
