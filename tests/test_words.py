"""Other labels, suites of words and questions, on a tiny model that reads any text."""

import chex
import jax
import numpy as np
import pandas as pd
import pytest
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.chat import Talk
from jaxmoral.language import prompts
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent, policy_table
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring import questions
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.questions import ask
from jaxmoral.measuring.results import rows
from jaxmoral.models import generate as generating
from jaxmoral.world import games

IPD = games.get_game("ipd")
LABELS = ("X", "Y")
FLAGS = ["--prompt.labels", "[X, Y]", "--updates", "2", "--env.episodes", "64"]
FLAGS += ["--ppo.learning_rate", "0.01", "--lora.targets", "[q, down]"]


@pytest.fixture(scope="module")
def config(shallow):
    return configs.load(None, [*FLAGS, "--model.source", str(shallow)])


@pytest.fixture(scope="module")
def trained(config):
    return fit_agent(config, say=quiet)


def test_labels_of_different_shapes_share_a_program(config):
    """Stacked and padded, each condition's distribution is what it is alone."""
    agent = make_agent(resolve(config))
    shown = [
        Condition(games.get_game("ipd"), prompts.Presentation(labels=pair))
        for pair in (("X", "Y"), ("A1", "B1"), ("qwxy", "zjkv"))
    ]
    fresh = agent.policy.init(jax.random.key(0))
    apply = jax.jit(lambda w, i: agent.policy.bind(w, i).table(fresh).log_probs)
    together = agent.prompter.pack([[condition] for condition in shown])
    found = []
    for index, condition in enumerate(shown):
        inputs = jax.tree.map(lambda x, at=index: x[at], together)
        alone = jax.tree.map(lambda x: x[0], agent.prompter.pack([[condition]]))
        assert alone.tree.tokens.shape != inputs.tree.tokens.shape or index == 2
        found.append(apply(agent.frozen, inputs))
        np.testing.assert_allclose(found[-1], apply(agent.frozen, alone), atol=2e-4)
    assert all(np.abs(one - found[0]).max() > 0.1 for one in found[1:])


def test_suites_of_words(trained):
    """One program a shape, at most three shapes; every number is a share."""
    protocols = ["exact", "paper"]
    evaluate_agent(trained, ["ipd"], protocols=protocols)  # what any evaluation compiles
    compiled = []
    listen = lambda event, duration, **_: compiled.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        suites = ("wordings", "unrelated", "swapped")
        result = evaluate_agent(trained, ["ipd"], suites=suites, protocols=protocols)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    programs = [event for event in compiled if event.endswith("backend_compile_duration")]
    assert len(programs) <= 3 + 4  # a few small ones draw and place arrays
    assert set(result["suites"]) == set(suites)
    for named in result["suites"].values():
        for condition in named.values():
            for found in condition["policies"].values():
                for cell in found["remembered"].values():
                    assert sum(cell.values()) == pytest.approx(1, abs=1e-4)
    bare = result["suites"]["unrelated"]["action"]["policies"]["tuned"]["remembered"]
    assert bare["CC"]["C"] == pytest.approx(bare["DD"]["C"], abs=1e-5)  # no state in the prompt
    table = pd.DataFrame(rows(result))
    assert set(table["suite"]) == set(suites)


def test_an_agent_is_asked_why(trained):
    answers = ask(trained.config, trained.agent, trained.trainable, jax.random.key(0))
    assert len(answers) == 4 * len(prompts.QUESTIONS) * 2
    assert {one["policy"] for one in answers} == {"base", "tuned"}
    assert {one["answer"] for one in answers} <= set(LABELS)
    assert sum(bool(one["said"]) for one in answers) > len(answers) / 2


def heard(monkeypatch, module):
    """What a module lets the model go on from, as texts, and with which adapter."""
    calls = []

    def generate(model, sequences, num_tokens, key, sampling, adapter, lora):
        calls.append(([model.tokenizer.decode(ids) for ids in sequences], adapter))
        return [[5]] * len(sequences)

    monkeypatch.setattr(module, "generate", generate)
    return calls


def test_whoever_is_asked_reads_the_prompt_its_answer_and_the_question(trained, monkeypatch):
    calls = heard(monkeypatch, questions)
    answers = ask(trained.config, trained.agent, trained.trainable, jax.random.key(0))
    presentation = trained.agent.presentation
    texts = prompts.all_prompts(IPD, presentation)[::4]
    table = policy_table(trained.agent, Condition(IPD, presentation), trained.trainable)
    likeliest = np.asarray(table.log_probs)[::4, :2].argmax(-1)
    expected = [
        f"{text} {LABELS[action]}\n\n{question}\nAnswer: I chose {LABELS[action]} because"
        for text, action in zip(texts, likeliest, strict=True)
        for question in prompts.QUESTIONS.values()
    ]
    (tuned, adapter), (base, none) = calls
    strip = lambda read: [text.removeprefix("<bos>") for text in read]
    assert strip(tuned) == strip(base) == expected
    chex.assert_trees_all_equal(adapter, trained.trainable["adapter"])
    assert none == {}
    assert [one["policy"] for one in answers] == ["tuned"] * 8 + ["base"] * 8


def test_in_a_chat_the_last_answer_is_asked_about(trained, monkeypatch):
    calls = heard(monkeypatch, generating)
    talk = Talk(trained, 3)
    texts = prompts.all_prompts(IPD, trained.agent.presentation)
    lines = talk.greeting().splitlines()
    assert lines[0].endswith("Type X, Y, c, d, strategy, why, prompt or quit.")
    (own, other) = lines[1].removeprefix("Remembered round: agent ").split(", you ")
    index = 2 * LABELS.index(own) + LABELS.index(other.rstrip("."))
    assert talk.reply("why") == "Play a round first."
    assert talk.reply("Quit?") is None
    said = talk.reply("c")
    shown = talk.reply("prompt")
    assert shown in texts[4 * index : 4 * index + 4]
    talk.reply("Why?")
    ((read,), adapter) = calls[0]
    answer = said.split()[1].rstrip(".")
    spoken = answer if answer in LABELS else ""
    question = prompts.QUESTIONS["why"]
    assert read.removeprefix("<bos>") == (
        f"{shown} {spoken}\n\n{question}\nAnswer: I chose {spoken} because"
    )
    chex.assert_trees_all_equal(adapter, trained.trainable["adapter"])
