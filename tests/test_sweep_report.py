"""Sweeps over tabular experiments and the page made of them."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from jaxmoral import config as configs
from jaxmoral import sweep as sweeps
from jaxmoral.errors import UserError
from jaxmoral.evaluation import evaluate_agent
from jaxmoral.report import write_report
from jaxmoral.results import rows
from jaxmoral.runs import find_runs, read_run, summarise, tidy

FLAGS = ["--model.source", "tabular", "--ppo.learning_rate", "0.3", "--env.episodes", "128"]
FLAGS += [
    "--updates",
    "6",
    "--checkpoint_every",
    "1",
    "--evaluation.suites",
    "[trained]",
    "--evaluation.games",
    "[ipd, icd]",
]
FLAGS += ["--evaluation.protocols", "[exact, paper]"]


def write(folder, name, text):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    return [
        write(folder, "selfish", "reward: {name: game}"),
        write(folder, "mended", "reward: {name: game, then: deontological}"),
        write(folder, "learner", "reward: {name: utilitarian}\nenv: {opponent: learner}"),
        write(folder, "broken", "reward: {name: kindness}"),
    ]


@pytest.fixture(scope="module")
def swept(experiments, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "sweep"
    failed = sweeps.sweep(experiments, [1, 2], output, FLAGS)
    return output, failed


def test_a_failing_run_does_not_stop_the_others(swept):
    output, failed = swept
    assert set(failed) == {"broken-seed1", "broken-seed2"}
    assert "unknown name 'kindness'" in failed["broken-seed1"]
    names = {path.parent.name for path in output.glob("*/evaluation.json")}
    assert names == {f"{n}-seed{s}" for n in ("selfish", "mended", "learner") for s in (1, 2)}


def test_the_table_is_what_the_evaluations_say(swept):
    output, _ = swept
    table = pd.read_parquet(output / "results.parquet")
    assert len(pd.read_csv(output / "results.csv")) == len(table)
    evaluation = json.loads((output / "mended-seed2" / "evaluation.json").read_text())
    mine = table[table["run"] == "mended-seed2"]
    assert len(mine) == len(list(rows(evaluation)))
    assert set(mine["then"]) == {"deontological"}
    assert set(mine["protocol"]) == {"exact", "paper"}
    one = mine[
        (mine["condition"] == "icd")
        & (mine["policy"] == "tuned")
        & (mine["protocol"] == "paper")
        & (mine["metric"] == "regret/utilitarian/points")
    ]
    said = evaluation["suites"]["trained"]["icd"]["policies"]["tuned"]["opponents"]["random"]
    assert one["value"].tolist() == [said["paper"]["regret"]["utilitarian"]["points"]]
    keys = ["run", "suite", "condition", "policy", "opponent", "protocol", "metric"]
    assert not table.duplicated(keys).any()


def test_what_is_finished_is_left_and_what_was_cut_is_resumed(swept, experiments, monkeypatch):
    output, _ = swept
    before = (output / "selfish-seed1" / "metrics.jsonl").stat().st_mtime_ns
    (output / "mended-seed1" / "evaluation.json").unlink()
    trained = []
    train_agent = sweeps.train_agent
    monkeypatch.setattr(
        sweeps, "train_agent", lambda *a, **k: trained.append(k) or train_agent(*a, **k)
    )
    assert sweeps.sweep(experiments[:3], [1, 2], output, FLAGS) == {}
    assert trained == [{"resume": True}]
    assert (output / "mended-seed1" / "evaluation.json").is_file()
    assert (output / "selfish-seed1" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_crash_is_one_failed_run(experiments, tmp_path, monkeypatch):
    def crash(*arguments, **keywords):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sweeps, "evaluate_agent", crash)
    failed = sweeps.sweep(experiments[:1], [1], tmp_path / "out", FLAGS)
    assert failed == {"selfish-seed1": "RuntimeError: out of memory"}


def test_the_switch_keeps_its_checkpoint_and_changes_the_policy(swept):
    output, _ = swept
    folder = output / "mended-seed1"
    assert read_run(folder).config.reward.switch_at == 3
    reward = [r["rewards"] for u in (3, None) for r in [exact(evaluate_agent(folder, update=u))]]
    assert reward[1]["deontological"] > reward[0]["deontological"]
    with pytest.raises(UserError, match="no checkpoint of update 2 .* there are 3, 4, 5, 6"):
        evaluate_agent(folder, update=2)


def exact(evaluation):
    named = evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"]
    return named["opponents"]["random"]["exact"]


def test_intervals_equal_their_formula():
    values = [1.0, 2.0, 4.0]
    table = pd.DataFrame({"agent": ["a"] * 3 + ["b"], "value": [*values, 7.0]})
    found = summarise(table, ["agent"]).set_index("agent")
    assert found.loc["a", "mean"] == pytest.approx(np.mean(values))
    assert found.loc["a", "interval"] == pytest.approx(1.96 * np.std(values, ddof=1) / 3**0.5)
    assert tuple(found.loc["b", ["mean", "interval", "runs"]]) == (7.0, 0.0, 1)


class Page(HTMLParser):
    """Collects tips, links, addresses and unclosed tags."""

    def __init__(self, text):
        super().__init__()
        self.tips, self.links, self.ids, self.outside, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.tips += [found["data-tip"]] if "data-tip" in found else []
        for key in ("href", "src", "xlink:href"):
            if key in found:
                (self.links if found[key].startswith("#") else self.outside).append(found[key])
        if tag not in ("meta", "br", "path", "use", "rect", "image", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(swept, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "out"
    assert write_report([swept[0]], output) == []
    return output


def test_the_page_is_one_sound_file_that_needs_no_network(report):
    page = Page((report / "index.html").read_text())
    assert page.open == []
    assert page.outside == []
    assert {link[1:] for link in page.links} <= set(page.ids)
    for svg in re.findall(r"<svg.*?</svg>", (report / "index.html").read_text(), re.DOTALL):
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
        assert "#1a1b1c" not in svg


def test_every_figure_is_there_with_its_values(report, swept):
    names = {path.stem for path in (report / "figures").glob("*.png")}
    assert names == {path.stem for path in (report / "figures").glob("*.pdf")}
    assert {"fig2a-training-tit-for-tat", "fig2b-training-learner", "fig12-reward"} <= names
    assert {"fig3a-unlearning-tit-for-tat", "fig20-trained-tit-for-tat-regret"} <= names
    tips = Page((report / "index.html").read_text()).tips
    found = tidy(find_runs([swept[0]])[0])
    chosen = found[
        (found["title"] == "game")
        & (found["condition"] == "icd")
        & (found["policy"] == "tuned")
        & (found["protocol"] == "exact")
        & (found["metric"] == "regret/utilitarian/normalised")
    ]["value"]
    assert any(tip.startswith(f"game, ICD: {chosen.mean():.3f} ±") for tip in tips)


def test_a_broken_run_is_left_out_with_a_line(swept, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(swept[0] / "selfish-seed1", folder / "selfish-seed1")
    shutil.copytree(swept[0] / "selfish-seed2", folder / "selfish-seed2")
    (folder / "selfish-seed2" / "evaluation.json").write_text("{")
    shutil.copytree(swept[0] / "learner-seed1", folder / "learner-seed1")
    (folder / "learner-seed1" / "metrics.jsonl").write_text("")
    skipped = write_report([folder], tmp_path / "out")
    assert len(skipped) == 2
    assert "is damaged" in skipped[1]
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.count("Left out:") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "no run in"),
        (["nowhere"], "nowhere is not a folder"),
        (["{runs}", "--output", "{taken}"], "something that is no report"),
    ],
)
def test_reports_that_cannot_be(swept, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    places = {"runs": swept[0], "empty": tmp_path / "empty", "taken": tmp_path / "taken"}
    command = [sys.executable, "-m", "jaxmoral.report"]
    done = subprocess.run(
        [*command, *(argument.format(**places) for argument in arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "mine"


def test_a_sweep_says_at_the_end_what_failed(experiments, tmp_path):
    paths = [str(experiments[0]), str(experiments[3])]
    command = [sys.executable, "-m", "jaxmoral.sweep", *paths, "--seeds", "1"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out"), *FLAGS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "1 of 2 runs are finished" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("failed: broken-seed1: reward.name")
    assert (tmp_path / "out" / "results.parquet").is_file()


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/paper/*.yaml")))
def test_every_configuration_of_the_paper_is_sound(path):
    config = configs.load(path)
    assert config.env.rounds == (3 if path.stem.startswith("learner") else 5)
    assert path.stem.split("-", 1)[1].startswith(config.reward.name)
    assert ("-then-" in path.stem) == (config.reward.then is not None)
    assert configs.load(path, ["--preset", "paper"]).updates == 1000
