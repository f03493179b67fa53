"""What every key of a configuration means, in lines for a command's help.

The text is that of the dataclasses' docstrings in `schema`, so that it is written once.
"""

import argparse
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from jaxmoral.config.schema import Config

WIDTH = 100
_ENTRY = re.compile(r"^([a-z_0-9, ]+): (.*)", re.DOTALL)


class Described(NamedTuple):
    """A key with its dots, its default, what else it may be where that is a list, its meaning."""

    key: str
    default: str
    others: tuple[str, ...]
    meaning: str


def describe_keys(group: type = Config, prefix: str = "") -> Iterator[Described]:
    """Every key of a group and of the groups in it."""
    meanings = _meanings(group)
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(field.type):
            yield from describe_keys(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            key, values = prefix + field.name, _values(field)
            others = tuple(str(value) for value in values if value != field.default)
            yield Described(key, _default(field), others, meanings[field.name])


def keys_help() -> str:
    """All keys by group, each with its default, wrapped for a terminal."""
    lines = ["keys, each also a flag (--key value), with their defaults:"]
    last = ""
    for key, default, others, meaning in describe_keys():
        group = key.rpartition(".")[0]
        if group != last:
            lines += ["", title(group)]
            last = group
        either = f" (or {', '.join(others)})" if others else ""
        lines += textwrap.wrap(
            f"--{key} {default}{either}: {meaning}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def title(group: str) -> str:
    """A group's name and the first line of what is said of it."""
    if not group:
        return "and besides:"
    (kind,) = (field.type for field in dataclasses.fields(Config) if field.name == group)
    return f"{group}: {inspect.cleandoc(kind.__doc__ or '').splitlines()[0]}"


class KeepsLines(argparse.HelpFormatter):
    """Shows a text that has several lines as it is, such as that of `keys_help`."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _meanings(group: type) -> dict[str, str]:
    """What the docstring's list of attributes says, by field."""
    _, _, listed = inspect.cleandoc(group.__doc__ or "").partition("Attributes:\n")
    listed = listed.partition("\n\n")[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n  (?! )", f"\n{listed}"):
        match = _ENTRY.match(" ".join(entry.split()))
        if match is not None:
            found |= dict.fromkeys(match[1].split(", "), match[2])
    return found


def _values(field: dataclasses.Field) -> tuple[Any, ...]:
    """All that a key may be, if that is a list."""
    return get_args(field.type) if get_origin(field.type) is Literal else ()


def _default(field: dataclasses.Field) -> str:
    """As it is written in a file."""
    value = field.default
    if value is dataclasses.MISSING:
        return "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
