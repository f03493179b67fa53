"""The error for bad input, the command wrapper that shows it, and the look-ups that raise it."""

import difflib
import gc
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MAX_MESSAGE = 1_000  # characters that a command shows of what was wrong
MAX_BRACKETS = 8  # in what a name stands for
own_files: set[str] = set()  # of users' own code, whose failures are told by their line


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong and what to do.

    >>> jaxmoral.get_game("chess")
    Traceback (most recent call last):
    jaxmoral.errors.UserError: game: unknown name 'chess'...; choose from ipd, ish, ...
    """


@contextmanager
def telling(key: str, instead_of: str) -> Iterator[None]:
    """What is said inside of one key, or of what is looked up, is said of another."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if text.startswith((f"{instead_of}:", f"{instead_of} ")):
            text = f"{key}:{text.removeprefix(instead_of).removeprefix(':')}"
        raise UserError(text) from None


def nearest(text: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant: of the same letters, of these initials, or much like it.

    >>> nearest("TitForTat", ["random", "tit-for-tat"]), nearest("tft", ["random", "tit-for-tat"])
    ('tit-for-tat', 'tit-for-tat')
    """
    known = list(names)
    letters = lambda name: "".join(filter(str.isalnum, name)).lower()
    initials = lambda name: "".join(word[:1] for word in name.split("-"))
    for shortened in (letters, initials):
        for name in known:
            if letters(text) == shortened(name) != "":
                return name
    near = difflib.get_close_matches(text.lower(), known, n=1)
    return near[0] if near else None


def choose(kind: str, name: str, options: Mapping[str, T]) -> T:
    """Returns `options[name]`; raises UserError naming the options when there is no such name."""
    if name in options:
        return options[name]
    near = nearest(str(name), options)
    hint = f" (did you mean {near!r}?)" if near else ""
    raise UserError(f"{kind}: unknown name {name!r}{hint}; choose from {', '.join(options)}")


def build(
    kind: str,
    text: str,
    known: Mapping[str, T],
    families: Mapping[str, Callable[..., T]],
    first: tuple = (),
) -> T:
    """What `name` or `name(argument, ...)` stands for; arguments are numbers or such texts.

    Args:
      kind: what is looked up, for the message.
      text: e.g. "tit-for-tat" or "noisy(tit-for-tat, 0.1)".
      known: values by plain name.
      families: functions by name; one whose arguments have defaults may stand without brackets.
      first: arguments that every family gets before those in the text.

    Raises:
      UserError: the name is unknown, a bracket is missing, or the arguments do not fit.
    """
    text = str(text).strip()
    if text.count("(") > MAX_BRACKETS:
        raise UserError(f"{kind}: {text[:40]!r}... has more than {MAX_BRACKETS} brackets")
    name, bracket, rest = text.partition("(")
    if text in known:
        return known[text]
    if name not in families:
        if name in known:
            raise UserError(f"{kind}: {name} takes no arguments, got {text!r}")
        choose(kind, name, {**known, **families})  # raises
    if bracket and not rest.endswith(")"):
        raise UserError(f"{kind}: {text!r} lacks its closing bracket")
    inside = rest[:-1].strip()
    arguments = [_number_or_text(part) for part in split_outside(inside, ",")] if inside else []
    signature = inspect.signature(families[name])
    try:
        signature.bind(*first, *arguments)
    except TypeError:
        wanted = ", ".join(list(signature.parameters)[len(first) :])
        raise UserError(f"{kind}: {text!r} does not fit {name}({wanted})") from None
    try:
        return families[name](*first, *arguments)
    except UserError as error:
        raise UserError(f"{kind} {text}: {error}") from None


def split_outside(text: str, separator: str) -> list[str]:
    """Splits at a separator that is not inside brackets; the parts are stripped."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _as_float(value: Any) -> float:
    """The number; not a number if it is none, infinite if it is too large for a float."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf


def check_number(
    name: str, value: Any, low: float = float("-inf"), high: float = float("inf")
) -> float:
    """The number; raises UserError if it is none or not within [low, high]."""
    number = _as_float(value)
    if not low <= number <= high or math.isinf(number):
        span = f" from {low:g} to {high:g}" if low > float("-inf") else ""
        raise UserError(f"{name}: needs a finite number{span}, got {value!r}")
    return number


def check_characters(text: str, where: str) -> None:
    """Raises UserError if a text that JSON spelled holds half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half a character (a lone surrogate)") from None


def check_whole(name: str, value: Any, low: int, high: int) -> int:
    """The whole number; raises UserError if it is none or not within [low, high]."""
    number = value if isinstance(value, int) else _as_float(value)
    if not low <= number <= high or number % 1:
        raise UserError(f"{name}: needs a whole number from {low} to {high}, got {value!r}")
    return int(number)


def check_seed(value: int) -> None:
    """Raises UserError if no PRNG keys can be made of what `--seed` gave."""
    check_whole("--seed", value, 0, 2**63 - 1)


def say_left_out(lines: Iterable[str]) -> None:
    """Says what a command passed over, a line each, where results do not go."""
    for line in lines:
        print("left out:", line, file=sys.stderr)


def check_output(output: Path) -> None:
    """Raises UserError unless a command's --output can be a file there."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UserError(f"--output: {output} is not a file in an existing folder")


def run_command(command: Callable[[], None]) -> None:
    """Runs a command line: what a user can mend becomes one line on stderr and exit code 2.

    That is a UserError, the operating system's refusal (no space, no permission), or whatever the
    user's own code raises.
    """
    gc.set_threshold(100_000, 50, 50)  # imports and tracing make many objects, and few cycles
    try:
        command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)  # XLA's threads still compute, and crash when the interpreter ends
    except Exception as error:
        text = of_own_code(error) or _no_room(error)
        if text is None and not isinstance(error, UserError | OSError):
            raise
        text = " ".join((text or str(error)).split())
        shown = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
        print("error:", shown, file=sys.stderr)
        sys.exit(2)


def _no_room(error: Exception) -> str | None:
    """What to do where the device has too little memory; None if that is not what happened."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return None
    return (
        "the memory does not suffice; lower env.episodes, env.rounds, evaluation.episodes,"
        f" mixture.conditions, model.max_nodes or model.max_logits ({error})"
    )


def of_own_code(error: BaseException) -> str | None:
    """What the user's own code raised, and in which line of it; None if it had no part in it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in own_files]
    if not frames:
        return None
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {type(error).__name__}: {error}"
