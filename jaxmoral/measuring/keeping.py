"""Results in files: evaluations are added to, other files are set aside, nothing is lost unsaid."""

import json
from pathlib import Path
from typing import Any

from jaxmoral.errors import UserError
from jaxmoral.files import replacing
from jaxmoral.measuring.results import merge, unlike
from jaxmoral.measuring.runs import read_json

EVALUATION = "evaluation.json"  # of a run's newest checkpoint


def of_update(update: int) -> str:
    """The name of the file for a checkpoint that was asked for by its number, or as the best."""
    return f"evaluation-{update}.json"


def keep(evaluation: dict[str, Any], path: Path) -> dict[str, Any]:
    """Writes an evaluation to a file, and keeps what the file holds.

    An evaluation of the same checkpoint and settings becomes one with it, in which what was
    measured again is replaced. Another one gets a file of its own beside it. Both are said.

    Returns:
      What the file holds now.

    Raises:
      UserError: the file holds no evaluation.
    """
    if path.is_file():
        earlier = read_evaluation(path)
        if reasons := unlike(earlier, evaluation):
            aside = set_aside(path)
            of = earlier.get("update", "unknown (an earlier version did not write it)")
            what = ", ".join(f"update {of}" if key == "update" else key for key in reasons)
            print(f"{path.name} held an evaluation that differs ({what}); it is {aside} now")
        else:
            evaluation, replaced = merge(earlier, evaluation)
            if replaced:
                rest = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
                print(f"{path.name}: replaced {replaced[0]}{rest}, measured before")
    write_json(evaluation, path)
    return evaluation


def read_evaluation(path: Path) -> dict[str, Any]:
    """An evaluation from its file; raises UserError if it is damaged, or something else."""
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("suites"), dict):
        raise UserError(f"{path} holds no evaluation; move it away, or choose another --output")
    return found


def set_aside(path: Path) -> Path:
    """Gives a file another name beside it, so that a new one may take its place."""
    names = (f"{path.stem}-earlier{number}{path.suffix}" for number in ("", *range(2, 10**6)))
    free = next(name for name in names if not path.with_name(name).exists())
    return path.rename(path.with_name(free))


def write_json(content: Any, path: Path) -> None:
    """Writes a JSON file, all of it or nothing."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=1) + "\n")
