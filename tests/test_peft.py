"""Adapters in PEFT's layout against PEFT itself, on tiny random models of every family."""

import copy
import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_model
import torch
import transformers
from conftest import CONFIGS, VISION_KINDS, load_tiny, save_tiny
from flax import nnx
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from jaxmoral.errors import UserError
from jaxmoral.language.prompt_tree import pack, sight
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.load import LoadedModel
from jaxmoral.models.lora import Lora, by_stack, init_adapter, prepare
from jaxmoral.models.merged import save_merged
from jaxmoral.models.peft import at_revision, base_of, load_peft, save_peft
from jaxmoral.models.tensor_names import LINEAR_NAMES

TOKENS = [3, 4, 5, 6, 40, 41, 42, 43, 44, 45, 46]
KINDS = tuple(kind for kind in CONFIGS if kind not in VISION_KINDS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind in CONFIGS:
        folder = tmp_path_factory.mktemp(kind)
        twin = save_tiny(kind, folder)
        made[kind] = load_tiny(folder), twin
    return made


def random_adapter(config, lora):
    adapter = init_adapter(jax.random.key(0), config, lora)
    noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)
    return jax.tree.map(noise, adapter)


def logits(model, adapter, lora):
    config, definition, weights, _ = model
    tree, _ = pack([TOKENS])
    seen = sight(tree, config.sliding_window)
    module = nnx.merge(definition, weights)
    layers = prepare(adapter, config, lora, None)
    tokens, positions = jnp.asarray(tree.tokens), jnp.asarray(tree.positions)
    rows = model.rows(tree.tokens)
    hidden = module.hidden(tokens, positions, seen, layers, "elementwise", rows)
    return module.logits(hidden)


def torch_logits(twin):
    return twin(input_ids=torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize(
    ("kind", "stabilised"), [(kind, at % 2 == 1) for at, kind in enumerate(KINDS)]
)
def test_an_exported_adapter_gives_our_logits_in_peft(models, kind, stabilised, tmp_path):
    model, twin = models[kind]
    lora = Lora(3, 5.0, 0.1, model[0].linear_names, stabilised)
    adapter = random_adapter(model[0], lora)
    save_peft(tmp_path, model[0], adapter, lora, "tiny")
    adapted = PeftModel.from_pretrained(copy.deepcopy(twin), tmp_path).eval()
    with torch.no_grad():
        single = torch_logits(adapted).numpy()
        adapted.base_model.model.set_experts_implementation("eager")  # others know no float64
        expected = torch_logits(adapted.double()).numpy()
    ours = logits(model, adapter, lora)
    # Random layers blow rounding up, in torch as well.
    rounding = np.abs(single - expected).max()
    assert rounding < 5e-4
    np.testing.assert_allclose(ours, expected, atol=max(1e-4, 4 * rounding))
    assert np.abs(ours - logits(model, {}, lora)).max() > 0.01
    back, settings = load_peft(tmp_path, model[0], 0.1)
    assert settings == lora
    chex.assert_trees_all_equal(adapter, back)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merged_export_is_the_adapted_model(models, kind, tmp_path):
    """In transformers, and read back; of a vision-language model it is the text model."""
    model, _ = models[kind]
    config = model[0]
    lora = Lora(3, 5.0, 0.0, config.linear_names)
    adapter = random_adapter(config, lora)
    tokenizer = tokenizers.build(tiny_model.vocabulary())
    generation = {"eos_token_id": [1, 7]}
    loaded = LoadedModel(
        "tiny", "", *model[:3], tokenizer, generation=generation, beside=model.beside
    )
    save_merged(tmp_path, loaded, adapter, lora)
    expected = logits(model, adapter, lora)
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        np.testing.assert_allclose(torch_logits(twin).numpy(), expected, atol=1e-4)
    again = load_tiny(tmp_path)
    assert again[0] == dataclasses.replace(config, rms_eps=again[0].rms_eps)
    np.testing.assert_allclose(logits(again, {}, lora), expected, atol=1e-4)

    # Versions of transformers before 5 do not know this key, which stands for others.
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    if config.family != "gemma4":
        assert load_tiny(tmp_path)[0] == again[0]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_pefts(models, kind, tmp_path):
    model, twin = models[kind]
    lora = Lora(2, 4.0, 0.0, tuple({*model[0].linear_names} - {"k", "up"}))
    adapter = random_adapter(model[0], lora)
    save_peft(tmp_path, model[0], adapter, lora, "tiny")
    adapted = PeftModel.from_pretrained(copy.deepcopy(twin), tmp_path, is_trainable=True).eval()
    goal = np.random.default_rng(0).normal(size=(len(TOKENS), model[0].vocab_size))
    goal = goal.astype(np.float32)
    loss = (torch_logits(adapted).log_softmax(-1) * torch.tensor(goal)).sum()
    loss.backward()
    expected = {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in adapted.named_parameters()
        if parameter.grad is not None
    }

    @jax.jit
    @jax.grad
    def ours(adapter):
        return jnp.sum(jax.nn.log_softmax(logits(model, adapter, lora)) * goal)

    gradient = ours(adapter)
    compared = 0
    for at, pairs in by_stack(gradient, model[0]).items():
        for target, pair in pairs.items():
            for layer, a, b in zip(model[0].stacks[at].layers, pair["a"], pair["b"], strict=True):
                stem = f"base_model.model.model.layers.{layer}.{LINEAR_NAMES[target]}.lora_"
                for side, got in (("A", a), ("B", b.T)):
                    reference = expected[f"{stem}{side}.weight"]
                    error = np.linalg.norm(got - reference) / np.linalg.norm(reference)
                    assert error < 1e-3, (target, layer, side, error)
                    compared += 1
    assert compared == len(expected)


def equals_peft(model, twin, settings, folder):
    """Asserts that a random adapter, made and saved by PEFT, gives PEFT's logits when read."""
    torch.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(twin), settings).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected = torch_logits(adapted).numpy()
    adapted.save_pretrained(folder)
    adapter, lora = load_peft(folder, model[0], 0.0)
    np.testing.assert_allclose(logits(model, adapter, lora), expected, atol=1e-4)


# Every pair of a kind, targets and a scale.
MADE = [
    (kind, targets, (at + few) % 2 == 1)
    for at, kind in enumerate(CONFIGS)
    for few, targets in enumerate(["all-linear", ["q_proj", "v_proj"]])
]


@pytest.mark.parametrize(("kind", "targets", "stabilised"), MADE)
def test_adapters_made_by_peft_load(models, kind, targets, stabilised, tmp_path):
    model, twin = models[kind]
    if kind in VISION_KINDS:
        targets = r".*language_model.*\.(q_proj|down_proj)"
    elif kind == "gemma4-sharing" and targets == "all-linear":
        targets = r".*layers.*\.(\w+_proj|per_layer_input_gate|per_layer_projection)"
    settings = LoraConfig(
        r=4, lora_alpha=7, target_modules=targets, use_rslora=stabilised, task_type="CAUSAL_LM"
    )
    equals_peft(model, twin, settings, tmp_path)


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def saved(models, tmp_path, kind="gemma3"):
    model, _ = models[kind]
    lora = Lora(2, 4.0, 0.0, ("q", "down"))
    save_peft(tmp_path, model[0], random_adapter(model[0], lora), lora, "tiny")
    return model[0]


def test_prefixes_that_trl_leaves(models, tmp_path):
    config = saved(models, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    expected, _ = load_peft(tmp_path, config, 0.0)
    tensors = safetensors.numpy.load_file(path)
    renamed = {
        name.replace("base_model.model.", "pretrained_model.base_model.model.").replace(
            ".weight", ".default.weight"
        ): tensor
        for name, tensor in tensors.items()
    }
    safetensors.numpy.save_file(renamed, path)
    found, _ = load_peft(tmp_path, config, 0.0)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern = .* is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = .* is not supported"),
        ({"r": 3}, r"made for another model: .*has shape \(2, 32\), expected \(3, 32\)"),
        ({"r": "many"}, "is damaged"),
    ],
)
def test_other_adapters_are_refused_by_name(models, tmp_path, change, message):
    config = saved(models, tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(UserError, match=message):
        load_peft(tmp_path, config, 0.0)


def test_an_adapter_of_a_deeper_model(models, tmp_path):
    config = saved(models, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    extra = {name.replace("layers.3.", "layers.9."): tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors | extra, path)
    with pytest.raises(UserError, match="made for another model: it has layers up to 9"):
        load_peft(tmp_path, config, 0.0)


def test_damaged_and_missing_files(models, tmp_path):
    config = saved(models, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot read .*adapter_model"):
        load_peft(tmp_path, config, 0.0)
    with pytest.raises(UserError, match="there is no folder .*none"):
        load_peft(tmp_path / "none", config, 0.0)


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "something-new"]
)
def test_adapters_on_a_changed_base_are_refused(models, tmp_path, init):
    config = saved(models, tmp_path)
    edit(tmp_path, init_lora_weights=init)
    with pytest.raises(UserError, match=f"init_lora_weights = '{init}' changes the base too"):
        load_peft(tmp_path, config, 0.0)


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
def test_adapters_that_peft_draws_otherwise_load(models, tmp_path, init):
    model, twin = models["gemma3"]
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init)
    equals_peft(model, twin, settings, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alora_invocation_tokens", [4, 5]),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"beta": 1e-4}),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("a_later_versions_option", 0.5),
    ],
)
def test_a_setting_that_nobody_knows_is_refused_unless_it_says_nothing(
    models, tmp_path, key, value
):
    config = saved(models, tmp_path)
    for nothing in (None, False, [], {}):
        edit(tmp_path, **{key: nothing})
        load_peft(tmp_path, config, 0.0)
    edit(tmp_path, **{key: value})
    with pytest.raises(UserError, match=f"{key} = .* is not supported"):
        load_peft(tmp_path, config, 0.0)


def test_everything_that_peft_writes_for_plain_lora_is_known(models, tmp_path):
    """The file of a plain adapter holds a value for every option of this version of PEFT."""
    model, twin = models["gemma3"]
    get_peft_model(copy.deepcopy(twin), LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path
    )
    assert len(json.loads((tmp_path / "adapter_config.json").read_text())) > 30
    load_peft(tmp_path, model[0], 0.0)


def test_an_adapter_of_some_layers_says_so(models, tmp_path):
    model, twin = models["gemma3"]
    settings = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0, 2])
    get_peft_model(copy.deepcopy(twin), settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"leaves out layers.* there is no lora_A of layer 1's"):
        load_peft(tmp_path, model[0], 0.0)
    settings = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0, 1, 2, 3])
    get_peft_model(copy.deepcopy(twin), settings).save_pretrained(tmp_path)
    load_peft(tmp_path, model[0], 0.0)  # these are all


def test_the_vision_towers_part_of_an_adapter_changes_no_text(models, tmp_path):
    """It has layers of the same names; only those of the text model count."""
    model, twin = models["gemma3-vision"]
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    equals_peft(model, twin, settings, tmp_path)
    stored = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert any("vision_tower" in name for name in stored)


def test_an_export_works_on_a_base_with_a_vision_tower(models, tmp_path):
    model, twin = models["gemma3-vision"]
    lora = Lora(2, 4.0, 0.0, ("q", "down"))
    adapter = random_adapter(model[0], lora)
    save_peft(tmp_path, model[0], adapter, lora, "tiny", module="model.language_model.")
    adapted = PeftModel.from_pretrained(copy.deepcopy(twin), tmp_path).eval()
    with torch.no_grad():
        expected, plain = torch_logits(adapted).numpy(), torch_logits(twin).numpy()
    assert np.abs(expected - plain).max() > 0.01
    np.testing.assert_allclose(logits(model, adapter, lora), expected, atol=1e-4)
    wrapped = [name for name, _ in adapted.named_modules() if name.endswith("lora_A.default")]
    assert len(wrapped) == 2 * model[0].num_layers
    assert all("language_model" in name for name in wrapped)


def test_the_base_and_its_revision_are_read_back(models, tmp_path):
    saved(models, tmp_path)
    edit(tmp_path, base_model_name_or_path="owner/name", revision="v1")
    assert base_of(tmp_path) == "owner/name@v1"
    assert at_revision("owner/name", tmp_path) == "owner/name@v1"
    assert at_revision("owner/name@v1", tmp_path) == "owner/name@v1"
    assert at_revision("owner/other", tmp_path) == "owner/other"
    commit = f"owner/name@{'0123456789' * 4}"  # for which the tag may stand
    assert at_revision(commit, tmp_path) == commit
    with pytest.raises(UserError, match="was made on revision 'v1' of owner/name"):
        at_revision("owner/name@v2", tmp_path)


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [
        ("owner/name@0123abc", "owner/name", "0123abc"),
        ("gemma3-270m", None, None),
        ("{folder}", "{folder}", None),
        ("{folder}/model.gguf", None, None),
    ],
)
def test_the_base_is_named_so_that_peft_can_load_it(models, tmp_path, base, name, revision):
    config, _ = models["gemma3"]
    (tmp_path / "model.gguf").touch()
    base = base.format(folder=tmp_path)
    lora = Lora(2, 4.0, 0.0, ("q",))
    save_peft(tmp_path, config[0], random_adapter(config[0], lora), lora, base)
    settings = PeftConfig.from_pretrained(tmp_path)
    assert settings.base_model_name_or_path == (name and name.format(folder=tmp_path))
    assert settings.revision == revision
    assert base_of(tmp_path) == base  # what PEFT cannot load is kept as well
