"""Users' own code from the shell: what it registers, whose it is, what a run keeps of it.

Every command is a process of its own, so that one knows nothing of what another has run.
"""

import json
import shutil

import pytest
from processes import command

from jaxmoral import config as configs
from jaxmoral.config import load
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import holds_any, write_configs

ENVY = """
import jaxmoral

def envy(cell, xi):
    return -xi * (cell.other_payoff > cell.own_payoff)

jaxmoral.REWARDS["envy"] = envy
jaxmoral.OPPONENTS["sulker"] = jaxmoral.memoryless(0.25)
"""
TRAIN = ["--model.source", "tabular", "--updates", "2", "--env.episodes", "64"]
TRAIN += ["--reward.name", "envy", "--env.opponent", "sulker"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a plugin and a run made with it, and a cache that knows it."""
    home = tmp_path_factory.mktemp("plugins")
    (home / "envy.py").write_text(ENVY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMORAL_CACHE", str(home / "cache"))
        plugin = ["--plugin", home / "envy.py"]
        done = command("train", "--output-dir", home / "run", *TRAIN, *plugin)
        assert done.returncode == 0, done.stderr
        assert "envy" in done.stdout
    return home


@pytest.fixture
def home(made, monkeypatch):
    monkeypatch.setenv("JAXMORAL_CACHE", str(made / "cache"))
    return made


def refused(*arguments):
    done = command(*arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.slow
def test_a_run_works_without_the_file_it_was_made_with(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    assert (run / "plugins" / "envy.py").read_text() == ENVY
    (home / "envy.py").rename(home / "gone.py")
    try:
        done = command("evaluate", "--run", run, "--games", "ipd", "--opponents", "sulker")
        assert done.returncode == 0, done.stderr
        done = command("train", "--output-dir", run, "--resume", "--updates", "3", "--extend")
        assert done.returncode == 0, done.stderr
        for arguments in (
            ["play", "--run", run, "--against", "sulker", "--episodes", "1"],
            ["report", run, "--output", tmp_path / "page"],
            ["tournament", run, "tit-for-tat", "--output-dir", tmp_path / "meet", "--games", "ipd"],
        ):
            done = command(*arguments)
            assert done.returncode == 0, done.stderr
    finally:
        (home / "gone.py").rename(home / "envy.py")
    evaluation = json.loads((run / "evaluation.json").read_text())
    tuned = evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"]
    # Own points are below the sulker's only after C and its D; three points each time.
    cells = tuned["opponents"]["sulker"]["exact"]
    assert cells["rewards"]["envy"] <= 0


@pytest.mark.slow
def test_what_comes_with_a_run_is_not_run_for_that_alone(home, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / "elsewhere"))
    stored = home / "run" / "plugins" / "envy.py"
    line = refused("evaluate", "--run", home / "run")
    assert f"--plugin {stored}" in line
    ask = ["evaluate", "--run", home / "run", "--games", "ipd"]
    assert command(*ask, "--plugin", stored, "--output", tmp_path / "e.json").returncode == 0
    assert command(*ask, "--output", tmp_path / "f.json").returncode == 0  # it has been named


@pytest.mark.parametrize(
    ("written", "says"),
    [("plugins:\n- envy.py\n", "does not say which envy.py"), (None, "was changed since")],
)
def test_a_run_that_was_tampered_with(home, tmp_path, written, says):
    run = shutil.copytree(home / "run", tmp_path / "run")
    stored = run / "plugins" / "envy.py"
    stored.write_text(f"{ENVY}\nraise SystemExit('it ran')\n")
    if written:
        text = (run / "config.yaml").read_text()
        start = text.index("plugins:")
        end = text.index("objective:")
        (run / "config.yaml").write_text(text[:start] + written + text[end:])
        shutil.copy(stored, tmp_path / "envy.py")
    assert says in refused("evaluate", "--run", run)


def test_a_file_that_changed_is_refused(home, tmp_path):
    changed = tmp_path / "envy.py"
    changed.write_text(ENVY.replace("-xi", "-2 * xi"))
    line = refused("evaluate", "--run", home / "run", "--plugin", changed)
    assert "not the one" in line
    run = shutil.copytree(home / "run", tmp_path / "run")
    line = refused("train", "--output-dir", run, "--resume", "--plugin", changed)
    assert "not the one" in line


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "[0, 1]"])
def test_a_flag_adds_to_what_the_configuration_lists(seed, home, tmp_path, monkeypatch):
    (tmp_path / "more.py").write_text("import jaxmoral\nassert 'sulker' in jaxmoral.OPPONENTS")
    (tmp_path / "one.yaml").write_text(f"plugins: [{home / 'envy.py'}]\n")
    config = load(tmp_path / "one.yaml", ["--plugin", "a.py", "--plugin=b.py"])
    assert config.plugins == (str(home / "envy.py"), "a.py", "b.py")
    run, more = tmp_path / "run", ["--plugin", tmp_path / "more.py"]
    ask = ["train", "--config", tmp_path / "one.yaml", "--output-dir", run, *TRAIN, *more]
    done = command(*ask, "--seed", seed)
    assert done.returncode == 0, done.stderr
    stored = (run / "seed=1" if seed == "[0, 1]" else run) / "plugins"
    assert {path.name for path in stored.iterdir()} == {"envy.py", "more.py"}
    monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / "elsewhere"))
    again = ["train", "--output-dir", run, "--resume", "--updates", "3", "--extend"]
    assert "never named on this machine" in refused(*again)
    for name in ("envy.py", "more.py"):
        again += ["--plugin", stored / name]
    done = command(*again)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\nnonsense\n", "line 2: NameError: name 'nonsense' is not defined"),
        ("x = 1\ndef (:\n", "line 2: invalid syntax"),
        (ENVY.replace("return -xi", "raise KeyError('cell')  # "), "line 5: KeyError: 'cell'"),
    ],
)
def test_a_plugin_that_fails_is_told_by_its_own_line(home, tmp_path, source, says):
    path = tmp_path / "mine.py"
    path.write_text(source)
    line = refused("train", "--output-dir", tmp_path / "run", *TRAIN, "--plugin", path)
    assert f"{path}, {says}" in line
    assert not (tmp_path / "run").exists()


def test_names_and_files(home, tmp_path):
    assert "cannot read no.py" in refused("train", "--output-dir", tmp_path, "--plugin", "no.py")
    other = tmp_path / "other"
    other.mkdir()
    (other / "envy.txt").write_text("")
    line = refused("train", "--output-dir", tmp_path / "run", "--plugin", other / "envy.txt")
    assert "envy.txt must end in .py" in line
    (other / "envy.py").write_text("")
    both = ["--plugin", home / "envy.py", "--plugin", other / "envy.py"]
    line = refused("train", "--output-dir", tmp_path / "run", *TRAIN, *both)
    assert "two files are called envy.py" in line


def test_a_folder_with_a_configuration_has_its_plugins(home, tmp_path, monkeypatch):
    """A run that is cut while its folder is made can be resumed, or begins again.

    This process runs the plugin, so it registers nothing that other tests would find.
    """
    (tmp_path / "mine.py").write_text("mine = 1")
    plugin = ["--plugin", str(tmp_path / "mine.py")]
    config = resolve(load(None, ["--model.source", "tabular", *plugin]))

    def save(config, path):
        assert (tmp_path / "run" / "plugins" / "mine.py").read_text() == "mine = 1"
        raise KeyboardInterrupt

    monkeypatch.setattr(configs, "save", save)
    with pytest.raises(KeyboardInterrupt):
        write_configs({"": config}, tmp_path / "run")
    assert not holds_any(tmp_path / "run")


@pytest.mark.slow
def test_a_sweep_hands_them_on(home, tmp_path):
    (tmp_path / "one.yaml").write_text(f"plugins: [{home / 'envy.py'}]\nreward: {{name: envy}}\n")
    flags = ["--model.source", "tabular", "--updates", "1", "--evaluation.suites", "[trained]"]
    done = command(
        "sweep", tmp_path / "one.yaml", "--seeds", "1", "--output-dir", tmp_path / "all", *flags
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all" / "one-seed1" / "plugins" / "envy.py").is_file()


POINTS = """
import jaxmoral

jaxmoral.REWARDS["game"] = jaxmoral.REWARDS["mine"] = lambda cell, xi: {} * cell.own_payoff
"""


@pytest.mark.slow
def test_names_stand_for_what_a_run_itself_made_of_them(home, tmp_path):
    """Also where runs of other plugins, and of none, are trained before or met."""
    flags = [*TRAIN[:6], "--env.opponent", "random", "--updates", "3", "--ppo.learning_rate", "0.3"]
    for name, sign in (("gain", 1), ("loss", -1)):
        (tmp_path / f"{name}.py").write_text(POINTS.format(sign))
        listed = f"plugins: [{tmp_path / name}.py]\nreward: {{name: mine}}\n"
        (tmp_path / f"{name}.yaml").write_text(listed)
    (tmp_path / "plain.yaml").write_text("reward: {name: game}\n")
    files = [tmp_path / f"{name}.yaml" for name in ("gain", "loss", "plain")]
    swept = tmp_path / "all"
    only = ["--evaluation.suites", "[trained]", "--evaluation.games", "[ipd]"]
    done = command("sweep", *files, "--seeds", "1", "2", "--output-dir", swept, *flags, *only)
    assert done.returncode == 0, done.stderr
    plain = command(
        "train", "--config", files[2], "--output-dir", tmp_path / "one", *flags, "--seed", "1"
    )
    assert plain.returncode == 0, plain.stderr

    def rewards(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["reward_mean"] for line in lines]

    for seed in (1, 2):  # untrained: a third is illegal, and points are worth 1 or -1 each
        assert (
            rewards(swept / f"loss-seed{seed}")[0] < -2.5 < rewards(swept / f"gain-seed{seed}")[0]
        )
    assert rewards(swept / "plain-seed1") == rewards(tmp_path / "one")
    met = ["--env.opponent", str(swept / "gain-seed1")]
    done = command("train", "--config", files[1], "--output-dir", tmp_path / "met", *flags, *met)
    assert done.returncode == 0, done.stderr
    assert rewards(tmp_path / "met")[0] < -2.5


def test_a_plugin_that_fails_in_a_sweep_is_told_by_its_line(home, tmp_path):
    (tmp_path / "mine.py").write_text(ENVY.replace("return -xi", "raise KeyError('cell')  # "))
    (tmp_path / "one.yaml").write_text("reward: {name: envy}\n")
    flags = ["--model.source", "tabular", "--updates", "1", "--plugin", tmp_path / "mine.py"]
    done = command(
        "sweep", tmp_path / "one.yaml", "--seeds", "1", "--output-dir", tmp_path / "all", *flags
    )
    assert done.returncode != 0
    assert f"{tmp_path / 'mine.py'}, line 5: KeyError: 'cell'" in done.stderr
    assert "Traceback" not in done.stderr
