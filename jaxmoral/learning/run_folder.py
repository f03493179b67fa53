"""What a run's folder and a population's folder hold, and whose they are while they are written.

    RUN/
      config.yaml       the configuration, pinned; see `config.states`
      plugins/          copies of the user's own code that it was made with; see `plugins`
      anchor.json       what the base said, if the run is kept at it; see `anchor`
      checkpoints/      a folder each, by the number of updates; see `checkpoint`
      damaged/          checkpoints that could not be read, out of the way of new ones
      metrics.jsonl     a line an update; see `metrics`
      metrics.csv       the same as a table
      tracking.json     the run's name in trackers that keep it elsewhere; see `trackers`
      tensorboard/, wandb/    what trackers keep here
    POPULATION/
      members.yaml      the members' names, in the order of their states
      checkpoints/, damaged/, metrics.*, tracking.json, tensorboard/, wandb/    of all members
      MEMBER/           its config.yaml, anchor.json and, when training ends, its metrics.*

Commands add what is made of a run: pictures, evaluations and answers. `saved` reads a run back.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import yaml

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.config.states import Pinned
from jaxmoral.errors import UserError
from jaxmoral.files import replacing
from jaxmoral.learning.plugins import run_stored, write_plugins

CONFIG = "config.yaml"
MEMBERS = "members.yaml"
ANCHOR = "anchor.json"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
METRICS = "metrics.jsonl"
TABLE = "metrics.csv"
_LOCK = ".lock"

Which = int | Literal["best"] | None  # checkpoint; None is the newest


class Place(NamedTuple):
    """Where a run is found and written.

    Attributes:
      folder: on this machine.
      push: copies what has changed to where it is kept besides; None where there is no such place.
    """

    folder: Path
    push: Callable[[], None] | None = None


class Membership(NamedTuple):
    """Which member of which population a folder is of.

    Attributes:
      home: the population's folder.
      names: of all members.
      number: of this one among them, from 0.
    """

    home: Path
    names: list[str]
    number: int


def is_run(folder: Path) -> bool:
    """Whether it holds a run's configuration, of a run alone or of a member."""
    return (folder / CONFIG).is_file()


def is_population(folder: Path) -> bool:
    """Whether it lists members."""
    return (folder / MEMBERS).is_file()


def has_checkpoints(folder: Path) -> bool:
    """Whether there is a place for checkpoints; a member's are in its population's folder."""
    return (folder / CHECKPOINTS).is_dir()


def holds_any(folder: Path) -> bool:
    """Whether training has begun to write in it, however far it came."""
    return any((folder / name).exists() for name in (CONFIG, CHECKPOINTS, MEMBERS))


def run_folders(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where each run is: of several a folder in this one, of a single one it is this one."""
    if len(names) == 1:
        return {names[0]: folder}
    return {name: folder / name for name in names}


def population_of(folder: Path) -> Membership | None:
    """The population a run folder belongs to; None for a run alone.

    Raises:
      UserError: the folder is in a population's, but is none of its members.
    """
    home, name = folder.absolute().parent, folder.absolute().name
    if (folder / CHECKPOINTS).exists() or not is_population(home):
        return None
    names = member_names(home)
    if name not in names:
        raise UserError(f"{folder} is no member of the population in {home}")
    return Membership(home, names, names.index(name))


def named_checkpoint(name: str) -> tuple[Path, Which]:
    """A folder, and which checkpoint of it "FOLDER@40" or "FOLDER@best" is; "FOLDER" the newest."""
    folder, _, which = name.rpartition("@")
    if not folder or not (which.isdecimal() or which == "best") or Path(name).is_dir():
        return Path(name), None
    return Path(folder), "best" if which == "best" else int(which)


def member_names(folder: Path) -> list[str]:
    """The names in a population's folder; raises UserError if they cannot be read."""
    path = folder / MEMBERS
    try:
        names = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} ({error})") from None
    if not names or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"{path} is damaged: it must list names")
    return names


def read_config(folder: Path, flags: Sequence[str] = ()) -> Config:
    """A run's configuration with flags over it; runs its plugins, if they are the user's own.

    Raises:
      UserError: there is none to read, or a plugin may not be run.
    """
    if not is_run(folder):
        raise UserError(f"{folder} holds no run (there is no {CONFIG} in it)")
    if not (folder / CONFIG).stat().st_size:
        raise UserError(f"{folder / CONFIG} is damaged: it is empty")
    config = configs.load(folder / CONFIG)
    run_stored(config.plugins, folder)
    return configs.load(folder / CONFIG, flags) if flags else config


def check_alone(folder: Path) -> Config:
    """A run's configuration; raises UserError if there is none, or a population's."""
    check_no_population(folder)
    return read_config(folder)


def check_no_population(folder: Path, key: str | None = None) -> None:
    """Raises UserError if a folder, perhaps of a key's, is a population's; names some members."""
    if is_population(folder):
        some, where = ", ".join(member_names(folder)[:3]), f"{key}: {folder}" if key else folder
        raise UserError(f"{where} holds a population; name a member's folder in it: {some}, ...")


def write_configs(members: Mapping[str, Pinned], folder: Path) -> None:
    """Writes the configuration of a run, or of every member and then their names."""
    for name, own in run_folders(folder, list(members)).items():
        own.mkdir(parents=True, exist_ok=True)
        write_plugins(members[name].plugins, own)  # first: what has a configuration can be resumed
        with replacing(own / CONFIG) as scratch:
            configs.save(members[name], scratch)
    if len(members) > 1:
        with replacing(folder / MEMBERS) as scratch:
            scratch.write_text(yaml.safe_dump(list(members), sort_keys=False), encoding="utf-8")


def check_run_folder(folder: Path, resume: bool) -> None:
    """Raises UserError if a new run would overwrite one, or there is none to resume."""
    if holds_any(folder) and not resume:
        raise UserError(
            f"{folder} already holds a run; add --resume to go on with it, or choose another"
            " --output-dir"
        )
    if resume and not holds_any(folder):
        raise UserError(f"{folder} holds no run to resume")
    if resume and (population := population_of(folder)):
        raise UserError(f"{folder} is a member of a population; resume {population.home}")
    # What is refused is refused now, not after minutes of loading.
    if odd := [character for character in "[\\" if character in str(folder.absolute())]:
        raise UserError(
            f"--output-dir: {folder.absolute()} holds {odd[0]!r}, and checkpoints in such a path"
            " cannot be read; choose another"
        )
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"--output-dir: cannot write to {nearest}")


@contextmanager
def locked(folder: Path, resume: bool) -> Iterator[None]:
    """Makes the folder this program's own while it runs; the lock ends with the process.

    Raises:
      UserError: another process is writing to it, or wrote a run since it was checked.
    """
    from jaxmoral.devices.cluster import on_first  # slow to import

    held: list[TextIO] = []

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        held.append((folder / _LOCK).open("w", encoding="utf-8"))
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; stop it first") from None
        except OSError as error:
            print(f"{folder} cannot be locked ({error.strerror}); start one training in it only")
        check_run_folder(folder, resume)

    try:
        on_first(take)
        yield
    finally:
        for file in held:
            file.close()
