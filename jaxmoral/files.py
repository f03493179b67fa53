"""Files and folders made as a whole: whoever reads one finds the old one or the new one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # ends the names of files that are being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch file beside a file, which takes its place once it is written; on failure it goes.

    Several processes may write the same file at once, the last one's stands.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A folder beside a path, to be moved there once it is filled; what is left of it goes.

    Folders between are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    scratch.chmod(0o755)  # else it is its owner's alone
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
