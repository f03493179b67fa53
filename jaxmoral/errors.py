"""The one exception a user can cause, and the lookup by name that most often raises it."""

import difflib
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong and what to do."""


def choose(kind: str, name: str, options: Mapping[str, T]) -> T:
    """Returns `options[name]`; raises UserError naming the options when there is no such name."""
    if name in options:
        return options[name]
    near = difflib.get_close_matches(str(name), options, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"{kind}: unknown name {name!r}{hint}; choose from {', '.join(options)}")


def run_command(command: Callable[[], None]) -> None:
    """Runs a command line: what a user can mend becomes one line on stderr and exit code 2.

    That is a UserError, or the operating system's refusal (no space, no permission).
    """
    try:
        command()
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
