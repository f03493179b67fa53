"""Runs of agents that think: training, resuming, meeting, evaluating, and what is refused."""

import json
import shutil
import sys
from html import escape
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from clusters import finish, start
from on_mesh import numbers
from run_files import quiet

from jaxmoral import ask, chat, evaluate, load_members
from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language import prompts
from jaxmoral.language.prompts import Condition, Presentation
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.channel import CHAT, OWN, make_thinking, own_channel
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.measuring import thoughts as measured
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.measures import standard_errors
from jaxmoral.measuring.results import rows, table
from jaxmoral.models.load import load
from jaxmoral.reporting.page import write_report
from jaxmoral.world.games import get_game

IPD = get_game("ipd")


@pytest.fixture(scope="module")
def flags(shallow):
    given = ["--model.source", str(shallow), "--prompt.labels", "[X, Y]", "--env.episodes", "96"]
    given += ["--thinking.tokens", "4", "--thinking.thoughts", "3", "--updates", "3"]
    return [*given, "--ppo.learning_rate", "1e-2", "--lora.targets", "[q, v]"]


def settings(flags, *more):
    return configs.load(None, [*flags, *more])


def records(trained):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in trained.history]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    """A run folder and what training it returned."""
    path = tmp_path_factory.mktemp("run") / "thinker"
    return path, fit_agent(settings(flags), path, say=quiet)


def test_training_changes_what_is_thought_and_answered(run):
    _, trained = run
    names = ("thought_loss", "thought_kl", "thought_length", "thought_information")
    for record in trained.history:
        assert all(np.isfinite(record[name]) for name in names)
        assert 0 <= record["thought_length"] <= 4
    first, last = trained.history[0], trained.history[-1]
    assert first["thought_kl"] == pytest.approx(0, abs=1e-5)
    assert last["thought_kl"] > 1e-4
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert last["reward_mean"] > first["reward_mean"]


def test_marks_around_thoughts_are_settled(run):
    path, trained = run
    assert trained.config.thinking.cue == "\nAnswer:"
    assert trained.config.thinking.stop == "\n"
    config = load_trained(path).config
    assert config.thinking == trained.config.thinking


def test_a_resumed_run_is_the_same_to_the_last_bit(run, flags, tmp_path):
    _, whole = run
    config = settings(flags, "--checkpoint_every", "2")
    fit_agent(config, tmp_path / "cut", say=quiet)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "3")  # as if the rest had been lost
    resumed = fit_agent(config, tmp_path / "cut", resume=True, say=quiet)
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert records(resumed) == records(whole)[2:]


def test_nothing_is_compiled_after_the_first_update(flags, caplog):
    """Thoughts of every length, other conditions: one program."""
    config = resolve(settings(flags, "--mixture.labels", "[[X, Y], [Y, X]]"))
    state, step = compile_update([(config, make_agent(config))])
    state, _ = step(state, 0)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        for update in (1, 2):
            state, _ = step(state, update)
    assert not [record for record in caplog.records if "Compiling" in record.message]


def test_no_key_is_used_twice(flags):
    config = resolve(settings(flags, "--lora.dropout", "0.2"))
    with jax.debug_key_reuse(True):
        compile_update([(config, make_agent(config))])


WAYS = {
    "minibatches, dropout, sequences": [
        *("--ppo.minibatches", "2", "--ppo.epochs", "2", "--lora.dropout", "0.2"),
        *("--thinking.ratio", "sequence", "--thinking.baseline", "group-std"),
    ],
    "exact, no memory, one thought": [
        *("--ppo.estimator", "exact", "--env.memory", "0"),
        *("--thinking.thoughts", "1", "--thinking.baseline", "value"),
    ],
    "learners, nf4": ["--env.opponent", "learner", "--model.quantisation", "nf4"],
    "mixture, several trees": [
        *("--mixture.labels", "[[X, Y], [Y, X]]", "--mixture.conditions", "2"),
        *("--model.max_nodes", "700"),
    ],
    "payoffs, past selves": ["--env.payoff_draws", "2", "--env.opponent", "past(1)"],
    "three players": ["--env.game", "public-goods(3)", "--env.opponent", "conditional"],
}


@pytest.mark.parametrize("way", WAYS)
def test_it_works_with(way, flags):
    trained = fit_agent(settings(flags, *WAYS[way], "--updates", "2"), say=quiet)
    for record in trained.history:
        assert np.isfinite([record["loss"], record["grad_norm"], record["thought_kl"]]).all()
    assert trained.history[-1]["thought_kl"] > 0


def test_members_of_a_population_are_runs_alone(flags):
    members = {
        name: settings(flags, "--reward.name", name) for name in ("deontological", "utilitarian")
    }
    together = fit_population(members, say=quiet)
    for name, config in members.items():
        alone = fit_agent(config, say=quiet)
        chex.assert_trees_all_close(together[name].state, alone.state, rtol=1e-4, atol=1e-5)


MESHES = {
    "nodes": ["--mesh.data", "2"],
    "tensor": ["--mesh.tensor", "2"],
    "members": ["--seed", "[0, 1]", "--mesh.data", "2"],
}


def test_two_devices_compute_what_one_does(flags, tmp_path):
    jobs = [{"name": name, "flags": [*flags, *more]} for name, more in MESHES.items()]
    found = finish([start(tmp_path / "found.npz", jobs, 2)], tmp_path / "found.npz")
    for job in jobs:
        members = load_members(None, job["flags"][:-2])  # without the mesh
        for member, trained in fit_population(members, say=quiet).items():
            for kind, value in numbers(trained).items():
                ours = found[f"{job['name']}|{member}|{kind}"]
                assert np.linalg.norm(ours - value) <= 1e-4 * np.linalg.norm(value), job["name"]


def test_stored_thinkers_are_met_by_thinkers_alone(run, flags):
    path, _ = run
    trained = fit_agent(settings(flags, "--env.opponent", str(path)), say=quiet)
    assert np.isfinite(trained.history[-1]["loss"])
    plain = settings(flags, "--thinking.tokens", "0", "--env.opponent", str(path))
    with pytest.raises(UserError, match="its thinking.tokens is 4, not 0"):
        fit_agent(plain, say=quiet)


def test_evaluation_tells_standard_errors(run):
    path, _ = run
    evaluation = evaluate_agent(path, games=["ipd"], protocols=["exact", "sampled"])
    result = evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"]
    errors = result["opponents"]["random"]["error"]
    assert 0 < errors["outcomes"]["C"] < 0.5
    assert 0 < result["remembered_error"]["CC"]["illegal"] < 0.5
    assert result["opponents"]["random"].keys() == {"exact", "sampled", "error"}
    text = table(evaluation)
    assert "against random, standard errors" in text
    kinds = {row["protocol"] for row in rows(evaluation)}
    assert "error" in kinds


def test_errors_are_those_of_a_mean():
    """Of a mean the jackknife's error is the usual one, in nested measures as well."""
    samples = np.random.default_rng(0).normal(size=7)
    without = [{"a": {"b": float(np.delete(samples, i).mean())}, "c": None} for i in range(7)]
    found = standard_errors(without)
    expected = samples.std(ddof=1) / np.sqrt(7)
    assert found["a"]["b"] == pytest.approx(expected, rel=1e-9)
    assert found["c"] is None


def test_an_agent_may_be_evaluated_without_its_thoughts(run):
    path, _ = run
    evaluation = evaluate_agent(path, games=["ipd"], protocols=["exact"], thinking=0)
    result = evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"]
    assert result["opponents"]["random"].keys() == {"exact"}
    thinking = evaluate_agent(path, games=["ipd"], protocols=["exact"])
    other = thinking["suites"]["trained"]["ipd"]["policies"]["tuned"]
    assert result["remembered"] != other["remembered"]
    with pytest.raises(UserError, match="--thoughts-of: only the suite thoughts exchanges"):
        evaluate_agent(path, games=["ipd"], thoughts_of=path)


def test_the_suite_thoughts_exchanges_them(run, monkeypatch, capsys):
    """Through the command; with none every thought is the empty one, which is all alike."""
    path, _ = run
    arguments = ["evaluate", "--run", str(path), "--suites", "thoughts", "--protocols", "exact"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--thoughts-of", str(path)])
    evaluate.main()
    printed = capsys.readouterr().out
    kept = json.loads((path / "evaluation.json").read_text())
    studied = kept["suites"]["thoughts"]["ipd"]["thoughts"]
    assert (studied["tokens"], studied["thoughts"]) == (4, 3)
    tuned = studied["policies"]["tuned"]
    whose = ["own", "none", "another history's", "base's", "another agent's"]
    assert list(tuned["after"]) == whose
    assert all(
        row["error"] == pytest.approx(0, abs=1e-6) for row in tuned["after"]["none"].values()
    )
    for found in tuned["after"].values():
        for row in found.values():
            assert row["C"] + row["D"] + row["illegal"] == pytest.approx(1, abs=1e-5)
    silent = evaluate_agent(path, games=["ipd"], protocols=["exact"], thinking=0)
    expected = silent["suites"]["trained"]["ipd"]["policies"]["tuned"]["remembered"]
    for history, row in tuned["after"]["none"].items():
        assert row["C"] == pytest.approx(expected[history]["C"], abs=1e-5)
    assert set(tuned["said"]) == set(tuned["information"]) == {"CC", "CD", "DC", "DD"}
    assert "another history's" in printed
    assert "information, nats" in printed
    assert write_report([path], path / "report") == []
    page = (path / "report" / "index.html").read_text()
    assert "What answers owe to thoughts, in numbers" in page
    assert (path / "report" / "figures" / "thoughts.png").stat().st_size > 1000
    for each in tuned["said"].values():
        assert all(escape(one["thought"]) in page for one in each)


def test_an_answers_error_and_another_historys_thoughts_are_what_they_say(run, monkeypatch):
    """Errors of P(C) as of twelve draws, three in each order of the labels."""
    trained, given = run[1], []
    answers = measured.jit_answers

    def spying(policy, layout):
        def spy(frozen, inputs, trainable, thoughts):
            found = answers(policy, layout)(frozen, inputs, trainable, thoughts)
            given.append((np.asarray(thoughts.tokens), np.exp(np.asarray(found, np.float64))))
            return found

        return spy

    monkeypatch.setattr(measured, "jit_answers", spying)
    condition = Condition(IPD, trained.agent.presentation)
    policies = {"tuned": trained.trainable, "base": trained.trainable}
    studied = measured.study(trained.agent, condition, policies, jax.random.key(0))
    (own, shares), _, (others, _) = given[:3]
    for number, thoughts in enumerate(others):
        (source,) = (n for n in range(16) if np.array_equal(own[n], thoughts))
        assert source % 4 == number % 4  # the order of the labels
        assert source // 4 != number // 4
    row = studied["policies"]["tuned"]["after"]["own"]["CD"]
    draws = shares[4:8, :, 0]
    assert row["C"] == pytest.approx(draws.mean(), rel=1e-5)
    variances = [np.sum((each - each.mean()) ** 2) / 2 for each in draws]
    assert row["error"] == pytest.approx(np.sqrt(np.mean(variances) / 12), rel=1e-5)


def test_ask_and_chat_show_thoughts(run, monkeypatch, capsys):
    path, _ = run
    monkeypatch.setattr(sys, "argv", ["ask", "--run", str(path)])
    ask.main()
    printed = capsys.readouterr().out
    answers = json.loads((path / "answers.json").read_text())
    assert all("thought" in one for one in answers)
    assert "(thought:" in printed
    typed = iter(["c", "d", "quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    monkeypatch.setattr(sys, "argv", ["chat", "--run", str(path)])
    chat.main()
    assert capsys.readouterr().out.count("agent thinks:") == 2


def test_without_thinking_prompts_are_as_they_were():
    """A template with {think} makes, without thinking, what it made without {think}."""
    for name, text in prompts.WORDINGS.items():
        assert text.count("{think}") == 1
        game = get_game("public-goods(3)") if name.endswith("-group") else IPD
        plain = prompts.all_prompts(game, Presentation(wording=name))
        before = prompts.all_prompts(game, Presentation(wording=text.replace("{think}", "")))
        assert plain == before
        thinking = prompts.all_prompts(game, Presentation(wording=name), think=True)
        for with_thought, without in zip(thinking, plain, strict=True):
            begin, _, _ = without.rpartition("\nAnswer:")
            assert with_thought == begin + prompts.THINK
        assert prompts.thinking_cue(name) == "\nAnswer:"


def test_a_prompt_opens_the_thought_and_the_cue_follows(flags, shallow):
    config = resolve(settings(flags))
    model = load(str(shallow))
    thinking = make_thinking(config, model, ["structured"])
    prompter = Prompter(model, "plain", thinking=thinking)
    condition = Condition(IPD, Presentation(labels=("X", "Y")))
    text = model.tokenizer.decode(prompter.sequences(condition)[0])
    assert text.endswith(prompts.THINK + "\nThought:")
    assert model.tokenizer.decode(thinking.cue_tokens) == "\nAnswer:"
    room, inputs = prompter.room([condition]), prompter.pack([[condition]])
    assert room.nodes == inputs.branches.slots.max() + 1
    assert room.depth == inputs.tree.positions.max()
    assert room.alone == np.unique(inputs.alone.paths).size
    assert {model.tokenizer.decode([token]) for token in thinking.stops} >= {"\n"}
    assert set(model.stop_tokens()) <= set(thinking.stops)


def test_models_that_think_between_marks_get_theirs(shallow):
    model = load(str(shallow))
    assert own_channel(model, "chat") == CHAT
    model.tokenizer.add_tokens(["<think>", "</think>"])
    assert own_channel(model, "chat") == OWN[0]
    assert own_channel(model, "plain").opens == "\nThought:"


REFUSED = {
    "thinking.cue: needs at least one token": ["--thinking.cue", '""'],
    "thinking.stop: needs at least one token": ["--thinking.stop", '""'],
    "thinking.stop: no token of the model holds 'never seen'": ["--thinking.stop", "never seen"],
    "model.max_nodes: one prompt with 3 thoughts of 4 tokens makes": ["--model.max_nodes", "190"],
    "prompt.wording: 'Choose {opening} now.' has no {think}": [
        *("--prompt.wording", "Choose {opening} now."),
    ],
    "thinking.cue: in the wording 'Choose {opening}:{think}' no plain text": [
        *("--prompt.wording", "Choose {opening}:{think}"),
    ],
    "thinking.tokens: a tabular policy has no words": ["--model.source", "tabular"],
    "thinking.tokens: needs ppo.level outcome": ["--ppo.level", "token"],
    "thinking.baseline: group compares a prompt's thoughts": ["--thinking.thoughts", "1"],
    "evaluation.thinking: an agent without thinking.tokens has no cue": [
        *("--thinking.tokens", "0", "--evaluation.thinking", "8"),
    ],
    "evaluation.suites: thoughts is about agents that think": [
        *("--thinking.tokens", "0", "--evaluation.suites", "[thoughts]"),
    ],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_in_one_line(message, flags):
    def attempt():
        config = settings(flags, *REFUSED[message])
        evaluate_agent(config) if "suites" in message else fit_agent(config, say=quiet)

    with pytest.raises(UserError) as error:
        attempt()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_wordings_that_end_differently_need_a_cue(flags, tmp_path):
    other = Path(tmp_path / "other.txt")
    other.write_text("Choose {opening}.{think}\nChoice:")
    mixed = ["--mixture.wordings", f"[structured, {other}]"]
    with pytest.raises(UserError, match="thinking.cue: after {think} the wordings have"):
        fit_agent(settings(flags, *mixed), say=quiet)
    fit_agent(settings(flags, *mixed, "--thinking.cue", '"\\nAnswer:"'), say=quiet)
    members = load_members(None, [*flags, "--prompt.wording", f"[structured, {other}]"])
    with pytest.raises(UserError, match=r"prompt.wording: member .*other.txt would end"):
        fit_population(members, say=quiet)
