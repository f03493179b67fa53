"""Trackers: what they are given, that a run goes on in them, and that none of them stops one."""

import csv
import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral import evaluate
from jaxmoral.api import train_agent, train_population
from jaxmoral.errors import UserError
from jaxmoral.learning import metrics, trackers, training

FLAGS = ["--model.source", "tabular", "--env.episodes", "64", "--ppo.epochs", "1"]
FLAGS += ["--checkpoint_every", "1", "--ppo.final_entropy_coef", "1"]


def make_config(*flags):
    return configs.load(None, [*FLAGS, *flags])


class Service(ModuleType):
    """Stands for a package of the interface that wandb and trackio share, and keeps what it got.

    Attributes:
      account: whether there is one.
      fails: the name of the function that raises.
      axes: what numbers are drawn over, by the pattern of their names.
    """

    def __init__(self, name):
        super().__init__(name)
        self.account, self.fails, self.begun, self.runs = True, None, [], {}
        self.axes = {}

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode="online"))

    def login(self, *, prompt, verify):
        assert not prompt
        return self.account

    def Settings(self, **settings):
        return settings

    def Image(self, path):
        return SimpleNamespace(picture=path)

    def init(self, **given):
        self._call("init")
        self.begun.append(given)
        key = given.get("id", given["name"])
        assert given["resume"] == "allow"
        run = self.runs.setdefault(key, [])

        def log(numbers, step=None):
            self._call("log")
            run.append(numbers if step is None else numbers | {"update": step})

        def finish():
            self._call("finish")

        def define_metric(name, step_metric=None):
            self.axes[name] = step_metric

        return SimpleNamespace(log=log, finish=finish, define_metric=define_metric)

    def _call(self, name):
        if self.fails == name:
            raise ConnectionError("the network is\ngone")


@pytest.fixture
def service(request, monkeypatch):
    found = Service(getattr(request, "param", "wandb"))
    monkeypatch.setitem(sys.modules, found.__name__, found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("service", ["wandb", "trackio"], indirect=True)
def test_a_run_goes_on_in_the_same_run(service, tmp_path, monkeypatch):
    """Its numbers, its configuration, its pictures and its evaluation."""
    folder = tmp_path / "run"
    flags = ["--tracker", service.__name__]
    train_agent(make_config("--updates", "2", *flags), folder, say=quiet)
    train_agent(make_config("--updates", "3", *flags), folder, True, say=quiet)
    command = ["evaluate", "--run", str(folder), "--games", "ipd", "--protocols", "exact"]
    monkeypatch.setattr(sys, "argv", command)
    evaluate.main()
    assert [given["project"] for given in service.begun] == ["jaxmoral"] * 5
    assert service.begun[0]["config"]["reward"]["name"] == "deontological"
    assert service.axes.get("*") == ("update" if service.__name__ == "wandb" else None)
    ((_, logged),) = service.runs.items()
    pictures = {}
    for numbers in logged:
        pictures |= {name: x.picture for name, x in numbers.items() if hasattr(x, "picture")}
    assert pictures == {
        "action_types": str(folder / "action_types.png"),
        "regret": str(folder / "regret.png"),
    }
    told = [numbers for numbers in logged if "reward_mean" in numbers]
    history = metrics.read(folder)
    assert [numbers["update"] for numbers in told] == [1, 2, 3]
    for numbers, record in zip(told, history, strict=True):
        assert numbers["reward_mean"] == record["reward_mean"]
        assert numbers["action_types/D_after_C"] == record["action_types"]["D|C"]
    (tested,) = (numbers for numbers in logged if any("evaluation/" in name for name in numbers))
    held = json.loads((folder / "evaluation.json").read_text())
    exact = held["suites"]["trained"]["ipd"]["policies"]["tuned"]["opponents"]["random"]["exact"]
    name = "evaluation/trained/ipd/tuned/random/regret/utilitarian/normalised"
    assert tested[name] == exact["regret"]["utilitarian"]["normalised"]
    assert tested["update"] == 3
    assert not (folder / "tensorboard").exists()


@pytest.mark.slow
def test_what_is_made_of_a_member_has_its_name(service, tmp_path):
    flags = [*FLAGS, "--updates", "1", "--seed", "[0, 1]", "--tracker", "wandb"]
    train_population(configs.load_members(None, flags), tmp_path / "many", say=quiet)
    service.runs.clear()
    folder = tmp_path / "many" / "seed=1"
    trackers.add_to_trackers(folder, 1, {"x": 2.0}, {"regret": folder / "action_types.png"})
    ((_, logged),) = service.runs.items()
    numbers, picture = logged
    assert numbers == {"seed=1/x": 2.0, "update": 1}
    assert picture.keys() == {"seed=1/regret", "update"}


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(service, tmp_path, fails):
    service.fails = fails
    said = []
    flags = ["--updates", "3", "--tracker", "tensorboard,wandb"]
    made = training.fit_agent(make_config(*flags), tmp_path / "run", say=said.append)
    assert len(made.history) == len(metrics.read(tmp_path / "run")) == 3
    (line,) = (line for line in said if "failed" in line)
    assert line.startswith("tracker wandb failed (ConnectionError: the network is gone)")
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_damaged_name_stops_nothing(service, tmp_path):
    folder, said = tmp_path / "run", []
    training.fit_agent(make_config("--updates", "1", "--tracker", "wandb"), folder, say=quiet)
    (folder / "tracking.json").write_text('{"id": "../../x"}')
    longer = make_config("--updates", "2", "--tracker", "wandb")
    training.fit_agent(longer, folder, True, say=said.append)
    assert "tracking.json is damaged" in "".join(said)
    assert len(metrics.read(folder)) == 2


def test_what_is_missing_is_said_before_training(service, tmp_path, monkeypatch):
    service.account = False
    monkeypatch.setattr(training, "make_agent", pytest.fail)
    with pytest.raises(UserError, match="wandb login, or set WANDB_MODE=offline"):
        train_agent(make_config("--tracker", "wandb"), tmp_path / "run", say=quiet)
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(
        UserError, match="^tracker: trackio cannot be imported.*pip install trackio"
    ):
        train_agent(make_config("--tracker", "trackio"), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("none", ()),
        ("[]", ()),
        ("wandb", ("wandb",)),
        ("tensorboard,wandb", ("tensorboard", "wandb")),
        ("[trackio, tensorboard]", ("trackio", "tensorboard")),
    ],
)
def test_trackers_are_chosen_by_name(text, chosen, tmp_path):
    config = make_config("--tracker", text)
    assert config.tracker == chosen
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load(tmp_path / "config.yaml") == config


def test_another_tracker_is_no_other_run(tmp_path):
    train_agent(make_config("--updates", "1"), tmp_path / "run", say=quiet)
    longer = make_config("--updates", "2", "--tracker", "none")
    assert int(train_agent(longer, tmp_path / "run", True, say=quiet).state.update) == 2
    assert configs.load(tmp_path / "run" / "config.yaml").tracker == ()


@pytest.mark.slow
def test_the_table_has_the_same_numbers(tmp_path):
    """Of members each its own, together their means; also where a column comes in later."""
    flags = [*FLAGS, "--updates", "2", "--seed", "[0, 1]", "--mixture.games", "[ipd, ish]"]
    train_population(configs.load_members(None, flags), tmp_path, say=quiet)
    read = lambda folder: list(csv.DictReader((folder / "metrics.csv").open()))
    one, two, both = (
        read(folder) for folder in (tmp_path / "seed=0", tmp_path / "seed=1", tmp_path)
    )
    for record, a, b, mean in zip(metrics.read(tmp_path), one, two, both, strict=True):
        assert [float(row["reward_mean"]) for row in (a, b)] == record["reward_mean"]
        middle = sum(record["reward_mean"]) / 2
        assert float(mean["reward_mean"]) == pytest.approx(middle)
        assert json.loads(a["conditions"]) == record["conditions"][0]
    folder = tmp_path / "earlier"
    folder.mkdir()
    earlier = {"update": 1, "loss": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(earlier) + "\n")
    with metrics.MetricsLog(folder, 1) as log:
        log.append({"update": 2, "kl": 0.25, "loss": 1.0})
        log.append({"update": 3, "loss": 2.0})
    assert read(folder) == [
        {"update": "1", "loss": "0.5", "kl": ""},
        {"update": "2", "loss": "1.0", "kl": "0.25"},
        {"update": "3", "loss": "2.0", "kl": ""},
    ]


def test_event_files_of_what_came_later_go(tmp_path):
    """And pictures stay with the update they were made of."""
    config = {"": make_config()}
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\0\0\0\x04\0\0\0\x03")
    for start in (0, 5):
        with trackers.Trackers(tmp_path, config, start=start) as several:
            several.append({"update": start + 1, "loss": 1.0})
        with trackers.Trackers(tmp_path, config, start=start + 5, what="m/picture") as several:
            several.show(start + 5, "m/picture", picture)
    event = importlib.import_module("tensorboardX.proto.event_pb2").Event
    data = (tmp_path / "tensorboard" / "events.out.tfevents.0000000010.m.picture").read_bytes()
    size = int.from_bytes(data[:8], "little")
    (value,) = event.FromString(data[size + 16 + 12 : -4]).summary.value
    assert (value.image.width, value.image.height) == (4, 3)
    assert value.image.encoded_image_string == picture.read_bytes()
    with trackers.Trackers(tmp_path, config, start=5):
        pass
    names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert [name.partition("tfevents.")[2] for name in names] == [
        "0000000000",
        "0000000005",
        "0000000005.m.picture",
    ]
