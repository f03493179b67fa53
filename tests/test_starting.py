"""Starting from another run: its adapter is trained further, or measured on its base."""

import shutil
from pathlib import Path

import chex
import pytest
import tiny_model
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.api import train_agent
from jaxmoral.errors import UserError
from jaxmoral.learning.run_folder import named_checkpoint
from jaxmoral.learning.saved import load_state, load_trained
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.source import load_source

FLAGS = ["--prompt.labels", "[X, Y]", "--ppo.estimator", "exact", "--ppo.learning_rate", "0.01"]
FLAGS += ["--checkpoint_every", "1", "--ppo.final_entropy_coef", "1.0", "--tracker", "none"]
LORA = ["--lora.rank", "3", "--lora.alpha", "6", "--lora.targets", "[q]"]
EXACT = {"games": ["ipd"], "protocols": ["exact"]}


@pytest.fixture(scope="module")
def first(shallow, tmp_path_factory):
    """A run of two updates, and flags for another one on the same base."""
    folder, flags = (
        tmp_path_factory.mktemp("runs") / "first",
        ["--model.source", str(shallow), *FLAGS],
    )
    train_agent(configs.load(None, [*flags, *LORA, "--updates", "2"]), folder, say=quiet)
    return folder, flags


def test_training_goes_on_from_a_runs_adapter(first, tmp_path):
    given, flags = first
    source = shutil.copytree(given, tmp_path / "source")
    flags = [*flags, "--lora.adapter", str(source)]
    folder = tmp_path / "run"
    begun = train_agent(configs.load(None, [*flags, "--updates", "1"]), folder, say=quiet)
    lora = begun.config.lora
    assert (lora.adapter, lora.rank, lora.alpha, lora.targets) == (f"{source}@2", 3, 6.0, ("q",))
    before = load_state(folder, begun.config, agent=begun.agent, update=0).players.trainable
    theirs = load_trained(source).state.players.trainable
    chex.assert_trees_all_equal(before["adapter"], theirs["adapter"])
    with pytest.raises(AssertionError):  # it was trained on
        chex.assert_trees_all_equal(begun.state.players.trainable["adapter"], theirs["adapter"])
    shutil.rmtree(source)
    resumed = train_agent(configs.load(None, [*flags, "--updates", "2"]), folder, True, quiet)
    assert int(resumed.state.update) == 2
    assert resumed.config.lora == lora
    other = configs.load(None, [*flags[:-1], f"{source}@1", "--updates", "3"])
    with pytest.raises(UserError, match=r"differs in lora\.adapter"):
        train_agent(other, folder, True, quiet)


def test_an_adapter_on_its_base_is_the_run(first):
    """Measured at a checkpoint, it does what the run did there."""
    folder, flags = first
    for name, update in ((f"{folder}@1", 1), (str(folder), 2), (f"{folder}@best", "best")):
        loaded = load_source(configs.load(None, [*flags, "--lora.adapter", name]))
        run = load_source(folder, update)
        assert loaded.config.lora.adapter == f"{folder}@{run.update}"
        chex.assert_trees_all_equal(loaded.trained["adapter"], run.trained["adapter"])
    ours, theirs = (evaluate_agent(source, **EXACT)["suites"] for source in (loaded, run))
    assert ours == theirs


def test_what_cannot_be_started_from_is_refused(first, shallow, tmp_path):
    folder, flags = first
    other = tmp_path / "other"
    tiny_model.write(other, **tiny_model.SHALLOW | {"mlp_dim": 96})
    table = tmp_path / "table"
    tabular = ["--model.source", "tabular", "--updates", "1", "--tracker", "none"]
    train_agent(configs.load(None, tabular), table, say=quiet)
    many = tmp_path / "many"
    many.mkdir()
    (many / "members.yaml").write_text("[seed=0, seed=1]")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(folder / "config.yaml", begun)
    for source, adapter, message in (
        (other, folder, f"lora.adapter: the run in {folder}@2 trained {shallow}, with the digest"),
        (shallow, table, "trained a table"),
        (shallow, many, "holds a population; name a member's folder in it: seed=0, seed=1"),
        (shallow, f"{folder}@7", "no checkpoint of update 7 in .*; there are 0, 1, 2"),
        (shallow, tmp_path / "none", "lora.adapter: there is no folder"),
        (shallow, begun, f"lora.adapter: the run in {begun} has no checkpoint yet"),
    ):
        config = configs.load(
            None, [*flags, "--model.source", str(source), "--lora.adapter", str(adapter)]
        )
        with pytest.raises(UserError, match=message):
            train_agent(config, tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def test_a_name_with_a_checkpoint(tmp_path):
    assert named_checkpoint("runs/a") == (Path("runs/a"), None)
    assert named_checkpoint("runs/a@40") == (Path("runs/a"), 40)
    assert named_checkpoint("runs/a@best") == (Path("runs/a"), "best")
    assert named_checkpoint("runs/a@v1") == (Path("runs/a@v1"), None)
    (tmp_path / "a@1").mkdir()
    assert named_checkpoint(f"{tmp_path}/a@1") == (tmp_path / "a@1", None)
