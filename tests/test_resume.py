"""Resuming: for longer, without the first adapter's folder, and what is refused before loading."""

import argparse
import json
import shutil

import chex
import numpy as np
import pytest
import safetensors.numpy
from run_files import content, quiet, records

from jaxmoral import config as configs
from jaxmoral import train
from jaxmoral.api import train_agent, train_population
from jaxmoral.errors import UserError
from jaxmoral.learning import metrics, training
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.saved import load_trained
from jaxmoral.measuring.runs import read_run

FLAGS = ["--model.source", "tabular", "--env.episodes", "64", "--ppo.learning_rate", "0.2"]
FLAGS += ["--checkpoint_every", "5", "--ppo.epochs", "2"]
STEADY = ["--ppo.final_entropy_coef", "1.0"]  # what does not depend on the number of updates


def make_config(*flags):
    return configs.load(None, [*FLAGS, *flags])


def best(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.best()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        STEADY,
        [*STEADY, "--env.opponent", "learner", "--ppo.normalise_rewards", "true"],
        [*STEADY, "--env.payoff_draws", "4", "--ppo.estimator", "exact"],
        [*STEADY, "--reward.then", "game", "--reward.switch_at", "1"],
        ["--ppo.level", "token", "--env.streams", "numpy"],  # has no entropy term
    ],
)
def test_a_run_that_goes_on_longer_is_a_longer_run(flags, tmp_path):
    whole = train_agent(make_config(*flags, "--updates", "10"), tmp_path / "whole", say=quiet)
    folder, said = tmp_path / "run", []
    train_agent(make_config(*flags, "--updates", "5"), folder, say=quiet)
    stored = configs.load(folder / "config.yaml", ["--updates", "10"])
    longer = train_agent(stored, folder, resume=True, say=said.append)
    assert "10 updates instead of 5; the same as a run of 10" in said[0]
    chex.assert_trees_all_equal(longer.state, whole.state)
    assert records(folder) == records(tmp_path / "whole")
    assert configs.load(folder / "config.yaml") == whole.config == longer.config
    assert best(folder) == best(tmp_path / "whole")


@pytest.mark.slow
def test_a_longer_run_is_read_at_every_update(tmp_path):
    folder = tmp_path / "run"
    train_agent(make_config(*STEADY, "--updates", "5"), folder, say=quiet)
    longer = make_config(*STEADY, "--updates", "10")
    train_agent(longer, folder, resume=True, say=quiet)
    for update in (5, "best", None):
        load_trained(folder, update)
    again = train_agent(longer, folder, resume=True, say=quiet)  # at its end
    assert again.history == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "ppo.final_entropy_coef depends"),
        ([*STEADY, "--ppo.learning_rate_schedule", "linear"], "ppo.learning_rate_schedule depends"),
        ([*STEADY, "--reward.then", "game"], "reward.switch_at depends"),
        (
            ["--reward.then", "game", "--reward.transition", "linear"],
            "ppo.final_entropy_coef, reward.transition depend on",
        ),
    ],
)
def test_a_schedule_that_depends_on_the_length_is_named(flags, named, tmp_path, monkeypatch):
    folder, said = tmp_path / "run", []
    train_agent(make_config(*flags, "--updates", "4"), folder, say=quiet)
    before = content(folder)
    for longer in (
        make_config(*flags, "--updates", "8"),
        configs.load(folder / "config.yaml", ["--updates", "8"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(training, "make_agent", pytest.fail)
            with pytest.raises(UserError, match=f"one of 4, and {named}.* --extend goes on"):
                train_agent(longer, folder, resume=True, say=quiet)
    assert content(folder) == before
    trained = train_agent(longer, folder, resume=True, say=said.append, extend=True)
    assert "not what a run of 8 would have been" in said[0]
    assert int(trained.state.update) == configs.load(folder / "config.yaml").updates == 8
    coefficients = [record["entropy_coef"] for record in metrics.read(folder)]
    final = trained.config.ppo.final_entropy_coef
    expected = [1 + (final - 1) * done / (4 if done < 4 else 8) for done in range(8)]
    np.testing.assert_allclose(coefficients, expected, rtol=1e-6)
    assert trained.config.reward.switch_at in (None, 2)  # what was switched stays so


def test_a_run_is_not_made_shorter(tmp_path):
    train_agent(make_config("--updates", "4"), tmp_path / "run", say=quiet)
    with pytest.raises(UserError, match="is one of 4 updates; 3 are fewer"):
        train_agent(make_config("--updates", "3"), tmp_path / "run", resume=True, say=quiet)


def told(folder, **said):
    """The arguments of `python -m jaxmoral.train`."""
    usual = {"output_dir": folder, "config": None, "dry_run": None}
    return argparse.Namespace(**usual, **{"resume": False, "extend": False, "plugin": []} | said)


def resume(folder, *flags):
    """`python -m jaxmoral.train --resume`."""
    train._run(told(folder, resume=True), list(flags))


@pytest.mark.slow
def test_a_population_goes_on_longer(tmp_path, capsys):
    flags = [*FLAGS, *STEADY, "--seed", "[1, 0]"]
    load = lambda updates: configs.load_members(None, [*flags, "--updates", updates])
    whole = train_population(load("8"), tmp_path / "whole", say=quiet)
    folder = tmp_path / "many"
    train_population(load("4"), folder, say=quiet)
    with pytest.raises(UserError, match=r"differs in reward\.xi"):
        resume(folder, "--updates", "8", "--reward.xi", "5")
    # As if writing the members' files had been cut short: one of them says 8 already.
    shutil.copy(tmp_path / "whole" / "seed=1" / "config.yaml", folder / "seed=1")
    resume(folder)
    assert "8 updates instead of 4" in capsys.readouterr().out
    assert records(folder) == records(tmp_path / "whole")
    for name, trained in whole.items():
        again = load_trained(folder / name)
        assert again.config == trained.config
        chex.assert_trees_all_equal(again.trainable, trained.trainable)


@pytest.mark.slow
def test_members_in_another_order_stay_who_they_are(tmp_path):
    load = lambda seeds: configs.load_members(None, [*FLAGS, "--updates", "4", "--seed", seeds])
    folder = tmp_path / "many"
    before = train_population(load("[1, 0]"), folder, say=quiet)
    after = train_population(load("[0, 1]"), folder, resume=True, say=quiet)
    for name, trained in before.items():
        chex.assert_trees_all_equal(after[name].state, trained.state)


def test_extend_needs_resume(tmp_path):
    with pytest.raises(UserError, match="--extend: needs --resume"):
        train._run(told(tmp_path / "run", extend=True), FLAGS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ppo.clip", "0.3"], r"differs in ppo\.clip"),
        (["--prompt.persona", "deontological"], r"differs in prompt\.persona"),
        (["--reward.name", "game", "--seed", "2"], r"differs in reward\.name, seed"),
        (["--env.opponent", "learner"], r"differs in env\.opponent"),
        (["--model.sha256", "a" * 64], r"differs in model\.sha256"),
        (["--lora.adapter", "folder"], r"differs in lora\.adapter"),
        (["--seed", "[0, 1]"], "belongs to a single agent, not to the members seed=0; seed=1"),
    ],
)
def test_differences_are_found_before_a_model_is_loaded(flags, message, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    train_agent(make_config("--updates", "1"), folder, say=quiet)
    before = content(folder)
    monkeypatch.setattr(training, "make_agent", pytest.fail)
    members = configs.load_members(None, [*FLAGS, "--updates", "1", *flags])
    with pytest.raises(UserError, match=message):
        train_population(members, folder, resume=True, say=quiet)
    assert content(folder) == before


def write_adapter(folder, sizes):
    """An adapter of rank 3 on the queries, in PEFT's files."""
    random = np.random.default_rng(0)
    outputs = sizes["num_attention_heads"] * sizes["head_dim"]
    shapes = {"lora_A": (3, sizes["hidden_size"]), "lora_B": (outputs, 3)}
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.{half}.weight": (
            0.1 * random.standard_normal(shape, np.float32)
        )
        for layer in range(sizes["num_hidden_layers"])
        for half, shape in shapes.items()
    }
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def test_the_folder_of_the_first_adapter_is_not_needed(shallow, tmp_path):
    """Neither by the stored configuration, nor by the flags that began the run."""
    adapter = tmp_path / "adapter"
    write_adapter(adapter, json.loads((shallow / "config.json").read_text()))
    flags = [*("--model.source", str(shallow), "--prompt.labels", "[X, Y]"), *STEADY]
    flags += ["--ppo.learning_rate", "0.01", "--checkpoint_every", "1"]
    flags += ["--ppo.estimator", "exact", "--lora.adapter", str(adapter)]
    longer = configs.load(None, [*flags, "--updates", "2"])
    whole = train_agent(longer, tmp_path / "whole", say=quiet)
    assert (longer.lora.rank, whole.config.lora.rank) == (8, 3)  # the adapter's, not the default
    folder = tmp_path / "run"
    train_agent(configs.load(None, [*flags, "--updates", "1"]), folder, say=quiet)
    shutil.rmtree(adapter)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for where, config in (
        (folder, configs.load(folder / "config.yaml", ["--updates", "2"])),
        (copy, longer),
    ):
        resumed = train_agent(config, where, resume=True, say=quiet)
        chex.assert_trees_all_equal(resumed.state, whole.state)
        assert resumed.config == whole.config
    # What an update begins with, computed by the update itself.
    labels = [
        json.loads((folder / "checkpoints" / str(update) / "about" / "metadata").read_text())
        for update in (0, 1)
    ]
    for label, record in zip(labels, whole.history, strict=True):
        assert label["rewards"] == [pytest.approx(record["reward_mean"], abs=1e-5)]


@pytest.mark.slow
def test_a_run_made_from_python_is_as_complete_as_the_commands(tmp_path):
    train_agent(make_config("--updates", "2"), tmp_path / "one", say=quiet)
    assert (tmp_path / "one" / "action_types.png").stat().st_size > 10_000
    members = configs.load_members(None, [*FLAGS, "--updates", "2", "--seed", "[0, 1]"])
    together = train_population(members, tmp_path / "many", say=quiet)
    for name, trained in together.items():
        folder = tmp_path / "many" / name
        assert (folder / "action_types.png").stat().st_size > 10_000
        assert metrics.read(folder) == trained.history == read_run(folder).history
