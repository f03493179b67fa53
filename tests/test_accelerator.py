"""The check of accelerators on the CPU: it measures, predicts, says what fails, and its page."""

import json
from pathlib import Path
from types import SimpleNamespace

import accelerator_check
import jax
import pytest
import tiny_model
from accelerator import learning, page, parity, speed
from accelerator.cases import TOLERANCES
from accelerator.stand_in import cast, name_of

ROOT = Path(__file__).parents[1]
CPU = jax.devices("cpu")[0]


def test_the_page_is_that_of_the_results():
    results = json.loads((ROOT / "docs" / "accelerator.json").read_text())
    assert (ROOT / "docs" / "accelerator.md").read_text() == page.page(results)
    if results["device"]["platform"] == "cpu":
        assert "Not measured" in page.page(results)
        assert not {"speed", "learning"} & results.keys()


@pytest.fixture(scope="module")
def small():
    return tiny_model.make(**parity.FAMILIES["gemma3"], num_layers=2, global_layers=(True, False))


@pytest.mark.slow
def test_on_one_device_rounding_is_all_that_differs(small):
    found = parity.compare(small, CPU, CPU)
    assert [*found] == ["bfloat16"]
    assert 0 < found["bfloat16"]["log_prob"] < 0.2
    assert 0 < found["bfloat16"]["gradient"] < 0.1
    assert page.failures({"parity": {"gemma3": found}}) == []
    worse = found["bfloat16"] | {"log_prob": found["bfloat16"]["log_prob"] + 0.04}
    failed = page.failures({"parity": {"gemma3": {"bfloat16": worse}}})
    assert failed == ["gemma3 in bfloat16 is too far from the CPU"]
    broken = {"device": {"failed": "no driver"}, "speed": {"8B": {"failed": "no memory"}}}
    broken["learning"] = {"at_optimum": False}
    assert page.failures({"speed": broken["speed"] | {"2B": {"seconds": 1.0}}}) == []
    assert page.failures(broken) == [
        "device: no driver",
        "speed: no model could be measured",
        "learning: the reward's optimum was not reached",
    ]


@pytest.mark.slow
def test_a_wrong_weight_is_far(small):
    """What a device would do that reads one layer wrongly."""
    right = parity.answers(small, small.weights, CPU)

    def damaged(path, leaf):
        return leaf.at[0].multiply(1.05) if name_of(path) == "blocks.o" else leaf

    wrong = parity.answers(small, jax.tree_util.tree_map_with_path(damaged, small.weights), CPU)
    found = parity.difference(wrong, right)
    assert found["log_prob"] > TOLERANCES["float32"][0]
    assert found["gradient"] > TOLERANCES["float32"][1]
    results = {"parity": {"gemma3": {"float32": found}}}
    assert page.failures(results) == ["gemma3 in float32 is too far from the CPU"]


def test_norms_stay_in_float32(small):
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(cast(small.weights, "bfloat16"))}
    assert kinds == {"float32", "bfloat16"}


@pytest.mark.slow
def test_an_update_is_measured_beside_what_is_predicted():
    found = speed.measure("Gemma 2 2B, NF4", tiny=True, repeats=2)
    assert 0 < found["fastest"] <= found["seconds"]
    assert found["compile_seconds"] > 0
    assert found["peak_bytes"] is None  # a CPU does not tell
    assert "largest_population" not in found["predicted"]
    told = {"device": {"platform": "gpu", "count": 1, "kind": "one", "bytes": 2**30, "rates": {}}}
    told["device"] |= {"python": "3", "jax": "0"}
    shown = page.page(told | {"speed": {"a": found, "b": {"failed": "does not fit"}}})
    assert "| a | " in shown
    assert "| b | does not fit |" in shown


def test_the_prediction_grows_with_members_and_ends_where_memory_does():
    name = "Gemma 2 2B, 20 members"
    found = speed.on_paper(name, 2**30, tiny=True)
    largest = found["largest_population"]
    assert 0 < largest < speed.MOST_MEMBERS
    few = speed.on_paper(name, found["bytes"], tiny=True)
    assert few["largest_population"] == 20
    assert speed.on_paper(name, found["bytes"] - 1, tiny=True)["largest_population"] == 19


@pytest.mark.slow
def test_a_run_to_the_optimum_says_whether_it_is_there():
    found = learning.measure(tiny=True)
    assert found["model"] == "tabular"
    assert found["at_optimum"]
    assert min(found["better_move"], found["legal"]) > 0.95
    assert not learning.measure(tiny=True, updates=1)["at_optimum"]


def test_a_command_measures_in_a_process_and_goes_on_past_a_failure(monkeypatch, tmp_path, capsys):
    said = iter(
        [
            SimpleNamespace(returncode=1, stdout="", stderr="jax: RESOURCE_EXHAUSTED: 9 GB\nbye"),
            SimpleNamespace(returncode=0, stdout='noise\n{"rounds_per_second": 5e6}\n', stderr=""),
        ]
    )
    run = accelerator_check.subprocess.run

    def first_really(command, **how):
        if "device" in command:
            assert how["env"]["JAX_PLATFORMS"] == "cpu"
            return run(command, **how)
        return next(said)

    monkeypatch.setattr(accelerator_check.subprocess, "run", first_really)
    asked = ["--parts", "learning", "rollouts", "--devices", "cpu", "--tiny"]
    with pytest.raises(SystemExit, match="learning: does not fit in the device's memory"):
        accelerator_check.main([*asked, "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "learning: does not fit in the device's memory." in shown
    assert "5 million rounds a second" in shown
    assert (tmp_path / "accelerator.md").read_text() == shown
    assert json.loads((tmp_path / "accelerator.json").read_text())["device"]["platform"] == "cpu"


def test_on_a_cpu_speed_is_predicted_and_no_more():
    asked = []

    def job(name):
        asked.append(name)
        return {"platform": "cpu"}

    accelerator_check.check(["parity", "speed", "learning"], job, ["a"], False)
    assert asked == ["device", "paper", "parity"]


def test_nothing_begins_without_time():
    assert accelerator_check.in_process("speed:x", 1.0, tiny=True, devices="cpu") == {
        "failed": "no time was left"
    }
