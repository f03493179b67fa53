"""The commands as a user runs them: exit codes, one-line errors, help, nothing overwritten."""

import argparse
import importlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from processes import Running, command
from run_files import quiet, records

import jaxmoral
from jaxmoral import config as configs
from jaxmoral import evaluate
from jaxmoral.errors import run_command
from jaxmoral.language.suites import SUITES
from jaxmoral.learning import saved
from jaxmoral.learning.saved import update_of
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring import evaluation, questions, results
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.results import merge, unlike
from jaxmoral.world.games import SETS
from jaxmoral.world.opponents import OPPONENTS

QUICK = ["--model.source", "tabular", "--env.episodes", "256", "--updates", "4"]


def in_a_shell(module, *arguments):
    """With an interpreter of its own, where `command` forks one that has imported everything."""
    return subprocess.run(
        [sys.executable, "-m", f"jaxmoral.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = in_a_shell("train", "--output-dir", folder, *QUICK)
    assert done.returncode == 0, done.stderr
    assert f"next: python -m jaxmoral.evaluate --run {folder}" in done.stdout
    assert (folder / "action_types.png").is_file()
    return folder


def in_process(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments)])
    importlib.import_module(f"jaxmoral.{module}").main()


@pytest.mark.slow
def test_evaluate_writes_json_and_a_picture(run_folder):
    (run_folder / "evaluation.json").unlink(missing_ok=True)
    done = command("evaluate", "--run", run_folder, "--games", "ipd,bos")
    assert done.returncode == 0, done.stderr
    found = json.loads((run_folder / "evaluation.json").read_text())
    assert set(found["suites"]["trained"]) == {"ipd", "bos"}
    assert (run_folder / "regret.png").is_file()
    assert "bos        tuned" in done.stdout


EXACT = ("--protocols", "exact")


def met(folder, game, name="evaluation.json"):
    """The opponents and protocols that a file holds of a game."""
    found = json.loads((folder / name).read_text())["suites"]["trained"][game]["policies"]
    assert found["base"]["opponents"].keys() == found["tuned"]["opponents"].keys()
    return {who: set(protocols) for who, protocols in found["tuned"]["opponents"].items()}


@pytest.mark.slow
def test_a_second_evaluation_is_added_to_the_first(run_folder, monkeypatch, capsys):
    (run_folder / "evaluation.json").unlink(missing_ok=True)
    run = ("evaluate", "--run", run_folder)
    in_process(monkeypatch, *run, "--games", "ipd,bos", *EXACT)
    before = json.loads((run_folder / "evaluation.json").read_text())
    assert before["update"] == 4
    assert "replaced" not in capsys.readouterr().out
    in_process(monkeypatch, *run, "--games", "ish,bos", "--opponents", "joss", *EXACT)
    assert "replaced" not in (said := capsys.readouterr().out)
    assert "against joss, exact" in said
    assert "against random" not in said  # what was asked for
    assert [met(run_folder, game) for game in ("ipd", "bos", "ish")] == [
        {"random": {"exact"}},
        {"random": {"exact"}, "joss": {"exact"}},
        {"joss": {"exact"}},
    ]
    in_process(monkeypatch, *run, "--games", "bos", "--protocols", "sampled")
    said = "evaluation.json: replaced trained: bos against random, exact, measured before"
    assert said in capsys.readouterr().out
    assert met(run_folder, "bos") == {"random": {"exact", "sampled"}, "joss": {"exact"}}
    after = json.loads((run_folder / "evaluation.json").read_text())
    assert after["suites"]["trained"]["ipd"] == before["suites"]["trained"]["ipd"]
    assert after["opponents"] == ["random", "joss"]
    assert after["protocols"] == ["exact", "sampled"]
    assert len(list(jaxmoral.measuring.results.rows(after))) > len(
        list(jaxmoral.measuring.results.rows(before))
    )


@pytest.mark.slow
def test_evaluations_of_two_checkpoints_are_not_mixed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    config = configs.load(None, [*QUICK, "--checkpoint_every", "2"])
    fit_agent(config, folder, say=quiet)
    run = ("evaluate", "--run", folder, "--games", "ipd", *EXACT)
    in_process(monkeypatch, *run)
    newest = (folder / "evaluation.json").read_text()
    in_process(monkeypatch, *run, "--update", "2")
    assert (folder / "evaluation.json").read_text() == newest
    assert json.loads((folder / "evaluation-2.json").read_text())["update"] == 2
    in_process(monkeypatch, *run, "--update", "2", "--output", folder / "evaluation.json")
    said = "evaluation.json held an evaluation that differs (update 4); it is "
    assert f"{said}{folder / 'evaluation-earlier.json'} now" in capsys.readouterr().out
    assert (folder / "evaluation-earlier.json").read_text() == newest
    # One that an earlier version wrote loads, and is kept.
    (folder / "evaluation.json").unlink()
    old = json.loads(newest)
    del old["update"], old["config"]
    (folder / "evaluation.json").write_text(json.dumps(old))
    in_process(monkeypatch, *run)
    assert "(update unknown (an earlier version did not write it))" in capsys.readouterr().out
    assert json.loads((folder / "evaluation-earlier2.json").read_text()) == old


def test_other_settings_keep_two_evaluations_apart():
    flags = ["--model.source", "tabular", "--evaluation.protocols", "[exact]"]
    one = evaluate_agent(configs.load(None, flags), ["ipd"], ["random"])
    flags += ["--evaluation.xi", "4", "--prompt.template", "chat"]
    other = evaluate_agent(configs.load(None, [*flags, "--mesh.data", "1"]), ["bos"], ["joss"])
    assert unlike(one, one) == []
    elsewhere = one["config"] | {"mixture": {"kept": 2}, "mesh": {"data": 2}}
    assert unlike(one, one | {"config": elsewhere}) == []
    assert unlike(one, one | {"config": one["config"] | {"updates": 99}}) == ["updates"]
    assert unlike(one, one | {"policies": ["base", "tuned"]}) == ["policies"]
    assert unlike(one, other) == ["evaluation.xi", "prompt.template"]
    assert merge(one, one) == (one, ["trained: ipd against random, exact"])


def test_what_is_no_evaluation_is_not_overwritten(run_folder, tmp_path, monkeypatch, capsys):
    thesis = tmp_path / "thesis.json"
    monkeypatch.setattr(evaluation, "evaluate_agent", None)  # it is found before the work
    for content in ("[1]", '{"config": {}, "suites": {}}', '{"suites": {"trained": []}}'):
        thesis.write_text(content)
        with pytest.raises(SystemExit):
            in_process(monkeypatch, "evaluate", "--run", run_folder, "--output", thesis)
        assert f"error: {thesis} holds no evaluation" in capsys.readouterr().err
        assert thesis.read_text() == content


@pytest.mark.parametrize("update", [None, "4", "best"])
def test_damage_is_found_before_the_work(run_folder, tmp_path, monkeypatch, capsys, update):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    number = update_of(folder, "best") if update == "best" else update
    file = folder / (f"evaluation-{number}.json" if update else "evaluation.json")
    file.write_text("{")
    monkeypatch.setattr(evaluation, "evaluate_agent", None)
    flags = ["--update", update] if update else []
    with pytest.raises(SystemExit):
        in_process(monkeypatch, "evaluate", "--run", folder, *flags)
    assert f"error: {file} is damaged" in capsys.readouterr().err
    assert file.read_text() == "{"


def test_damaged_answers_are_found_before_the_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "answers.json").write_text("{")
    monkeypatch.setattr(saved, "load_trained", None)
    with pytest.raises(SystemExit):
        in_process(monkeypatch, "ask", "--run", tmp_path)
    assert f"error: {tmp_path / 'answers.json'} is damaged" in capsys.readouterr().err
    assert (tmp_path / "answers.json").read_text() == "{"


def test_an_evaluation_is_written_before_it_is_printed(run_folder, tmp_path, monkeypatch):
    def fails(evaluation):
        raise RuntimeError

    monkeypatch.setattr(results, "table", fails)
    output = tmp_path / "out.json"
    with pytest.raises(RuntimeError):
        in_process(monkeypatch, "evaluate", "--run", run_folder, "--output", output, *EXACT)
    assert json.loads(output.read_text())["update"] == 4


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("evaluate", [*SUITES, *SETS, *OPPONENTS, "long-run", "paper", "best", "model.source"]),
        ("tournament", [*SETS, *OPPONENTS, *jaxmoral.REWARDS]),
        ("train", configs.KEYS),
        ("sweep", configs.KEYS),
    ],
)
def test_help_names_what_is_accepted(monkeypatch, capsys, module, names):
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit):
        in_process(monkeypatch, module, "--help")
    said = capsys.readouterr().out
    assert [name for name in names if name not in said] == []
    if module == "evaluate":
        (suites,) = [line for line in said.splitlines() if line.strip().startswith("--suites S")]
        assert "plane" not in suites  # a set of games


def test_other_answers_are_kept(tmp_path, monkeypatch, capsys):
    said = iter(
        [
            [{"said": word, "policy": "", "remembered": "", "answer": "", "question": ""}]
            for word in ("one", "one", "two")
        ]
    )
    (tmp_path / "config.yaml").write_text("{}")
    monkeypatch.setattr(
        saved,
        "load_trained",
        lambda folder: SimpleNamespace(config=None, agent=None, trainable=None),
    )
    monkeypatch.setattr(questions, "ask", lambda *_: next(said))
    for seed in (0, 0, 1):
        in_process(monkeypatch, "ask", "--run", tmp_path, "--seed", seed)
    assert capsys.readouterr().out.count("held other answers") == 1
    kept = [json.loads(path.read_text())[0]["said"] for path in sorted(tmp_path.glob("*.json"))]
    assert kept == ["one", "two"]  # answers-earlier.json, answers.json


def test_an_untrained_model_has_no_checkpoints(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        in_process(monkeypatch, "evaluate", "--model", "tabular", "--update", "4")
    assert "error: --update: an untrained model has no checkpoints" in capsys.readouterr().err


def test_every_command_is_installed():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    package = Path(evaluate.__file__).parent
    commands = {path.stem for path in package.glob("*.py") if "\ndef main(" in path.read_text()}
    assert project["scripts"] == {f"jaxmoral-{name}": f"jaxmoral.{name}:main" for name in commands}


def test_an_update_is_a_number_or_best():
    with pytest.raises(argparse.ArgumentTypeError, match="'worst' is neither a number"):
        evaluate._checkpoint("worst")


@pytest.mark.slow
def test_a_population_is_resumed_by_its_own_command(tmp_path, monkeypatch, capsys):
    flags = [*QUICK, "--reward.name", "[game, utilitarian]"]
    flags += ["--ppo.entropy_coef", "0", "--ppo.final_entropy_coef", "0", "--updates"]
    train = ("train", "--output-dir", tmp_path / "many", *flags)
    in_process(monkeypatch, *train, "2")
    in_process(monkeypatch, *train, "3", "--resume")
    assert [r["update"] for r in records(tmp_path / "many" / "reward.name=game")] == [1, 2, 3]
    other = [flag.replace("utilitarian", "deontological") for flag in map(str, train)]
    with pytest.raises(SystemExit):
        in_process(monkeypatch, *other, "3", "--resume")
    assert "belongs to" in capsys.readouterr().err


def thoughts(whose):
    row = {"C": 0.5, "D": 0.5, "illegal": 0.0, "error": 0.1}
    own = {"after": {who: {"CC": row} for who in whose}, "information": {}, "said": {}}
    return {"tokens": 4, "thoughts": 2, "policies": {"base": own, "tuned": own}}


def test_a_study_of_thoughts_keeps_whose_were_given_before():
    flags = ["--model.source", "tabular", "--evaluation.protocols", "[exact]"]
    one = evaluate_agent(configs.load(None, flags), ["ipd"], ["random"])
    other = evaluate_agent(configs.load(None, flags), ["ipd"], ["joss"])
    one["suites"]["trained"]["ipd"]["thoughts"] = thoughts(["own", "another agent's"])
    other["suites"]["trained"]["ipd"]["thoughts"] = thoughts(["own"])
    merged, replaced = merge(one, other)
    assert replaced == ["trained: ipd, thoughts"]
    found = merged["suites"]["trained"]["ipd"]["thoughts"]["policies"]
    assert [*found["tuned"]["after"]] == ["own", "another agent's"]
    assert [*merged["suites"]["trained"]["ipd"]["policies"]["base"]["opponents"]] == [
        *("random", "joss")
    ]


@pytest.mark.slow
def test_a_population_ends_with_a_line_a_member(tmp_path, monkeypatch, capsys):
    flags = [*QUICK, "--reward.name", "[game, utilitarian]", "--seed=[0, 1]"]
    in_process(monkeypatch, "train", "--output-dir", tmp_path / "many", *flags)
    names = [f"reward.name={name},seed={seed}" for name in ("game", "utilitarian") for seed in "01"]
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": reward ")[0] for line in said[-5:-1]] == names
    asked = ("--games", "ipd,bos", "--opponents", "joss", *EXACT)
    in_process(monkeypatch, "evaluate", "--run", tmp_path / "many", *asked)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": C ")[0] for line in said[-5:-1]] == names
    found = json.loads((tmp_path / "many" / names[0] / "evaluation.json").read_text())
    each = [
        condition["policies"]["tuned"]["opponents"]["joss"]["exact"]["outcomes"]["C"]
        for condition in found["suites"]["trained"].values()
    ]
    assert f"{names[0]}: C {sum(each) / 2:.1%}, illegal" in said[-5]
    assert "(suite trained, mean of 2, exact, against joss)" in said[-5]


@pytest.mark.slow
def test_evaluate_a_model_without_a_run(tmp_path):
    output = tmp_path / "out.json"
    done = command("evaluate", "--model", "tabular", "--output", output)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["policies"] == ["base"]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("train", ["--output-dir", "{run}", *QUICK], "already holds a run"),
        ("train", ["--output-dir", "{new}", "--ppo.zzz", "1"], "unknown key 'ppo.zzz'"),
        ("train", ["--output-dir", "{new}", "--config", "no.yaml"], "cannot read no.yaml"),
        ("train", ["--output-dir", "{new}", "--resume"], "holds no run to resume"),
        ("sweep", ["no.yaml", "--output-dir", "{new}"], "there is no file no.yaml"),
        ("evaluate", ["--run", "{new}"], "holds no run"),
        ("evaluate", ["--run", "{run}", "--games", "chess"], "unknown name 'chess'"),
        ("evaluate", ["--run", "{run}", "--games", ""], "unknown name ''"),
        ("evaluate", ["--run", "{run}", "--tags", "self"], "--tags: needs --scenarios"),
        ("evaluate", [], "give either --run FOLDER or --model NAME"),
        ("evaluate", ["--model", "no.gguf"], "there is no file or folder no.gguf"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(run_folder, tmp_path, module, arguments, message):
    new = tmp_path / "new"
    done = command(module, *(a.format(run=run_folder, new=new) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not new.exists()


@pytest.mark.slow
def test_a_terminated_command_saves_and_resumes(tmp_path):
    folder = tmp_path / "run"
    flags = ["--model.source", "tabular", "--updates", "100000", "--env.episodes", "4096"]
    process = Running("jaxmoral.train", "--output-dir", folder, *flags)
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill(signal.SIGTERM)
    done = process.finish(timeout=120)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: saved after update" in done.stdout
    last = json.loads(log.read_text().splitlines()[-1])["update"]
    assert (folder / "checkpoints" / str(last)).is_dir()


def test_an_unwritable_output_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    new = tmp_path / "file" / "run"
    done = command("train", "--output-dir", new, "--model.source", "no/hub")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --output-dir: cannot write to")


def test_commands_do_not_hide_the_package_s_functions():
    for name in jaxmoral.__all__:
        assert importlib.util.find_spec(f"jaxmoral.{name}") is None, name


def test_too_little_memory_is_told_in_one_line(capsys):
    def fail():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    with pytest.raises(SystemExit) as stopped:
        run_command(fail)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the memory does not suffice; lower env.episodes")
