"""Results in files: evaluations are added to, other files are set aside, nothing is lost unsaid."""

import json
from pathlib import Path
from typing import Any

import pydantic

from jaxmoral.errors import UserError
from jaxmoral.files import replacing
from jaxmoral.measuring.results import merge, unlike

EVALUATION = "evaluation.json"  # of a run's newest checkpoint
ANSWERS = "answers.json"  # of an agent that was asked why


class _Result(pydantic.BaseModel):
    remembered: dict[str, Any]
    opponents: dict[str, dict[str, Any]]


class _Condition(pydantic.BaseModel):
    game: str
    wording: str
    persona: str
    labels: list[str]
    table_order: str
    policies: dict[str, _Result]


class _Evaluation(pydantic.BaseModel):
    """What whoever reads an evaluation relies on; there may be more in it."""

    config: dict[str, Any] = {}
    update: int | None = None
    policies: list[str]
    opponents: list[str]
    protocols: list[str]
    largest_gap: float | None
    suites: dict[str, dict[str, _Condition]]
    scenarios: dict[str, dict[str, Any]] = {}
    retention: dict[str, dict[str, Any]] = {}


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


def read_json(path: Path) -> Any:
    """A JSON file's content; raises UserError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from None


def read_evaluation(path: Path) -> dict[str, Any]:
    """An evaluation from its file; raises UserError if it is damaged, or something else."""
    found = read_json(path)
    try:
        _Evaluation.model_validate(found)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        needs = "needs to be a mapping" if first["type"] == "model_type" else first["msg"].lower()
        raise UserError(f"{path} holds no evaluation ({where}: {needs}); move it away") from None
    return found


def set_aside(path: Path) -> Path:
    """Gives a file another name beside it, so that a new one may take its place."""
    names = (f"{path.stem}-earlier{number}{path.suffix}" for number in ("", *range(2, 10**6)))
    free = next(name for name in names if not path.with_name(name).exists())
    return path.rename(path.with_name(free))


def write_json(content: Any, path: Path) -> None:
    """Writes a JSON file, all of it or nothing."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
