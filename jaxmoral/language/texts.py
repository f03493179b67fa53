"""Texts that nobody trains on: with them is measured what training did to a model's language.

Ours, in `retention/`, are prose, instructions, dialogue, code, and prose and notices in German and
Spanish; a user's own file works as well.
"""

from pathlib import Path
from typing import NamedTuple

from jaxmoral.config.reader import parse_json, read_text
from jaxmoral.errors import UserError, check_characters

BUILTIN = "builtin"
WHOLE = "all"  # texts together
_FOLDER = Path(__file__).parent / "retention"


class Text(NamedTuple):
    """A text and what kind it is; kinds are told apart in results."""

    kind: str
    text: str


def read_texts(source: str | Path) -> list[Text]:
    """Our texts (`builtin`), or those of a file.

    Args:
      source: "builtin", a .txt file, which is one text, or a .jsonl file with a "text" and perhaps
        a "kind" a line.

    Raises:
      UserError: the file cannot be read, or holds no text.
    """
    if str(source) == BUILTIN:
        return [
            Text(path.stem, path.read_text(encoding="utf-8"))
            for path in sorted(_FOLDER.glob("*.txt"))
        ]
    path = Path(source)
    if path.stem == BUILTIN:
        raise UserError(f"retention: {path} is called like our own texts; rename it")
    content = read_text(path, "retention")
    if path.suffix == ".jsonl":
        found = [
            _parse(line, f"{path}, line {number}", path.stem)
            for number, line in enumerate(content.split("\n"), 1)
            if line.strip()
        ]
    elif path.suffix in (".txt", ".md"):
        found = [Text(path.stem, content)] if content.strip() else []
    else:
        raise UserError(f"{path}: needs a file that ends in .txt or .jsonl")
    if not found:
        raise UserError(f"{path}: it is empty")
    if any(text.kind == WHOLE for text in found):
        raise UserError(
            f"{path}: a text's kind, which is the file's name where it has none, cannot be {WHOLE},"
            " as all texts together are called"
        )
    return found


def _parse(line: str, where: str, kind: str) -> Text:
    try:
        raw = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error})") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("text"), str) or not raw["text"].strip():
        raise UserError(f"{where}, text: needs an object with a text")
    kind = str(raw.get("kind", kind))
    check_characters(kind, f"{where}, kind")
    check_characters(raw["text"], f"{where}, text")
    return Text(kind, raw["text"])
