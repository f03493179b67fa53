"""The two commands as a user runs them: exit codes, one-line errors, nothing overwritten."""

import importlib.util
import json
import signal
import subprocess
import sys
import time

import pytest

import jaxmoral

QUICK = ["--model.source", "tabular", "--env.episodes", "256", "--updates", "4"]


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"jaxmoral.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = command("train", "--output-dir", folder, *QUICK)
    assert done.returncode == 0, done.stderr
    assert f"next: python -m jaxmoral.evaluate --run {folder}" in done.stdout
    assert (folder / "action_types.png").is_file()
    return folder


def test_evaluate_writes_json_and_a_picture(run_folder):
    done = command("evaluate", "--run", run_folder, "--games", "ipd,bos")
    assert done.returncode == 0, done.stderr
    found = json.loads((run_folder / "evaluation.json").read_text())
    assert set(found["suites"]["trained"]) == {"ipd", "bos"}
    assert (run_folder / "regret.png").is_file()
    assert "bos        tuned" in done.stdout


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
        ("evaluate", ["--run", "{new}"], "holds no run"),
        ("evaluate", ["--run", "{run}", "--games", "chess"], "unknown name 'chess'"),
        ("evaluate", [], "give either --run FOLDER or --model NAME"),
        ("evaluate", ["--model", "no.gguf"], "neither a file, nor a folder"),
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


def test_a_terminated_command_saves_and_resumes(tmp_path):
    folder = tmp_path / "run"
    flags = ["--model.source", "tabular", "--updates", "100000", "--env.episodes", "4096"]
    arguments = [sys.executable, "-m", "jaxmoral.train", "--output-dir", str(folder), *flags]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "SIGTERM: saved after update" in out
    last = json.loads(log.read_text().splitlines()[-1])["update"]
    assert (folder / "checkpoints" / str(last)).is_dir()


def test_an_unwritable_output_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    done = command("train", "--output-dir", tmp_path / "file" / "run", "--model.source", "no/hub")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --output-dir: cannot write to")


def test_commands_do_not_hide_the_package_s_functions():
    for name in jaxmoral.__all__:
        assert importlib.util.find_spec(f"jaxmoral.{name}") is None, name
