"""Where metrics go besides files: TensorBoard, Weights & Biases, Trackio. None stops a run.

A tracker gets the pinned configuration, every number of every update (of a population the
members' mean) and, when there are some, pictures and evaluations. One that fails is said once and
left out from there on. A run goes on in the same run of a tracker when it is resumed, by the name
in `tracking.json`.
"""

import importlib
import json
import re
import secrets
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from jaxmoral.config import ALONE, Config, to_dict
from jaxmoral.errors import UserError
from jaxmoral.learning.metrics import scalars
from jaxmoral.learning.run_folder import (
    is_population,
    member_names,
    population_of,
    read_config,
)

TENSORBOARD = "tensorboard"
PROJECT = "jaxmoral"
_TRACKING = "tracking.json"


class Tracker(Protocol):
    """A place for a run's numbers and pictures."""

    def log(self, update: int, numbers: Mapping[str, float]) -> None:
        """Takes numbers after an update, by name."""

    def show(self, update: int, name: str, picture: Path) -> None:
        """Takes a PNG file."""

    def flush(self) -> None:
        """Makes what was taken durable."""

    def close(self) -> None:
        """Ends, for now."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError if one of the trackers is not installed or has no account."""
    for name in names:
        package = {TENSORBOARD: "tensorboardX"}.get(name, name)
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"tracker: {name} cannot be imported ({error}); pip install {package}, or --tracker"
                " none"
            ) from None
        if name == "wandb":
            _check_account(module)


def _check_account(wandb: Any) -> None:
    """Raises UserError unless Weights & Biases would take a run without asking somebody."""
    try:
        offline = wandb.setup().settings.mode in ("offline", "dryrun", "disabled")
        known = offline or wandb.login(prompt=False, verify=False)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"tracker: wandb cannot be asked for its account ({reason})") from None
    if not known:
        raise UserError(
            "tracker: wandb has no account here; run wandb login, or set WANDB_MODE=offline"
        )


class Trackers:
    """Several trackers of a run folder, none of which can stop what is tracked."""

    def __init__(
        self,
        folder: Path,
        members: Mapping[str, Config],
        *,
        start: int,
        what: str = "",
        say: Callable[[str], None] = print,
    ):
        """Begins the run in its trackers, or goes on with it.

        Args:
          folder: of the run or the population.
          members: the pinned configurations by name.
          start: how many updates were made.
          what: comes, if not the updates that follow.
          say: where lines for people go.
        """
        self._say = say
        self._open: dict[str, Tracker] = {}

        def begin(name: str) -> None:
            if name == TENSORBOARD:
                self._open[name] = _TensorBoard(folder / TENSORBOARD, start, what)
            else:
                self._open[name] = _Service(name, folder, members)

        for name in dict.fromkeys(next(iter(members.values())).tracker):
            self._guard(name, partial(begin, name))

    def append(self, record: dict) -> None:
        """Takes an update's record."""
        numbers = dict(scalars(record))
        self._each(lambda tracker: tracker.log(record["update"], numbers))

    def add(self, update: int, numbers: Mapping[str, float]) -> None:
        """Takes what was measured after training."""
        self._each(lambda tracker: tracker.log(update, numbers))

    def show(self, update: int, name: str, picture: Path) -> None:
        """Takes a PNG file."""
        self._each(lambda tracker: tracker.show(update, name, picture))

    def sync(self) -> None:
        """Makes what was taken durable."""
        self._each(lambda tracker: tracker.flush())

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, use: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            self._guard(name, partial(use, tracker))

    def _guard(self, name: str, use: Callable[[], None]) -> None:
        try:
            use()
        except Exception as error:  # of a package that is not ours, over a network
            self._open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._say(f"tracker {name} failed ({reason}); going on without it")


def add_to_trackers(
    folder: Path, update: int, numbers: Mapping[str, float], pictures: Mapping[str, Path]
) -> None:
    """Gives the trackers of a trained run or population what was made of it.

    Args:
      folder: of the run or the population; or of a member, whose name then goes before all others.
      update: of the checkpoint that it was made of.
      numbers, pictures: by name; at least one picture, each a PNG file.
    """
    home, prefix = folder, ""
    if not is_population(folder) and (population := population_of(folder)):
        home, prefix = population.home, f"{folder.name}/"
    names = member_names(home) if is_population(home) else [ALONE]
    members = {name: read_config(home / name) for name in names}
    with Trackers(home, members, start=update, what=prefix + next(iter(pictures))) as trackers:
        if numbers:
            trackers.add(update, {f"{prefix}{name}": value for name, value in numbers.items()})
        for name, path in pictures.items():
            trackers.show(update, f"{prefix}{name}", path)


class _Service:
    """A run of Weights & Biases or of Trackio, whose interfaces are alike."""

    def __init__(self, name: str, folder: Path, members: Mapping[str, Config]):
        check_trackers([name])  # or it would ask
        self._module = importlib.import_module(name)
        own = _identity(folder)
        title = folder.resolve().name
        told = {key: to_dict(config) for key, config in members.items()}
        config = told[ALONE] if list(told) == [ALONE] else {"members": told}
        begin: dict[str, Any] = {"project": PROJECT, "config": config, "resume": "allow"}
        if name == "wandb":
            settings = self._module.Settings(console="off", silent=True)
            begin |= {"id": own, "name": title, "dir": str(folder), "settings": settings}
        else:
            begin |= {"name": f"{title}-{own}", "embed": False}
        self._run = self._module.init(**begin)
        self._by_step = name != "wandb"
        if not self._by_step:  # whose own steps only rise, and some updates are made twice
            self._run.define_metric("update")
            self._run.define_metric("*", step_metric="update")

    def log(self, update: int, numbers: Mapping[str, Any]) -> None:
        if self._by_step:
            self._run.log(dict(numbers), step=update)
        else:
            self._run.log({**numbers, "update": update})

    def show(self, update: int, name: str, picture: Path) -> None:
        self.log(update, {name: self._module.Image(str(picture))})

    def flush(self) -> None:
        """Both send what they have by themselves."""

    def close(self) -> None:
        self._run.finish()


def _identity(folder: Path) -> str:
    """What a run folder is called by trackers; made up when it is asked for first."""
    path = folder / _TRACKING
    if not path.is_file():
        path.write_text(json.dumps({"id": secrets.token_hex(4)}) + "\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8")).get("id")
    if not isinstance(found, str) or not re.fullmatch(r"[0-9a-z]{1,64}", found):
        raise ValueError(f"{path} is damaged")
    return found


class _TensorBoard:
    """An event file for the updates of each start, and one for whatever was made afterwards."""

    def __init__(self, folder: Path, start: int, what: str):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{start:010d}"
        if what:
            path = folder / f"{name}.{what.replace('/', '.')}"
            path.unlink(missing_ok=True)  # it would be appended to
        else:
            path = folder / name
            for other in folder.glob("events.out.tfevents.*"):  # what came later does not count
                number, *made_of_it = other.name.split(".")[3:]
                if number.isdecimal() and int(number) >= start + bool(made_of_it):
                    other.unlink()
        # tensorboardX's own writer is a thread, which would die unheard on a full disk.
        self._writer = RecordWriter(str(path))
        self._write(file_version="brain.Event:2")
        if not what:
            log = event_pb2.SessionLog
            self._write(step=start + 1, session_log=log(status=log.START))

    def log(self, update: int, numbers: Mapping[str, float]) -> None:
        # One event for all scalars: an event each would take longer than a small update.
        values = [self._summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()]
        self._write(step=update, summary=self._summary(value=values))

    def show(self, update: int, name: str, picture: Path) -> None:
        content = picture.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of a PNG file's head
        image = self._summary.Image(
            width=width, height=height, colorspace=4, encoded_image_string=content
        )
        value = self._summary.Value(tag=name, image=image)
        self._write(step=update, summary=self._summary(value=[value]))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
