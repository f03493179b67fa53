"""A few end-to-end checks on the real Gemma 3 270M."""

import copy
import dataclasses
from functools import partial

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
from conftest import reference_table

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.export import export
from jaxmoral.language import prompts
from jaxmoral.language.prompt_tree import pack
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.mixture import kinds_of_labels
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.speller import random_labels
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.models import huggingface
from jaxmoral.models.hf_config import describe
from jaxmoral.world import games

LABELS = ("action1", "action2")
SHOWN = prompts.Presentation(labels=LABELS)
IPD = Condition(games.get_game("ipd"), SHOWN)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def trained(real, run_folder):
    return fit_agent(configs.load(None, ["--updates", "4", "--env.episodes", "1024"]), run_folder)


def test_deontological_training_works_within_four_updates(trained):
    first, last = trained.history[0], trained.history[-1]
    assert first["p_illegal"] > 0.5
    assert last["p_illegal"] < 0.05
    assert last["reward_mean"] > -0.5
    result = evaluate_agent(trained, ["ipd"], protocols=["exact", "sampled"])
    tuned, base = (result["suites"]["trained"]["ipd"]["policies"][p] for p in ("tuned", "base"))
    assert tuned["remembered"]["CC"]["D"] < 0.1
    assert base["remembered"]["CC"]["illegal"] > 0.5
    assert result["largest_gap"] < 0.01


def test_the_reference_is_the_base_and_the_adapter_moved(trained):
    agent = trained.agent
    inputs = jax.tree.map(lambda x: x[0], agent.prompter.pack([[IPD]]))
    fresh = agent.policy.init(jax.random.key(0))
    base = jax.jit(lambda w, t: agent.policy.bind(w, inputs).table(t))(agent.frozen, fresh)
    reference = jax.jit(partial(reference_table, agent.policy))(agent.frozen, inputs)
    np.testing.assert_allclose(base.log_probs, reference, atol=1e-4)
    assert float(np.abs(trained.trainable["value_head"]["kernel"]).max()) > 0


def test_prompts_begin_with_their_only_bos(real):
    prompter = Prompter(real, "plain")
    for game in games.GAMES.values():
        for text in prompts.all_prompts(game, SHOWN):
            ids = prompter.tokens(text)
            assert ids[0] == real.tokenizer.bos_token_id
            assert ids.count(real.tokenizer.bos_token_id) == 1
            assert real.tokenizer.decode(ids[1:]) == text


def test_the_tree_needs_a_third_of_the_tokens(real):
    prompter = Prompter(real, "plain")
    encoded = [prompter.tokens(text) for text in prompts.all_prompts(*IPD)]
    assert len(pack(prompter.sequences(IPD))[0].tokens) * 3 <= sum(map(len, encoded))


def test_spellings_decode_to_the_labels(real):
    prompter = Prompter(real, "plain")
    responses = prompter.responses(LABELS)
    trie, count = responses.trie, 0
    for edges, action in zip(trie.spelling_edges, trie.spelling_action, strict=True):
        tokens = [trie.edge_token[edge] for edge in edges if edge < len(trie.edge_token)]
        assert len(tokens) <= 2
        text = real.tokenizer.decode(tokens, skip_special_tokens=True)
        assert text.strip() == LABELS[action]
        count += 1
    canonical = [real.tokenizer.encode(f" {x}", add_special_tokens=False) for x in LABELS]
    assert (canonical[0][0],) in responses.prefixes
    assert count >= 4  # each label with and without a leading space


def test_a_chat_template_is_used_and_keeps_one_bos(real):
    template = "{{ bos_token }}<start_of_turn>user\n{{ messages[0].content }}<end_of_turn>\n"
    template += "{{ '<start_of_turn>model\n' }}"
    with pytest.raises(UserError, match=r"no chat template; use --prompt\.template plain"):
        Prompter(real, "chat")
    tokenizer = copy.deepcopy(real.tokenizer)
    tokenizer.chat_template = template
    prompter = Prompter(dataclasses.replace(real, tokenizer=tokenizer), "chat")
    ids = prompter.tokens("Hello")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids).endswith("Hello<end_of_turn>\n<start_of_turn>model\n")
    assert prompter.responses(("A", "B")).prefixes == ((),)


def test_other_labels_and_their_budget(real):
    prompter = Prompter(real, "plain")
    # Two tokens each, the first one of several pieces of the label with or without a space.
    assert prompter.responses(("Cooperate", "Defect")).trie.prefix_edges.shape == (10, 2)
    short = prompter.responses(("cooperate", "defect")).trie
    count = lambda label: len(real.tokenizer.encode(label, add_special_tokens=False))
    assert count("cooperate") != count("defect")
    for action, label in enumerate(("cooperate", "defect")):
        own = short.spelling_edges[short.spelling_action == action]
        longest = (own < short.no_edge).sum(-1).max()
        assert longest == max(count(label), count(f" {label}"))


def test_unused_tokens_and_random_strings_are_labels_too(real):
    prompter = Prompter(real, "plain")
    unused = prompter.responses(("<unused1>", "<unused2>"))
    *ids, space = real.tokenizer.convert_tokens_to_ids(["<unused1>", "<unused2>", "\u2581"])
    assert unused.prefixes == ((), (space,))
    assert sorted(unused.trie.edge_token.tolist()) == sorted([*ids, *ids, space])
    for size in (2, 7):
        labels = random_labels(real, size, seed=1)
        assert labels == random_labels(real, size, seed=1) != random_labels(real, size, seed=2)
        for label in labels:
            assert len(real.tokenizer.encode(label, add_special_tokens=False)) == size
        spelled = prompter.responses(labels)
        assert {0, 1} == set(spelled.trie.spelling_action.tolist())
    for pair in (("A", "B"), ("0", "1"), ("action2", "action1")):
        assert prompter.responses(pair).prefixes[0] == ()


def test_labels_of_a_kind_have_as_many_tokens(real):
    """Behind white space, too, so that a pair's answers are alike in length."""
    one = [{(1, 1)}] * 4  # words, letters, names, other languages
    length = lambda text: len(real.tokenizer.encode(text, add_special_tokens=False))
    found = [{(length(x), length(f" {x}")) for x in kind} for kind in kinds_of_labels("labels")]
    assert found == [*one, {(2, 3)}, {(2, 2)}, {(2, 2)}]


def test_agents_know_their_model(real):
    agent = make_agent(resolve(configs.Config()))
    assert isinstance(agent.policy, LanguagePolicy)
    assert agent.model.sha256 == real.sha256
    assert "268.1 M parameters" in agent.summary[0]
    assert "instead of" in agent.summary[2]


def test_a_merged_export_holds_the_tuned_weights(trained, run_folder, tmp_path):
    """That transformers and PEFT read exports so: `test_gemma.py`."""
    export(run_folder, "merged", tmp_path / "merged")
    model, pair = trained.agent.model, trained.trainable["adapter"]["down"]
    lora = trained.agent.lora
    name = f"model.layers.{model.config.num_layers - 1}.mlp.down_proj.weight"
    with safetensors.safe_open(tmp_path / "merged" / "model.safetensors", "numpy") as stored:
        found = stored.get_tensor(name)
    kernel = np.asarray(model.weights["blocks"]["down"][...][-1])
    low_rank = np.asarray(pair["a"][-1]).T @ np.asarray(pair["b"][-1])
    np.testing.assert_allclose(found, (kernel + lora.scale * low_rank).T, atol=1e-6)
    assert np.abs(found - kernel.T).max() > 1e-4
    again = describe(tmp_path / "merged").config
    assert again == dataclasses.replace(model.config, rms_eps=again.rms_eps)
    tokenizer = huggingface.read_tokenizer(tmp_path / "merged", again)
    assert tokenizer.encode("Answer: action1") == model.tokenizer.encode("Answer: action1")


def test_an_exported_adapter_comes_back_bit_equal(trained, run_folder, tmp_path):
    export(run_folder, "peft", tmp_path / "peft")
    flags = ["--lora.adapter", str(tmp_path / "peft")]
    agent = make_agent(resolve(configs.load(None, flags)))
    ours = trained.trainable["adapter"]
    for target, pair in ours.items():
        for side in pair:
            np.testing.assert_array_equal(agent.adapter[target][side], pair[side])
    assert agent.lora.rank == trained.agent.lora.rank


def test_export_refuses_what_it_cannot_do(trained, run_folder, tmp_path):
    with pytest.raises(UserError, match="choose from peft, merged, orbax"):
        export(run_folder, "onnx", tmp_path / "x")
    with pytest.raises(UserError, match="exists; choose another"):
        export(run_folder, "peft", tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        export(tmp_path, "peft", tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_the_orbax_export_holds_the_parameters(trained, run_folder, tmp_path):
    export(run_folder, "orbax", tmp_path / "orbax")
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "orbax" / "params")
    kernel = trained.trainable["value_head"]["kernel"]
    np.testing.assert_array_equal(found["value_head"]["kernel"], kernel)
