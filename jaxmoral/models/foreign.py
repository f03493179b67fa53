"""What all readers of others' files share: how keys are judged, and how content is shown.

Every key of a file is used, or known to change nothing, or refused by name: a setting that a reader
passes over may stand for another model.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from jaxmoral.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")  # of a hub's repository


def check_keys(where: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UserError if there is a key that nobody knows and that says something.

    Args:
      where: start of the message: the configuration's key and the file.
      found: a file's keys and values. Null, false and empty values say nothing.
      known: keys that are read or change nothing, or patterns of them with `*`.
    """
    known = list(known)
    plain = {*known}
    for key, value in found.items():
        says_nothing = (
            value is None or value is False or (hasattr(value, "__len__") and not len(value))
        )
        if (
            says_nothing
            or key in plain
            or any(fnmatchcase(key, one) for one in known if "*" in one)
        ):
            continue
        raise UserError(
            f"{where}: {bare(key)} = {shown(value)} is not supported (it may stand for another"
            " model)"
        )


def shown(value: Any) -> str:
    """What a message shows of something in a stranger's file: one short line."""
    return _short(ascii(value))


def bare(text: object) -> str:
    """The same of a text or an exception, without quotation marks."""
    return _short(ascii(str(text))[1:-1])


def _short(text: str) -> str:
    text = " ".join(text.split())  # numpy breaks lines
    return text if len(text) <= 100 else f"{text[:100]}..."
