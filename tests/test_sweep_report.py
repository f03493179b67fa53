"""Sweeps over tabular experiments and the page made of them."""

import dataclasses
import json
import re
import shutil
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from processes import command

from jaxmoral import api
from jaxmoral import config as configs
from jaxmoral import sweep as sweeps
from jaxmoral.errors import UserError
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.resume import changed_before
from jaxmoral.learning.run_folder import read_config
from jaxmoral.measuring import evaluation
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.results import rows
from jaxmoral.measuring.runs import find_runs, read_run, summarise, tidy, without_stale
from jaxmoral.reporting.page import write_report

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


@pytest.mark.slow
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
    train_agent = api.train_agent
    monkeypatch.setattr(
        api, "train_agent", lambda *a, **k: trained.append(k) or train_agent(*a, **k)
    )
    assert sweeps.sweep(experiments[:3], [1, 2], output, FLAGS) == {}
    assert trained == [{"resume": True}]
    assert (output / "mended-seed1" / "evaluation.json").is_file()
    assert (output / "selfish-seed1" / "metrics.jsonl").stat().st_mtime_ns == before


def again(monkeypatch, experiments, output, *flags):
    """A sweep of one experiment: what failed, and what it trained and evaluated."""
    done = []
    for module, name in ((api, "train_agent"), (evaluation, "evaluate_agent")):
        real = getattr(module, name)
        spy = lambda *a, name=name, real=real, **k: done.append(name) or real(*a, **k)
        monkeypatch.setattr(module, name, spy)
    failed = sweeps.sweep(experiments[:1], [1], output, [*FLAGS, *flags])
    monkeypatch.undo()
    return failed, done


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "evaluation.json",
            '{"policies": [], "opponents": [], "protocols": [], "largest_gap": 0,'
            ' "suites": {"a": {"ipd": {}}}}',
            "evaluation.json holds no evaluation (suites.a.ipd.game: field required)",
        ),
        ("evaluation.json", "[1]", "evaluation.json holds no evaluation (the file: "),
        ("metrics.jsonl", '{"update": 1}\n', "damaged: line 1 is no record of an update"),
        ("metrics.jsonl", "1\n", "damaged: line 1 is no record of an update"),
        ("answers.json", "[1]", "damaged: it holds no answers"),
        ("config.yaml", "", "damaged: it is empty"),
        ("config.yaml", "mixture: {games: nu}", "run: mixture.games: "),
    ],
)
def test_what_is_damaged_is_left_out_by_name(name, content, message, swept, tmp_path):
    shutil.copytree(swept[0] / "selfish-seed1", tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    runs, (line,) = find_runs([tmp_path])
    assert runs == []
    assert message in line
    assert str(tmp_path / "run") in line


def test_an_evaluation_of_another_run_does_not_count(swept, tmp_path):
    shutil.copytree(swept[0] / "selfish-seed1", tmp_path / "run")
    shutil.copy(swept[0] / "mended-seed2" / "evaluation.json", tmp_path / "run")
    (run,), (line,) = without_stale([read_run(tmp_path / "run")])
    assert run.evaluation is None
    assert "is of another run, with another reward.switch_at, reward.then, seed" in line
    assert without_stale([read_run(swept[0] / "mended-seed2")])[1] == []


def test_an_evaluation_with_other_thoughts_is_another(swept):
    folder = swept[0] / "selfish-seed1"
    held, made = json.loads((folder / "evaluation.json").read_text()), read_config(folder)
    assert sweeps.missing(held, made) == []
    without = dataclasses.replace(made.evaluation, thinking=0)
    assert sweeps.missing(held, dataclasses.replace(made, evaluation=without)) == ["thinking 0"]


@pytest.mark.slow
def test_a_start_that_was_cut_before_its_first_checkpoint_is_begun_anew(
    experiments, tmp_path, monkeypatch
):
    both = ["train_agent", "evaluate_agent"]
    assert again(monkeypatch, experiments, tmp_path) == ({}, both)
    folder = tmp_path / "selfish-seed1"
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "config.yaml":
            path.unlink()
    assert again(monkeypatch, experiments, tmp_path) == ({}, both)
    assert (folder / "evaluation.json").is_file()


@pytest.mark.slow
def test_a_sweep_compares_what_is_asked_for_with_what_was_made(
    swept, experiments, tmp_path, monkeypatch, capsys
):
    shutil.copytree(swept[0] / "selfish-seed1", tmp_path / "selfish-seed1")
    folder, file = tmp_path / "selfish-seed1", tmp_path / "selfish-seed1" / "evaluation.json"
    first, log = json.loads(file.read_text()), (folder / "metrics.jsonl").read_bytes()
    picture = (folder / "regret.png").read_bytes()
    sweep = partial(again, monkeypatch, experiments, tmp_path)
    assert sweep() == ({}, [])
    assert sweep("--mesh.data", "1", "--evaluation.games=[icd]") == ({}, [])  # is in it
    assert "selfish-seed1: finished before" in capsys.readouterr().out

    # Another evaluation is made of the same run, and added.
    more = ("--evaluation.games", "[ipd, bos]", "--evaluation.opponents", "[random, joss]")
    assert sweep(*more) == ({}, ["train_agent", "evaluate_agent"])
    said = "trained before; not evaluated before: trained: ipd against joss, exact and 1 more"
    assert f"selfish-seed1: {said}" in capsys.readouterr().out
    both = json.loads(file.read_text())
    assert set(both["suites"]["trained"]) == {"ipd", "icd", "bos"}
    assert both["suites"]["trained"]["icd"] == first["suites"]["trained"]["icd"]
    assert (folder / "regret.png").read_bytes() != picture  # of what the file holds
    assert sweep(*more) == sweep() == ({}, [])
    table = pd.read_parquet(tmp_path / "results.parquet")
    assert {"icd", "bos"} <= set(table["condition"])

    # One that cannot be part of the same file is kept beside the new one.
    assert sweep("--evaluation.xi", "4") == ({}, ["train_agent", "evaluate_agent"])
    said = capsys.readouterr().out
    assert "not evaluated before: xi 4.0" in said
    assert "differs (evaluation.xi)" in said
    assert json.loads((folder / "evaluation-earlier.json").read_text()) == both
    assert json.loads(file.read_text())["xi"] == 4

    # A run that was trained otherwise is refused and left alone.
    failed, done = sweep("--ppo.clip", "0.1", "--env.noise", "0.1")
    assert done == []
    assert "trained with another env.noise, ppo.clip; choose" in failed["selfish-seed1"]
    assert (folder / "metrics.jsonl").read_bytes() == log


def test_an_evaluation_of_an_earlier_checkpoint_is_not_the_run_s(
    swept, experiments, tmp_path, monkeypatch
):
    folder = tmp_path / "selfish-seed1"
    shutil.copytree(swept[0] / folder.name, folder)
    found = evaluate_agent(folder, update=5)
    (folder / "evaluation.json").write_text(json.dumps(found))
    assert again(monkeypatch, experiments, tmp_path)[1] == ["train_agent", "evaluate_agent"]
    assert json.loads((folder / "evaluation.json").read_text())["update"] == 6
    assert json.loads((folder / "evaluation-earlier.json").read_text()) == found


def test_an_evaluation_of_an_earlier_version_counts(swept, experiments, tmp_path, monkeypatch):
    folder = tmp_path / "selfish-seed1"
    shutil.copytree(swept[0] / folder.name, folder)
    old = json.loads((folder / "evaluation.json").read_text())
    del old["update"], old["config"]
    (folder / "evaluation.json").write_text(json.dumps(old))
    assert again(monkeypatch, experiments, tmp_path) == ({}, [])
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))  # of a run that was cut
    assert again(monkeypatch, experiments, tmp_path)[1][0] == "train_agent"


def test_a_table_of_a_part_keeps_the_rest(swept, experiments, tmp_path):
    for name in ("selfish-seed1", "mended-seed1"):
        shutil.copytree(swept[0] / name, tmp_path / name)
    assert sweeps.sweep(experiments[:1], [1], tmp_path, FLAGS) == {}
    assert set(pd.read_csv(tmp_path / "results.csv")["run"]) == {"selfish-seed1", "mended-seed1"}


def test_what_only_files_can_tell_makes_no_other_run():
    asked = resolve(configs.load(None, ["--prompt.random_labels", "3", "--lora.adapter", "there"]))
    settled = configs.parse(
        {
            "model": {"source": "gemma3-270m", "sha256": "12", "dtype": asked.model.dtype},
            "lora": {"adapter": "there", "rank": 3, "alpha": 1, "targets": ["q"]},
            "prompt": {"labels": ["abc", "xyz"]},
        }
    )
    assert sweeps.trained_otherwise(asked, settled) == []
    other = configs.parse(configs.to_dict(asked) | {"lora": {}, "prompt": {"random_labels": 4}})
    assert sweeps.trained_otherwise(other, settled) == [
        "lora.adapter",
        "lora.alpha",
        "lora.rank",
        "lora.targets",
        "prompt.labels",
        "prompt.random_labels",
    ]


def test_random_labels_may_be_asked_for_again():
    """Over the run's own configuration, as --resume does, which names what was drawn."""
    drawn = {"prompt": {"labels": ["abc", "xyz"]}, "model": {"dtype": "float32"}}
    asked = configs.parse(drawn | {"prompt": drawn["prompt"] | {"random_labels": 3}})
    assert changed_before(resolve(asked), configs.parse(drawn)) == []
    other = configs.parse(drawn | {"prompt": drawn["prompt"] | {"random_labels": 4}})
    assert changed_before(resolve(other), configs.parse(drawn)) == ["prompt.random_labels"]


def test_labels_as_long_as_random_ones_are_not_drawn():
    """action1 has seven letters."""
    asked = resolve(configs.load(None, ["--prompt.random_labels", "7"]))
    tree = configs.to_dict(asked)
    made = configs.parse(tree | {"prompt": {}})
    assert sweeps.trained_otherwise(asked, made) == ["prompt.random_labels"]
    made = configs.parse(tree | {"prompt": {"labels": ["aaaaaaa", "bbbbbbb"]}})
    assert sweeps.trained_otherwise(asked, made) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--updates=20", "{}", "--env.opponent", "random", "{}", "--seeds", "3"],
        ["--seeds", "3", "--updates", "20", "--env.opponent=random", "--", "{}", "{}"],
        ["--updates", "20", "{}", "--seeds=3", "{}", "--env.opponent", "random"],
    ],
)
def test_flags_of_a_sweep_may_stand_before_and_between_files(
    experiments, tmp_path, monkeypatch, flags
):
    seen = []
    monkeypatch.setattr(sweeps, "sweep", lambda *a: seen.append(a) or {})
    paths = map(str, experiments)
    flags = [next(paths) if flag == "{}" else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", ["x", f"--output-dir={tmp_path / 'a.b'}", *flags])
    sweeps.main()
    (found,) = seen
    assert found[:3] == (experiments[:2], [3], tmp_path / "a.b")
    assert sorted(found[3]) == ["--env.opponent", "--updates", "20", "random"]


def test_a_flag_of_a_sweep_takes_what_follows():
    texts = ["--reward.illegal", "-6", "a.yaml", "--games.mine.CC", "[1, 2]", "--seed", "3"]
    flags, rest = sweeps.split_flags([*texts, "--updates"])
    assert flags == ["--reward.illegal", "-6", "--games.mine.CC", "[1, 2]", "--updates"]
    assert rest == ["a.yaml", "--seed", "3"]  # the first letters of --seeds


@pytest.mark.parametrize("joined", [False, True])
def test_flags_of_a_sweep_may_be_joined(experiments, tmp_path, monkeypatch, joined):
    seen = []
    monkeypatch.setattr(sweeps, "sweep", lambda *a: seen.append(a) or {})
    flags = ["--prompt.labels=[X, Y]", "--seeds=3"]
    if not joined:
        flags = ["--prompt.labels", "[X, Y]", "--seeds", "3"]
    paths = [str(experiments[0]), str(experiments[1])]
    monkeypatch.setattr(sys, "argv", ["x", *paths, *flags, f"--output-dir={tmp_path}"])
    sweeps.main()
    assert seen == [(experiments[:2], [3], tmp_path, ["--prompt.labels", "[X, Y]"])]


def test_a_crash_is_one_failed_run(experiments, tmp_path, monkeypatch):
    def crash(*arguments, **keywords):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(evaluation, "evaluate_agent", crash)
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
    student = 4.302653  # t of two degrees of freedom, at 97.5 %
    assert found.loc["a", "interval"] == pytest.approx(student * np.std(values, ddof=1) / 3**0.5)
    assert tuple(found.loc["b", ["mean", "interval", "runs"]]) == (7.0, 0.0, 1)


class Page(HTMLParser):
    """Collects tips, links, addresses and unclosed tags."""

    def __init__(self, text):
        super().__init__()
        self.tips, self.links, self.ids, self.outside, self.open = [], [], [], [], []
        self.headings = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.headings += [found.get("id")] if tag == "h2" else []
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


@pytest.mark.slow
def test_the_page_is_one_sound_file_that_needs_no_network(report):
    page = Page((report / "index.html").read_text())
    assert page.open == []
    assert page.outside == []
    assert {link[1:] for link in page.links} <= set(page.ids)
    contents = [link[1:] for link in page.links[: len(page.headings)]]
    assert contents == page.headings  # of figures, then of tables
    assert contents[-1] == "rewards-parameters-games"
    for svg in re.findall(r"<svg.*?</svg>", (report / "index.html").read_text(), re.DOTALL):
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
        assert "#1a1b1c" not in svg


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    done = command("report", *(argument.format(**places) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "mine"


@pytest.mark.slow
def test_a_sweep_says_at_the_end_what_failed(experiments, tmp_path):
    paths = [str(experiments[0]), str(experiments[3])]
    done = command("sweep", *paths, "--seeds", "1", "--output-dir", tmp_path / "out", *FLAGS)
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
