"""Runs in a bucket that is in memory: made, cut, fetched by another machine, evaluated, shown."""

import json
import os
import re
import sys

import fsspec
import pytest
from run_files import quiet

from jaxmoral import ask, chat, compare, evaluate, export, play, report, sweep, tournament, train
from jaxmoral import config as configs
from jaxmoral.api import train_agent
from jaxmoral.errors import UserError
from jaxmoral.learning import bucket, metrics
from jaxmoral.learning.bucket import LISTED, at_hand

FLAGS = ["--model.source", "tabular", "--env.episodes", "64", "--checkpoint_every", "2"]
FLAGS += ["--ppo.final_entropy_coef", "1"]
URL = "memory://bucket/runs/ut"


def make_config(*flags):
    return configs.load(None, [*FLAGS, *flags])


def command(module, *arguments):
    """A command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        module.main()


@pytest.fixture
def files():
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


@pytest.fixture
def machine(tmp_path, monkeypatch, files):
    """Moves to a machine of another name, whose cache is its own."""

    def move(name):
        monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / name))
        monkeypatch.chdir(tmp_path)

    move("first")
    return move


def without_times(folder):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in metrics.read(folder)]


def listed(files):
    return json.loads(files.cat_file(f"/bucket/runs/ut/{LISTED}"))["files"]


def written(folders, output):
    """Stands for a report."""
    assert (folders[0] / "evaluation.json").is_file()
    output.mkdir()
    (output / "index.html").write_text("")
    return []


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_and_is_evaluated_and_shown(
    machine, files, tmp_path, capsys, monkeypatch
):
    command(train, "--output-dir", URL, *FLAGS, "--updates", 3)
    assert f"evaluate --run {URL}" in capsys.readouterr().out
    assert {"config.yaml", "metrics.jsonl", "metrics.csv", "action_types.png"} <= listed(
        files
    ).keys()
    machine("second")
    command(train, "--output-dir", URL, "--resume", "--updates", 6)
    whole = train_agent(make_config("--updates", "6"), tmp_path / "whole", say=quiet)
    assert int(whole.state.update) == 6
    machine("third")
    with at_hand(URL, say=quiet) as place:
        assert without_times(place.folder) == without_times(tmp_path / "whole")
        steps = [path.name for path in (place.folder / "checkpoints").iterdir()]
    assert {"3", "4", "6"} <= {*steps}
    inside = [path for path in files.find("/bucket/runs/ut") if not path.endswith(LISTED)]
    assert {path.removeprefix("/bucket/runs/ut/") for path in inside} == listed(files).keys()
    command(evaluate, "--run", URL, "--games", "ipd", "--protocols", "exact")
    monkeypatch.setattr("jaxmoral.reporting.page.write_report", written)
    command(report, URL)
    machine("first")  # which has an older copy
    with at_hand(URL, say=quiet) as place:
        assert json.loads((place.folder / "evaluation.json").read_text())["update"] == 6
        assert (place.folder / "report" / "index.html").is_file()


@pytest.mark.slow
def test_members_are_read_with_their_population(machine, files):
    flags = [*FLAGS, "--updates", "1", "--seed", "[0, 1]"]
    command(train, "--output-dir", "memory://bucket/many", *flags)
    machine("second")
    command(
        evaluate, "--run", "memory://bucket/many/seed=1", "--games", "ipd", "--protocols", "exact"
    )
    assert files.exists("/bucket/many/seed=1/evaluation.json")


@pytest.mark.slow
def test_a_copy_that_is_cut_off_changes_nothing(machine, files, monkeypatch):
    """The list goes last: until then another machine finds the run as it was before."""
    train_agent(make_config("--updates", "2"), URL, say=quiet)
    before = listed(files)
    said = []

    write = files.pipe_file

    def full(path, value, **_):
        if path.endswith(LISTED):
            raise OSError("no more space")
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "pipe_file", full)
        with pytest.raises(
            UserError, match="no more space.* the run is in .*, and the same command"
        ):
            train_agent(make_config("--updates", "5"), URL, True, said.append)
    assert sum("no more space" in line for line in said) == 1  # training went on
    assert listed(files) == before
    machine("second")
    with at_hand(URL, say=quiet) as place:
        assert sorted(p.name for p in (place.folder / "checkpoints").iterdir()) == ["0", "2"]
    machine("first")  # what is here is ahead, and goes on
    made = train_agent(make_config("--updates", "5"), URL, True, quiet)
    assert made.history == []
    machine("third")
    with at_hand(URL, say=quiet) as place:
        assert len(metrics.read(place.folder)) == 5


@pytest.mark.slow
def test_what_is_only_here_is_set_aside(machine, files):
    train_agent(make_config("--updates", "1"), URL, say=quiet)
    with at_hand(URL, say=quiet) as place:
        (place.folder / "notes.txt").write_text("mine")
    machine("second")
    train_agent(make_config("--updates", "2"), URL, True, quiet)
    machine("first")
    said = []
    with at_hand(URL, say=said.append) as place:
        assert len(metrics.read(place.folder)) == 2
        aside = place.folder.with_name("ut-earlier")
        assert (aside / "notes.txt").read_text() == "mine"
    assert str(aside) in said[-1]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["", "checkpoints"])
def test_what_the_bucket_lost_is_set_aside(lost, machine, files):
    """The list is lost too; what is here is the last copy."""
    train_agent(make_config("--updates", "1"), URL, say=quiet)
    with at_hand(URL, say=quiet) as place:
        whole = without_times(place.folder)
    root = URL.partition("://")[2]
    files.rm(f"/{root}/{LISTED}")
    files.rm(f"/{root}/{lost}", recursive=True)
    said = []
    with at_hand(URL, say=said.append) as place:
        aside = place.folder.with_name("ut-earlier")
        assert without_times(aside) == whole
    assert str(aside) in said[-1]


def test_what_somebody_copied_there_is_read(machine, files, tmp_path):
    folder = tmp_path / "run"
    train_agent(make_config("--updates", "1"), folder, say=quiet)
    files.put(str(folder), "/bucket/copied", recursive=True)
    with at_hand("memory://bucket/copied", say=quiet) as place:
        assert without_times(place.folder) == without_times(folder)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://bucket/run", "cannot use nonsense://bucket/run .*[Pp]rotocol not known"),
        ("abfs://bucket/run", "cannot use abfs://bucket/run .*[Ii]nstall adlfs"),
    ],
)
def test_a_protocol_that_is_not_there_is_one_line(url, message, machine, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(SystemExit) as stopped:
        command(train, "--output-dir", url, *FLAGS)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize("method", ["cat_file", "pipe_file"])
def test_a_bucket_that_cannot_be_reached_is_said_before_training(
    machine, files, monkeypatch, method
):
    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(files, method, unreachable)
    monkeypatch.setattr("jaxmoral.learning.training.fit_population", pytest.fail)
    with pytest.raises(UserError, match=r"\(ConnectionError: no route to host\)$"):
        train_agent(make_config(), URL, say=quiet)


def test_a_rewritten_file_of_the_same_size_is_copied_too(machine, files):
    for time, content in enumerate((b"one", b"two")):
        with at_hand(URL, writes=True, say=quiet) as place:
            (place.folder / "notes.txt").write_bytes(content)
            os.utime(place.folder / "notes.txt", (time, time))
        assert files.cat_file("/bucket/runs/ut/notes.txt") == content


def test_what_was_written_before_something_failed_is_copied(machine, files):
    def write_and_fail(folder):
        (folder / "notes.txt").write_bytes(b"so far")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), at_hand(URL, writes=True, say=quiet) as place:
        write_and_fail(place.folder)
    assert files.cat_file("/bucket/runs/ut/notes.txt") == b"so far"


def test_a_list_cannot_lead_out_of_the_folder(machine, files):
    for path in ("../x", "/x"):
        files.pipe_file(
            f"/bucket/runs/ut/{LISTED}", json.dumps({"id": path, "files": {path: 1}}).encode()
        )
        with pytest.raises(UserError, match="damaged"), at_hand(URL, say=quiet):
            pass


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (train, ["--config", URL, "--output-dir", "a"]),
        (sweep, [URL, "--output-dir", "a"]),
        (sweep, ["a.yaml", "--output-dir", URL]),
        (chat, ["--run", URL]),
        (ask, ["--run", URL]),
        (play, ["--run", URL]),
        (play, ["--run", "a", "--against", URL]),
        (export, ["--run", URL, "--output", "a"]),
        (export, ["--run", "a", "--output", URL]),
        (compare, [URL, "--with", "a"]),
        (compare, ["a", "--with", URL]),
        (tournament, [URL, "random", "--output-dir", "a"]),
        (evaluate, ["--run", URL, "--thoughts-of", URL]),
    ],
)
def test_other_arguments_refuse_buckets(module, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(module, *arguments)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{URL}: only folders of train, evaluate and report may be in a bucket; copy it" in last
    assert not bucket.is_bucket("runs/a")
