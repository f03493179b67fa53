"""Two groups of runs beside each other, against scipy's bootstrap and sums by hand."""

import json
import shutil

import numpy as np
import pytest
from run_files import quiet
from scipy import stats

from jaxmoral import compare as command
from jaxmoral import config as configs
from jaxmoral.api import train_agent
from jaxmoral.errors import UserError
from jaxmoral.measuring.comparing import compare
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.keeping import write_json
from jaxmoral.measuring.runs import read_run

FLAGS = ["--model.source", "tabular", "--updates", "2", "--ppo.learning_rate", "0.3"]
FLAGS += ["--env.episodes", "32"]


def trained(folder, reward, seeds):
    for seed in seeds:
        flags = [*FLAGS, "--reward.name", reward, "--seed", str(seed)]
        one = train_agent(configs.load(None, flags), folder / f"{reward}-seed{seed}", say=quiet)
        write_json(
            evaluate_agent(one, ["ipd"], protocols=["exact"]),
            folder / f"{reward}-seed{seed}" / "evaluation.json",
        )
    return [read_run(folder / f"{reward}-seed{seed}") for seed in seeds]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "game": trained(folder, "game", range(4)),
        "utilitarian": trained(folder, "utilitarian", range(4)),
        "others": trained(folder, "deontological", range(5, 9)),
    }


def cooperation(runs):
    found = [run.evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"] for run in runs]
    return np.array([one["opponents"]["random"]["exact"]["outcomes"]["C"] for one in found])


@pytest.mark.slow
@pytest.mark.parametrize("other", ["utilitarian", "others"])
def test_differences_and_intervals(groups, other):
    found = compare(groups["game"], groups[other])
    row = found.table[found.table["metric"] == "outcomes/C"].iloc[0]
    a, b = cooperation(groups["game"]), cooperation(groups[other])
    assert row["a"] == pytest.approx(a.mean())
    assert row["difference"] == pytest.approx(a.mean() - b.mean())
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert row["effect"] == pytest.approx((a.mean() - b.mean()) / pooled)
    paired = other == "utilitarian"
    assert found.seeds == ([0, 1, 2, 3] if paired else [])
    samples = (
        ((a - b,), np.mean) if paired else ((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis))
    )
    expected = stats.bootstrap(*samples, method="percentile", n_resamples=20_000, rng=1)
    low, high = expected.confidence_interval
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_who_stands_twice_is_not_paired(groups):
    mixed = [*groups["game"][:2], *groups["utilitarian"][:2]]
    assert compare(mixed, mixed).seeds == []


def test_what_one_run_was_not_tested_in_has_no_row(groups):
    def tested_further(run):
        evaluation = alike(run.evaluation, 0.5)
        opponents = evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"]["opponents"]
        opponents["bully"] = opponents["random"]
        return run._replace(evaluation=evaluation)

    ours, others = (list(map(tested_further, groups[name])) for name in ("game", "utilitarian"))
    assert "bully" in set(compare(ours, others).table["opponent"])
    ours[-1] = groups["game"][-1]
    left = set(compare(ours, others).table["opponent"])
    assert "random" in left
    assert "bully" not in left


def test_two_seeds_say_nothing(groups):
    found = compare(groups["game"][:2], groups["utilitarian"][:2])
    assert found.few
    assert found.table[["low", "high"]].isna().all().all()


def test_several_runs_of_one_seed_are_no_seeds(groups):
    ours = [groups[reward][0] for reward in ("game", "utilitarian")] * 2
    assert compare(ours, groups["others"]).few


def test_what_cannot_be_compared_is_refused(groups):
    untested = [run._replace(evaluation=None) for run in groups["game"]]
    with pytest.raises(UserError, match="--with: no run was evaluated"):
        compare(groups["game"], untested)


def test_a_run_whose_evaluation_is_old_has_no_part_in_the_pairs(groups, monkeypatch, capsys):
    """The seeds that are left differ, so nothing is paired."""
    (*ours, stale), others = groups["game"], groups["utilitarian"]
    kept = compare(ours, others)
    text = (stale.folder / "evaluation.json").read_text()
    with (stale.folder / "evaluation.json").open("w") as file:
        json.dump(json.loads(text) | {"update": 1}, file)
    folders = [[str(run.folder) for run in runs] for runs in (groups["game"], others)]
    monkeypatch.setattr("sys.argv", ["compare", *folders[0], "--with", *folders[1]])
    try:
        command.main()
    finally:
        (stale.folder / "evaluation.json").write_text(text)
    said = capsys.readouterr()
    assert "is of update 1, the run has made 2 updates" in said.err
    assert "3 and 4 runs, unpaired" in said.out
    assert kept.seeds == []
    assert (kept.table["low"] <= kept.table["difference"]).all()
    assert (kept.table["difference"] <= kept.table["high"]).all()


def test_copies_of_a_run_are_no_further_seeds(groups, tmp_path, monkeypatch, capsys):
    for number in range(4):
        for name in ("game", "utilitarian"):
            shutil.copytree(groups[name][number % 2].folder, tmp_path / name / str(number))
    given = [str(tmp_path / "game"), "--with", str(tmp_path / "utilitarian")]
    monkeypatch.setattr("sys.argv", ["compare", *given])
    command.main()
    said = capsys.readouterr()
    assert said.err.count("is the same experiment and seed as") == 4
    assert "2 and 2 runs: fewer than 3 seeds" in said.out


def test_runs_that_count_other_penalties_are_named(groups, monkeypatch, capsys):
    run, other = groups["game"][0].folder, groups["utilitarian"][0].folder
    text = (other / "evaluation.json").read_text()
    (other / "evaluation.json").write_text(json.dumps(json.loads(text) | {"xi": 4.0}))
    monkeypatch.setattr("sys.argv", ["compare", str(run), "--with", str(other)])
    try:
        command.main()
    finally:
        (other / "evaluation.json").write_text(text)
    assert "note: the runs differ in penalties (xi), 3.0, 4.0\n" in capsys.readouterr().out


def test_runs_that_are_equal_have_no_effect_size(groups):
    """The mean of three equal numbers may be another number in its last digit."""
    low, high = (
        [one._replace(evaluation=alike(one.evaluation, value)) for one in groups["game"][:3]]
        for value in (0.1, 0.3)
    )
    found = compare(low, high).table
    row = found[found["metric"] == "outcomes/C"].iloc[0]
    assert row["difference"] == pytest.approx(-0.2)
    assert np.isnan(row["effect"])


def alike(evaluation, value):
    """The same evaluation with other shares of C."""
    found = json.loads(json.dumps(evaluation))
    for measured in found["suites"]["trained"]["ipd"]["policies"]["tuned"]["opponents"].values():
        measured["exact"]["outcomes"]["C"] = value
    return found


def test_a_group_of_several_experiments_is_named(groups, monkeypatch, capsys):
    mixed = [groups["game"][0].folder, groups["utilitarian"][1].folder]
    alike = [one.folder for one in groups["game"][2:]]
    monkeypatch.setattr("sys.argv", ["compare", *map(str, [*mixed, "--with", *alike])])
    command.main()
    (note,) = [line for line in capsys.readouterr().out.split("\n") if line.startswith("note")]
    assert "game-seed0 and others differ in more than the seed: " in note
    assert "utilitarian" in note


@pytest.mark.slow
def test_the_command(groups, tmp_path, monkeypatch, capsys):
    folder = groups["game"][0].folder.parent
    ours, others = (sorted(map(str, folder.glob(f"{name}-*"))) for name in ("game", "utilitarian"))
    given = [*ours, "--with", *others, "--output-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["compare", *given])
    command.main()
    said = capsys.readouterr().out
    assert "4 and 4 runs, paired by seed (0, 1, 2, 3)" in said
    assert "cooperation" in said
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "outcomes/C" in (tmp_path / "comparison.csv").read_text()
