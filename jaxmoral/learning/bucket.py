"""Run folders in buckets: gs://, s3://, or whatever else fsspec knows, by way of a folder here.

Files are appended to, renamed and locked while a run is made, which objects in a bucket are not. So
a run is made in a folder of the cache, and what has changed in it is copied to the bucket when a
checkpoint is complete and when the command ends. A list of the files is copied last, and what it
does not name does not count: however a copy is cut off, the bucket holds the checkpoints of before.
"""

import argparse
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmoral.errors import UserError
from jaxmoral.files import PART, replacing
from jaxmoral.learning.run_folder import Place

LISTED = ".jaxmoral-files.json"  # in the bucket
_SYNCED = "synced.json"  # beside the folder here
_UNWANTED = (".lock", PART)  # ends of names

Files = dict[str, list[int]]  # by relative path: what tells whether a file has changed


def is_bucket(name: str | Path) -> bool:
    """Whether it names a folder elsewhere, `protocol://...`."""
    return isinstance(name, str) and "://" in name


def place_of(text: str) -> str | Path:
    """What a command's argument names: a bucket as it is written, or a path."""
    if not text:
        raise argparse.ArgumentTypeError("names no folder; write . for this one")
    return text if is_bucket(text) else Path(text)


def local_path(text: str) -> Path:
    """A path, of an argument that no bucket can stand for."""
    return Path(not_in_bucket(text))


def not_in_bucket(text: str) -> str:
    """An argument that is a name, or a path that no bucket can stand for."""
    if not text:
        raise argparse.ArgumentTypeError("names nothing")
    if is_bucket(text):
        raise argparse.ArgumentTypeError(
            f"{text}: only folders of train, evaluate and report may be in a bucket; copy it to"
            " this machine and name the copy"
        )
    return text


@contextmanager
def at_hand(
    name: Place | str | Path, *, writes: bool = False, say: Callable[[str], None] = print
) -> Iterator[Place]:
    """A folder that is here, or that of a bucket, fetched now and copied back in the end.

    Args:
      name: a path, or the URL of a folder in a bucket; a place is what it is.
      writes: whether something may be written to it.
      say: where lines for people go.

    Raises:
      UserError: the bucket cannot be reached, or not be written to.
    """
    if isinstance(name, Place) or not is_bucket(name):
        yield name if isinstance(name, Place) else Place(Path(name))
        return
    import jax  # commands start faster without it

    if jax.process_count() > 1:
        raise UserError(f"{name}: several processes need a folder that all of them see")
    bucket = _Bucket(str(name).rstrip("/"), say)
    inside = bucket.fetch()
    if not writes:
        yield Place(inside)
        return
    bucket.probe()
    try:
        yield Place(inside, bucket.push_if_possible)
    except BaseException:
        bucket.push_if_possible()  # what went wrong first is what matters
        raise
    bucket.push()


class _Bucket:
    """A folder in a bucket, and the one here that stands for it."""

    def __init__(self, url: str, say: Callable[[str], None]):
        import fsspec  # slow, and seldom needed

        self._say = say
        self._warned = False
        self._told(url)
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # ImportError, ValueError, or of a package that is not ours
            raise self._failure("use", error) from None

    def _told(self, url: str) -> None:
        from jaxmoral.models.load import cache_folder  # slow to import

        self._url = url
        self._home = cache_folder() / "buckets" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._folder = self._home / url.rpartition("/")[2]

    def fetch(self) -> Path:
        """Makes the folder here like that in the bucket, unless it is newer; returns it.

        Of a member of a population that is the member's in the population's folder.
        """
        try:
            listed, inside = self._listed(), ""
            if listed is None:
                parent, _, name = self._url.rpartition("/")
                above = self._listed(self._root.rpartition("/")[0])
                if above and any(path.startswith(f"{name}/") for path in above["files"]):
                    self._told(parent)
                    self._root, listed, inside = self._root.rpartition("/")[0], above, name
            synced, lost = self._synced(), False
            if listed is None:
                listed = self._found()
                lost = not synced["files"].keys() <= listed["files"].keys()
            self._say(f"bucket     {self._url}, by way of {self._folder}")
            if listed["id"] != synced["id"] or not self._folder.is_dir():
                self._set_aside({} if lost else synced["files"])
                self._download(listed)
        except UserError:
            raise
        except Exception as error:
            raise self._failure("read", error) from None
        return self._folder / inside

    def probe(self) -> None:
        """Raises UserError if nothing can be written to the bucket."""
        path = f"{self._root}/.jaxmoral-{secrets.token_hex(4)}"
        try:
            self._files.pipe_file(path, b"")
            self._files.rm_file(path)
        except Exception as error:
            raise self._failure("write to", error) from None

    def push(self) -> None:
        """Copies what has changed; raises UserError if it cannot."""
        synced, now = self._synced(), self._scan()
        changed = [path for path, state in now.items() if synced["files"].get(path) != state]
        gone = [path for path in synced["files"] if path not in now]
        if not changed and not gone:
            return
        remote = lambda paths: [f"{self._root}/{path}" for path in paths]
        identity = secrets.token_hex(8)
        content = {"id": identity, "files": {path: now[path][0] for path in now}}
        try:
            if changed:
                here = [str(self._folder / path) for path in changed]
                self._files.put(here, remote(changed))
            listed = json.dumps(content).encode()
            self._files.pipe_file(f"{self._root}/{LISTED}", listed)
            for path in remote(gone):
                if self._files.exists(path):
                    self._files.rm_file(path)
        except Exception as error:
            line = f"{self._failure('write to', error)}; the run is in {self._folder}, and the same"
            raise UserError(f"{line} command, with --resume, copies it") from None
        self._keep(identity, now)

    def push_if_possible(self) -> None:
        """Copies what has changed, or says once that it cannot now; it is tried again later."""
        try:
            self.push()
        except UserError as error:
            if not self._warned:
                self._say(str(error))
            self._warned = True

    def _listed(self, root: str | None = None) -> dict[str, Any] | None:
        """The list of files in a folder of the bucket; None if there is none."""
        path = f"{root or self._root}/{LISTED}"
        try:
            listed = json.loads(self._files.cat_file(path))
        except FileNotFoundError:
            return None
        if not isinstance(listed, dict) or not {"id", "files"} <= listed.keys():
            raise ValueError(f"{LISTED} is damaged")
        return listed

    def _found(self) -> dict[str, Any]:
        """A list of what somebody else has put there."""
        try:
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            found = {}
        start = f"{self._root.rstrip('/')}/"
        sizes = {path.removeprefix(start): about["size"] for path, about in found.items()}
        digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()
        return {"id": digest if sizes else None, "files": sizes}

    def _download(self, listed: dict[str, Any]) -> None:
        scratch = self._home / "fetched.part"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        for path in listed["files"]:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{LISTED} is damaged")
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
        paths = list(listed["files"])
        if paths:
            here = [str(scratch / path) for path in paths]
            self._files.get([f"{self._root}/{path}" for path in paths], here)
        shutil.rmtree(self._folder, ignore_errors=True)
        scratch.rename(self._folder)
        self._keep(listed["id"], self._scan())

    def _set_aside(self, known: Files) -> None:
        """Keeps what is here and in no bucket, under another name, unless it is what is known."""
        if not self._folder.is_dir() or self._scan() == known:
            return
        names = (self._home / f"{self._folder.name}-earlier{n or ''}" for n in range(10**6))
        aside = self._folder.rename(next(path for path in names if not path.exists()))
        self._say(f"{self._url} is not what it was; what was only here is in {aside}")

    def _scan(self) -> Files:
        found = {}
        for path in sorted(self._folder.rglob("*")):
            name = str(path.relative_to(self._folder))
            if path.is_file() and not name.endswith(_UNWANTED):
                state = path.stat()
                found[name] = [state.st_size, state.st_mtime_ns]
        return found

    def _synced(self) -> dict[str, Any]:
        path = self._home / _SYNCED
        if not path.is_file():
            return {"id": None, "files": {}}
        return json.loads(path.read_text(encoding="utf-8"))

    def _keep(self, identity: str | None, files: Files) -> None:
        with replacing(self._home / _SYNCED) as scratch:
            scratch.write_text(json.dumps({"id": identity, "files": files}), encoding="utf-8")

    def _failure(self, what: str, error: Exception) -> UserError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return UserError(f"cannot {what} {self._url} ({reason})")
