"""Python files of a user's own, run before names are looked up: they register rewards and the like.

A configuration lists them in `plugins`; each `--plugin FILE` is one more. A run keeps a copy of
each, and its own `plugins` say which they were, "NAME.py@SHA256". A file is run once in a process;
when it is asked for again, its names stand for what it made of them. What comes with a run folder
is not run for that alone, for it may be somebody else's: only what was named once on this machine
is, in whatever folder it is then, and a file of the cache remembers the digests of those.
"""

import argparse
import hashlib
import json
import re
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxmoral.errors import UserError, own_files
from jaxmoral.files import replacing

FOLDER = "plugins"  # in a run folder
_STORED = re.compile(r"(.+\.py)@([0-9a-f]{64})")


class Plugin(NamedTuple):
    """A file that has been run in this process.

    Attributes:
      name: of the file.
      source: what is in it.
      names: what it registered, in each of `_registries`.
    """

    name: str
    source: bytes
    names: list[dict[str, Any]]


_ran: dict[str, Plugin] = {}  # by digest
_named: dict[str, str] = {}  # digests by name, of those on the command line


def _registries() -> list[dict[str, Any]]:
    from jaxmoral.language import prompts, scenarios, suites
    from jaxmoral.world import games, opponents, rewards

    return [
        rewards.REWARDS,
        rewards.FAMILIES,
        opponents.OPPONENTS,
        opponents.FAMILIES,
        games.GAMES,
        games.FAMILIES,
        games.SETS,
        prompts.WORDINGS,
        prompts.PERSONAS,
        prompts.QUESTIONS,
        scenarios.SUITES,
        suites.SUITES,
    ]


@contextmanager
def names_kept() -> Iterator[None]:
    """Afterwards names stand for what they did: another run's plugins may have said otherwise."""
    before = [dict(registry) for registry in _registries()]
    try:
        yield
    finally:
        for registry, names in zip(_registries(), before, strict=True):
            registry.clear()
            registry.update(names)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Adds the flag `--plugin`."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this file first, which registers rewards, opponents, games, ...; may be repeated",
    )


def as_flags(paths: Sequence[str]) -> list[str]:
    """What was given as `--plugin`, as flags of the configuration."""
    return [text for path in paths for text in ("--plugin", json.dumps(path))]


def name_plugins(paths: Sequence[str]) -> None:
    """Runs what was given as `--plugin` to a command that may read runs; raises UserError."""
    for entry in settle_plugins(tuple(paths)):
        name, _, digest = entry.rpartition("@")
        _named[name] = digest


def settle_plugins(plugins: Sequence[str]) -> tuple[str, ...]:
    """Runs the files, each once in a process, and returns them as a run keeps them.

    Args:
      plugins: paths; or what this returned, which must have been run.

    Raises:
      UserError: a file cannot be read, fails, is called like another, or was not run.
    """
    settled = []
    for plugin in plugins:
        stored = _STORED.fullmatch(plugin)
        if stored is None:
            path = Path(plugin)
            if path.suffix != ".py":
                raise UserError(f"plugins: {path} must end in .py")
            source = _read(path)
            digest = hashlib.sha256(source).hexdigest()
            _run(path, source, digest)
            _remember(digest)
            settled.append(f"{path.name}@{digest}")
        elif stored[2] in _ran:
            _register(stored[2])
            settled.append(plugin)
        else:
            raise UserError(f"plugins: {stored[1]} is a run's copy; name the file")
    settled = list(dict.fromkeys(settled))  # a run's copy may be named again
    names = [entry.rpartition("@")[0] for entry in settled]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"plugins: two files are called {twice[0]}; rename one")
    return tuple(settled)


def run_stored(plugins: Sequence[str], folder: Path) -> None:
    """Runs the copies that a run folder keeps, if they are the user's own.

    Raises:
      UserError: a copy was never named on this machine, is not what the run was made with, or
        another file of its name was given as `--plugin`.
    """
    for plugin in plugins:
        stored = _STORED.fullmatch(plugin)
        if stored is None:
            raise UserError(f"plugins: {folder} does not say which {plugin} it was made with")
        name, digest = stored.groups()
        path = folder / FOLDER / Path(name).name
        if _named.get(name, digest) != digest:
            raise UserError(
                f"--plugin: {name} is not the one that {folder} was made with; leave it out, and"
                f" the copy in {path} is used"
            )
        if digest in _ran:
            _register(digest)
            continue
        source = _read(path)
        if hashlib.sha256(source).hexdigest() != digest:
            raise UserError(f"plugins: {path} was changed since the run was made with it")
        if digest not in _remembered():
            raise UserError(
                f"plugins: {folder} was made with code that was never named on this machine; read"
                f" it, then add --plugin {path}"
            )
        _run(path, source, digest)


def write_plugins(plugins: Sequence[str], folder: Path) -> None:
    """Keeps copies of a run's plugins in its folder."""
    for plugin in plugins:
        name, _, digest = plugin.rpartition("@")
        home = folder / FOLDER
        home.mkdir(parents=True, exist_ok=True)
        with replacing(home / name) as scratch:
            scratch.write_bytes(_ran[digest].source)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"plugins: cannot read {path} ({error.strerror})") from None


def _run(path: Path, source: bytes, digest: str) -> None:
    if digest in _ran:
        _register(digest)
        return
    before = [dict(registry) for registry in _registries()]
    where = str(path.absolute())
    own_files.add(where)  # whatever it raises, now or later, is told by its line
    module = types.ModuleType(f"jaxmoral_plugin_{path.stem}")
    module.__file__ = where
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, where, "exec"), module.__dict__)
    except SyntaxError as error:
        place = path if error.filename == where else error.filename  # of what it imports
        raise UserError(f"plugins: {place}, line {error.lineno}: {error.msg}") from None
    names = [
        {name: value for name, value in registry.items() if known.get(name) is not value}
        for registry, known in zip(_registries(), before, strict=True)
    ]
    _ran[digest] = Plugin(path.name, source, names)


def _register(digest: str) -> None:
    for registry, names in zip(_registries(), _ran[digest].names, strict=True):
        registry.update(names)


def _memory() -> Path:
    from jaxmoral.models.load import cache_folder  # slow to import

    return cache_folder() / "plugins.json"


def _remembered() -> list[str]:
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return known if isinstance(known, list) else []


def _remember(digest: str) -> None:
    known, path = _remembered(), _memory()
    if digest in known:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_text(json.dumps([*known, digest]), encoding="utf-8")
