"""A file replaced as a whole: whoever reads it finds the old one or the new one."""

import os
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
