"""Prompts are BOS and the text's tokens, whatever a tokenizer would add; exports keep its ends."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_model
import torch
import transformers
from peft import PeftModel
from run_files import quiet
from tokenizers import Tokenizer

from jaxmoral import export as exports
from jaxmoral.config import load, parse
from jaxmoral.errors import UserError
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.training import fit_agent
from jaxmoral.models import load as gemma_load
from jaxmoral.models.lora import NO_LORA
from jaxmoral.models.merged import save_merged
from jaxmoral.models.tokenizer import build

TEXT = "Answer with X or Y."
BOS, EOS = 2, 1
TURN = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.fixture
def folder(tmp_path):
    """A tiny model with its tokenizer."""
    tiny_model.write(tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(folder, name, change):
    path = folder / name
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def plain_tokens(folder):
    """The text's tokens by the tokenizers library, with nothing around them."""
    return (
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        .encode(TEXT, add_special_tokens=False)
        .ids
    )


def adds_eos(stored):
    stored["post_processor"]["single"].append({"SpecialToken": {"id": "<eos>", "type_id": 0}})
    eos = {"id": "<eos>", "ids": [EOS], "tokens": ["<eos>"]}
    stored["post_processor"]["special_tokens"]["<eos>"] = eos


def adds_bos_twice(stored):
    stored["post_processor"]["single"].insert(0, stored["post_processor"]["single"][0])


def truncates(stored):
    stored["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst"}
    stored["truncation"]["stride"] = 0


def pads(stored):
    stored["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
    }
    stored["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}


@pytest.mark.parametrize(
    "change",
    [
        adds_eos,
        adds_bos_twice,
        truncates,
        pads,
        lambda stored: stored.update(post_processor=None),
    ],
)
def test_a_prompt_is_bos_and_the_texts_tokens(folder, change):
    expected = [BOS, *plain_tokens(folder)]
    edit(folder, "tokenizer.json", change)
    assert Prompter(gemma_load.load(str(folder)), "plain").tokens(TEXT) == expected


@pytest.mark.parametrize("begins", ["", "{{ bos_token }}"])
def test_a_chat_begins_with_one_bos(folder, begins):
    edit(folder, "tokenizer_config.json", lambda stored: stored.update(chat_template=begins + TURN))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokens = Prompter(gemma_load.load(str(folder)), "chat").tokens(TEXT)
    assert tokens[0] == BOS
    assert tokens.count(BOS) == 1


@pytest.mark.parametrize("asks", ["strftime_now('%Y-%m-%d')", "date_string"])
def test_a_template_that_names_the_day_names_the_same_every_day(folder, asks):
    model = gemma_load.load(str(folder))
    model.tokenizer.chat_template = "26 Jul 2024" + TURN
    expected = Prompter(model, "chat").tokens(TEXT)
    guarded = "{% if strftime_now is defined %}{{ " + asks + " }}{% endif %}"
    model.tokenizer.chat_template = guarded + TURN
    assert Prompter(model, "chat").tokens(TEXT) == expected


@pytest.mark.parametrize("text", [f"{TEXT} <bos>", f"<bos><bos>{TEXT}"])
def test_bos_in_another_place_is_refused(folder, text):
    with pytest.raises(UserError, match=r"prompt: it holds <bos>, .* in another place"):
        Prompter(gemma_load.load(str(folder)), "plain").tokens(text)


@pytest.mark.parametrize("template", ["{{ bos_token }}{{ bos_token }}", "\n{{ bos_token }}"])
def test_a_chat_template_with_bos_in_another_place_is_refused(folder, template):
    model = gemma_load.load(str(folder))
    model.tokenizer.chat_template = template + TURN
    with pytest.raises(UserError, match=r"take it out of .* or the chat template"):
        Prompter(model, "chat").tokens(TEXT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_special_tokens": True}, "split_special_tokens = True is not supported"),
        ({"auto_map": {"AutoTokenizer": "a.B"}}, "auto_map = .* is not supported"),
        ({"added_tokens_decoder": {"9": {"content": "<new>"}}}, "no added token '<new>'"),
        ({"extra_special_tokens": ["<new>"]}, "no added token '<new>'"),
        (
            {"added_tokens_decoder": {"1": {"content": "<eos>", "lstrip": True}}},
            "token '<eos>' has lstrip False, in its settings True",
        ),
    ],
)
def test_settings_that_change_tokens_are_refused(folder, change, message):
    edit(folder, "tokenizer_config.json", lambda stored: stored.update(change))
    with pytest.raises(UserError, match=message):
        gemma_load.load(str(folder))


def test_settings_that_change_nothing_are_accepted(folder):
    change = {"add_bos_token": False, "add_eos_token": True, "model_max_length": 7}
    change |= {"tokenizer_class": "GemmaTokenizer", "image_token": "<image>", "legacy": None}
    change["added_tokens_decoder"] = {"1": {"content": "<eos>", "lstrip": False, "special": True}}
    edit(folder, "tokenizer_config.json", lambda stored: stored.update(change))
    expected = [BOS, *plain_tokens(folder)]
    assert Prompter(gemma_load.load(str(folder)), "plain").tokens(TEXT) == expected


def test_a_token_without_an_embedding_is_refused_where_a_prompt_holds_it(folder):
    """Gemma 3's text models come with the token of an image."""
    model = gemma_load.load(str(folder))
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    while len(model.tokenizer) <= model.config.vocab_size:
        model.tokenizer.add_special_tokens(
            {"additional_special_tokens": [f"<image{len(model.tokenizer)}>"]}
        )
    model.tokenizer.save_pretrained(folder)
    last = model.tokenizer.convert_ids_to_tokens(model.config.vocab_size)
    prompter = Prompter(gemma_load.load(str(folder)), "plain")
    assert prompter.responses(("X", "Y"))
    assert prompter.tokens(TEXT) == [BOS, *plain_tokens(folder)]
    with pytest.raises(UserError, match=f"holds {last}, for which the model has no embedding"):
        prompter.tokens(f"{TEXT} {last}")


def test_a_tokenizer_saved_with_padding_loads(folder):
    tokenizer = gemma_load.load(str(folder)).tokenizer
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(
        folder
    )
    prompter = Prompter(gemma_load.load(str(folder)), "plain")
    assert prompter.tokens(TEXT) == [BOS, *plain_tokens(folder)]


# What leaves again


def test_a_merged_export_keeps_what_generation_needs(folder, tmp_path):
    """All stop tokens, the other settings of generation, and the chat template."""
    stops = {"eos_token_id": [EOS, 5], "bos_token_id": BOS, "pad_token_id": 0, "top_k": 7}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    (folder / "chat_template.jinja").write_text(TURN)
    model = gemma_load.load(str(folder))
    assert model.stop_tokens() == [EOS, 5]
    out = tmp_path / "out"
    out.mkdir()
    save_merged(out, model, {}, NO_LORA)
    kept = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert kept.generation_config.eos_token_id == [EOS, 5]
    assert kept.generation_config.top_k == 7
    assert kept.config.eos_token_id == [EOS, 5]
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == TURN


def test_stop_tokens_stand_in_config_json_too(folder):
    (folder / "generation_config.json").unlink()
    edit(folder, "config.json", lambda stored: stored.pop("eos_token_id"))
    out = folder / "out"
    out.mkdir()
    save_merged(out, gemma_load.load(str(folder)), {}, NO_LORA)
    kept = json.loads((out / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [EOS]  # the tokenizer's
    edit(folder, "config.json", lambda stored: stored.update(eos_token_id=[EOS, 6]))
    assert gemma_load.load(str(folder)).stop_tokens() == [EOS, 6]
    edit(folder, "config.json", lambda stored: stored.update(eos_token_id=[EOS, 10**6]))
    with pytest.raises(UserError, match="there is no token 1000000"):
        gemma_load.load(str(folder))


def test_a_model_of_a_file_keeps_its_turn_ends(tmp_path):
    """Made from a vocabulary, as a GGUF's is."""
    words = dataclasses.replace(tiny_model.vocabulary(), turn_ends=(7,), template=TURN)
    assert words.generation == {"bos_token_id": BOS, "eos_token_id": [EOS, 7], "pad_token_id": 0}
    assert build(words).chat_template == TURN


def test_an_untuned_base_is_exported_for_its_adapters(folder, tmp_path, monkeypatch, capsys):
    """The two exports together are the tuned model: PEFT on the base's export, and merged."""
    config = parse(
        {
            "model": {"source": str(folder)},
            "prompt": {"labels": ["X", "Y"]},
            "lora": {"rank": 2},
            "env": {"episodes": 64},
            "ppo": {"learning_rate": 0.05},
            "updates": 2,
        }
    )
    fit_agent(config, tmp_path / "run", say=quiet)
    for name, arguments in {
        "base": ["--model", str(folder)],
        "adapter": ["--run", str(tmp_path / "run")],
        "merged": ["--run", str(tmp_path / "run"), "--format", "merged"],
    }.items():
        command = ["export", *arguments, "--output", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", command)
        exports.main()
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folder)
    load = transformers.AutoModelForCausalLM.from_pretrained
    tokens = torch.tensor([[BOS, *plain_tokens(folder)]])
    with torch.no_grad():
        plain = load(tmp_path / "base")(tokens).logits.numpy()
        tuned = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
        tuned = tuned(tokens).logits.numpy()
        merged = load(tmp_path / "merged")(tokens).logits.numpy()
    assert np.abs(tuned - plain).max() > 0.1
    np.testing.assert_allclose(tuned, merged, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --run FOLDER or --model NAME"),
        (["--model", "gemma3-270m", "--format", "peft"], "peft is for runs"),
    ],
)
def test_an_export_of_nothing_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export", *arguments, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        exports.main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# What Qwen3's template does before an answer, and what Gemma 4's does: an empty thought.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and"
    " enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA4 = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% if not enable_thinking | default(true) %}"
    "<|channel>thought\n<channel|>{% endif %}{% endif %}"
)


@pytest.mark.parametrize(("template", "thought"), [(QWEN3, "</think>"), (GEMMA4, "<channel|>")])
def test_thinking_is_switched_off_by_the_template(folder, template, thought):
    """The prompt is what the tokenizer itself makes of the switch."""
    model = gemma_load.load(str(folder))
    model.tokenizer.chat_template = template
    render = model.tokenizer.apply_chat_template
    turns = [{"role": "user", "content": TEXT}]
    prompts = {}
    for thinking, switch in (("default", {}), ("off", {"enable_thinking": False})):
        prompts[thinking] = Prompter(model, "chat", switch=thinking).tokens(TEXT)
        text = render(turns, tokenize=False, add_generation_prompt=True, **switch)
        assert (thought in text) == (thinking == "off")
        spelled = model.tokenizer.encode(text.removeprefix("<bos>"), add_special_tokens=False)
        assert prompts[thinking] == [BOS, *spelled]
    size = len(prompts["default"])
    assert prompts["off"][:size] == prompts["default"]
    assert len(prompts["off"]) > size


def test_a_template_without_the_switch_is_refused(folder):
    model = gemma_load.load(str(folder))
    model.tokenizer.chat_template = TURN
    with pytest.raises(UserError, match=r"prompt.thinking: .* has no switch for it"):
        Prompter(model, "chat", switch="off")


def test_thinking_off_is_read_as_yaml_writes_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("prompt:\n  template: chat\n  thinking: off\n")
    assert load(path, []).prompt.thinking == "off"
    flags = ["--prompt.template", "chat", "--prompt.thinking", "off"]
    assert load(None, flags) == load(path, [])
    with pytest.raises(UserError, match=r"prompt.thinking: off needs prompt.template chat"):
        load(None, flags[2:])
