"""Training end to end with the tabular policy: files, resuming, interruption, failure."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from run_files import quiet, records

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.learning import metrics
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.run_folder import check_run_folder
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.world import games, opponents

FLAGS = ["--model.source", "tabular", "--env.episodes", "256", "--ppo.learning_rate", "0.2"]
FLAGS += ["--updates", "12", "--checkpoint_every", "5", "--ppo.normalise_rewards", "true"]
FLAGS += ["--ppo.epochs", "2", "--ppo.minibatches", "2"]


def make_config(*flags):
    return configs.load(None, [*FLAGS, *flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, fit_agent(make_config(), folder, say=quiet)


@pytest.mark.slow
def test_a_run_folder_holds_what_it_should(whole):
    folder, trained = whole
    assert configs.load(folder / "config.yaml") == trained.config
    found = metrics.read(folder)
    assert [r["update"] for r in found] == list(range(1, 13))
    assert found[-1]["episodes"] == 12 * 256
    wanted = {"reward_mean", "p_cooperate", "p_defect", "p_illegal", "action_types", "kl"}
    wanted |= {"kl_coef", "policy_loss", "value_loss", "entropy", "seconds"}
    for record in found:
        assert wanted <= set(record)
        assert sum(record["action_types"].values()) == pytest.approx(1, abs=1e-5)
        parts = record["p_cooperate"], record["p_defect"], record["p_illegal"]
        assert sum(parts) == pytest.approx(1, abs=1e-5)
    assert list((folder / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["10", "12", "5"]
    assert found[-1]["p_illegal"] < found[0]["p_illegal"]


def test_events_hold_the_same_numbers(whole):
    folder, _ = whole
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format's writer)

    data = b"".join(path.read_bytes() for path in (folder / "tensorboard").glob("events*"))
    values, offset = {}, 0
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 8], "little")
        event = event_pb2.Event.FromString(data[offset + 12 : offset + 12 + size])
        offset += size + 16
        for value in event.summary.value:
            values[value.tag, event.step] = value.simple_value
    for record in metrics.read(folder):
        stored = values["reward_mean", record["update"]]
        assert stored == pytest.approx(record["reward_mean"], rel=1e-6)
        share = values["action_types/D_after_C", record["update"]]
        assert share == pytest.approx(record["action_types"]["D|C"], rel=1e-6)


class StopAfter:
    """Sends this process a signal while an update is under way, as a scheduler would."""

    def __init__(self, monkeypatch, update, number):
        to_record = metrics.to_record

        def spy(current, *rest, **named):
            if current == update:
                os.kill(os.getpid(), number)
            return to_record(current, *rest, **named)

        monkeypatch.setattr(metrics, "to_record", spy)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_uninterrupted(whole, tmp_path, monkeypatch, number):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        StopAfter(patch, 7, number)
        stopped = fit_agent(make_config(), folder, say=quiet)
    assert stopped.interrupted == number
    assert int(stopped.state.update) == 7
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 7
    # What a crash after the checkpoint would have left: lines newer than it.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics.read(folder)[-1] | {"update": 8}) + '\n{"update": 9, "ep')
    resumed = fit_agent(make_config(), folder, resume=True, say=quiet)
    assert resumed.interrupted is None
    assert records(folder) == records(whole[0])  # bit-equal
    chex.assert_trees_all_equal(resumed.state, whole[1].state)


VARIANTS = {
    "learner": ["--env.opponent", "learner", "--reward.name", "game"],
    "schedule": [
        "--reward.name",
        "game",
        "--reward.then",
        "utilitarian",
        "--reward.switch_at",
        "4",
    ],
    "paper": ["--preset", "paper", "--ppo.minibatches", "1", "--env.opponent", "random"],
    "paper learner": ["--preset", "paper", "--ppo.minibatches", "1", "--env.opponent", "learner"],
    "payoff draws": ["--env.payoff_draws", "4", "--reward.name", "game"],
    "linear": ["--reward.then", "utilitarian", "--reward.transition", "linear"],
    "memory": ["--env.memory", "2", "--env.blank_start", "true", "--env.noise", "0.1"],
    "crowd": ["--env.game", "public-goods(3)", "--env.opponent", "noisy(conditional, 0.1)"],
    "exact": [
        *("--ppo.estimator", "exact", "--ppo.minibatches", "1"),
        *("--ppo.normalise_rewards", "false", "--ppo.gamma", "0.9"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_training_resumes_to_the_last_bit(variant, tmp_path, monkeypatch):
    flags = VARIANTS[variant]
    complete = fit_agent(make_config(*flags), say=quiet)
    with monkeypatch.context() as patch:
        StopAfter(patch, 7, signal.SIGINT)
        fit_agent(make_config(*flags), tmp_path / "run", say=quiet)
    resumed = fit_agent(make_config(*flags), tmp_path / "run", resume=True, say=quiet)
    assert int(resumed.state.update) == 12
    chex.assert_trees_all_equal(resumed.state, complete.state)


def test_a_schedule_trains_as_its_parts_would():
    """Before the switch the run is the first reward's; after it the second reward moves it."""
    flags = VARIANTS["schedule"]
    both = fit_agent(make_config(*flags), say=quiet).history
    first = fit_agent(make_config("--reward.name", "game"), say=quiet).history
    strip = lambda history: [{k: v for k, v in r.items() if k != "seconds"} for r in history]
    assert strip(both)[:4] == strip(first)[:4]
    assert both[4]["reward_mean"] > 1.5 * first[4]["reward_mean"]
    assert both[4]["action_types"] == first[4]["action_types"]
    assert both[5]["action_types"] != first[5]["action_types"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward.switch_at", "3"], "reward.switch_at: needs reward.then"),
        (["--reward.then", "game", "--reward.switch_at", "12"], "reward.switch_at: must be less"),
        (["--reward.then", "kindness"], "reward.then: unknown name 'kindness'"),
        (["--env.opponent", "lerner"], "unknown name 'lerner'"),
        (["--prompt.random_labels", "3"], "prompt.random_labels: a tabular policy has no tokens"),
        (["--ppo.sample_with_dropout", "true"], "ppo.sample_with_dropout: needs ppo.level token"),
        (["--ppo.level", "token"], "ppo.minibatches: must be 1 with ppo.level token"),
        (["--evaluation.suites", "[labels, all, none]"], "evaluation.suites: unknown name 'none'"),
        (["--evaluation.labels", "[a, ab]"], "evaluation.labels: 'a' and 'ab' cannot be told"),
        (["--prompt.wording", "nothing"], "prompt.wording: unknown name 'nothing'"),
    ],
)
def test_impossible_combinations_stop_at_once(flags, message):
    with pytest.raises(UserError, match=message):
        fit_agent(make_config(*flags), say=quiet)


def test_the_whole_state_is_restored(whole):
    """Value head, optimiser, KL weight and reward normaliser included."""
    folder, trained = whole
    config, state = trained.config, trained.state
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: state), {"": config})
    assert np.abs(np.asarray(restored.players.trainable["values"])).max() > 0.01
    assert float(restored.players.moments.seen[0]) == 12 * 256 * 5
    assert float(restored.players.kl_coef[0]) != config.ppo.kl_coef
    chex.assert_trees_all_equal(restored, state)


@pytest.mark.slow
def test_seeds_differ_and_repeat():
    config = make_config("--updates", "3")
    first = fit_agent(config, say=quiet).history
    again = fit_agent(config, say=quiet).history
    other = fit_agent(dataclasses.replace(config, seed=1), say=quiet).history
    assert [r["loss"] for r in first] == [r["loss"] for r in again]
    assert [r["loss"] for r in first] != [r["loss"] for r in other]


def test_a_run_is_never_overwritten(whole):
    folder, _ = whole
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        fit_agent(make_config(), folder, say=quiet)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_checkpoint_of_another_configuration(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(UserError, match=r"another configuration; it differs in ppo\.clip"):
        fit_agent(make_config("--ppo.clip", "0.3"), folder, resume=True, say=quiet)
    assert records(folder) == records(whole[0])


def test_a_damaged_checkpoint(whole, tmp_path, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    for path in (folder / "checkpoints" / "12").rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"12 is damaged"):
        evaluate_agent(folder, update=12)
    evaluate_agent(folder, protocols=["exact"])
    assert "12 is damaged" in (said := capsys.readouterr().out)
    assert "going back to update 10" in said
    again = fit_agent(make_config(), folder, resume=True, say=quiet)
    chex.assert_trees_all_equal(again.state, whole[1].state)
    assert (folder / "damaged" / "12").is_dir()
    assert [line["update"] for line in metrics.read(folder)] == list(range(1, 13))


def test_a_run_killed_before_its_first_checkpoint_resumes(whole, tmp_path, monkeypatch):
    def die(*_):
        raise RuntimeError("power cut")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "finite", die)
        with pytest.raises(RuntimeError, match="power cut"):
            fit_agent(make_config(), folder, say=quiet)
    fit_agent(make_config(), folder, resume=True, say=quiet)
    assert records(folder) == records(whole[0])


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match="holds no run to resume"):
        fit_agent(make_config(), tmp_path / "none", resume=True, say=quiet)
    assert not (tmp_path / "none").exists()


def test_a_run_without_its_checkpoints_begins_again_and_says_so(tmp_path):
    said = []
    fit_agent(make_config(), tmp_path / "run", say=quiet)
    kept = records(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    fit_agent(make_config(), tmp_path / "run", resume=True, say=said.append)
    assert f"{tmp_path / 'run'} holds no checkpoints; training begins again" in said
    assert records(tmp_path / "run") == kept


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, monkeypatch):
    finite, spoiled = metrics.finite, []

    def spoil(values, num_members):
        spoiled.append(values["loss"])
        if len(spoiled) == 4:
            values = values | {"loss": np.array([np.nan])}
        return finite(values, num_members)

    monkeypatch.setattr(metrics, "finite", spoil)
    folder = tmp_path / "run"
    with pytest.raises(
        UserError, match="update 4: .* not finite numbers; the checkpoint of update 3 is kept"
    ):
        fit_agent(make_config("--checkpoint_every", "1"), folder, say=quiet)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 3
    assert metrics.read(folder)[-1]["update"] == 3


def test_parameters_that_overflow_are_never_saved(tmp_path):
    config = make_config("--ppo.learning_rate", "1e38", "--checkpoint_every", "1")
    with pytest.raises(UserError, match="update 1: .* the checkpoint of update 0 is kept"):
        fit_agent(config, tmp_path / "run", say=quiet)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env.game", "ipdd"], "^env.game: unknown name 'ipdd' .did you mean 'ipd'"),
        (["--env.opponent", "tft"], "opponent: unknown name 'tft'.*tit-for-tat"),
        (["--reward.name", "virtue"], "reward.name: unknown name 'virtue'"),
        (["--evaluation.games", "[all, x]"], "evaluation.games: unknown name 'x'"),
        (["--prompt.labels", "[A, AB]"], "prompt.labels: .*prefix"),
        (["--model.source", "nowhere.gguf"], "model.source"),
    ],
)
def test_bad_names_leave_no_folder(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        fit_agent(make_config(*flags), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mine", "opponent"),
    [
        ("{CC: [1, 2], CD: [0, 0.5], DC: [3, 0], DD: [1, 1]}", "tit-for-tat"),
        ("{C: [0, 2, 3], D: [1, 4, 5]}", "conditional"),
    ],
)
def test_games_from_the_configuration(mine, opponent):
    flags = ["--games.mine", mine, "--env.game", "mine", "--env.opponent", opponent]
    trained = fit_agent(make_config(*flags, "--updates", "1"), say=quiet)
    assert "mine" in evaluate_agent(trained, protocols=["exact"])["suites"]["trained"]
    assert "mine" not in games.GAMES


@pytest.mark.slow
def test_opponents_from_the_configuration():
    """The alternator under another name is met in training and in evaluation."""
    described = "{cooperate: [1, 0], transitions: [[1, 1, 0, 0], [1, 1, 0, 0]]}"
    flags = ["--opponents.mine", described, "--updates", "2"]
    mine = fit_agent(make_config(*flags, "--env.opponent", "mine"), say=quiet)
    known = fit_agent(make_config("--updates", "2", "--env.opponent", "alternator"), say=quiet)
    assert mine.history[-1]["loss"] == known.history[-1]["loss"]
    found = evaluate_agent(mine, ["ipd"], ["mine", "alternator"], protocols=["exact"])
    met = found["suites"]["trained"]["ipd"]["policies"]["tuned"]["opponents"]
    assert met["mine"] == met["alternator"]
    assert "mine" not in opponents.OPPONENTS


@pytest.mark.slow
def test_few_programs_and_none_after_the_first_update(monkeypatch, tmp_path):
    """Counts every backend compilation of a run, the persistent cache's hits included."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    at_update = {}
    to_record = metrics.to_record

    def spy(current, *rest, **named):
        at_update[current] = len(compiled)
        return to_record(current, *rest, **named)

    monkeypatch.setattr(metrics, "to_record", spy)
    try:
        fit_agent(make_config("--seed", "3"), tmp_path / "run", say=quiet)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert at_update[1] >= 3  # the counter works
    assert len(compiled) <= 10, len(compiled)
    assert len(compiled) == at_update[1]


def test_training_works_outside_the_main_thread():
    from threading import Thread

    results = []
    config = make_config("--updates", "2")
    thread = Thread(target=lambda: results.append(fit_agent(config, say=quiet)))
    thread.start()
    thread.join()
    assert len(results[0].history) == 2


def test_run_folder_must_be_a_folder(tmp_path):
    Path(tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to"):
        check_run_folder(tmp_path / "file", False)
