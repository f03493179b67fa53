"""YAML of anybody's making as plain values of bounded size, or one line that says what is wrong.

Files may be a stranger's: nothing in one may run code, fill the memory, or write to the terminal of
who reads the message about it.
"""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import yaml

from jaxmoral.errors import UserError

# What a configuration can hold at most. It bounds the time to read one, and what messages show.
MAX_FILE = 200_000  # characters of a file, its aliases spelled out
MAX_TEXT = 16_000  # characters of a wording or a persona; escaped in a file, each may become six
MAX_NAME = 1_000  # characters of any other text, a path for instance
MAX_KEY = 100  # characters of a key that is no path
MAX_DEPTH = 16
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_BREAK = re.compile(r"[\t\n\r\u2028\u2029]")
_TEXTS = (
    *("prompt.wording", "prompt.persona", "mixture.wordings", "mixture.personas"),
    "distil.persona",
)
_MARKS = "thinking.cue", "thinking.stop"  # of which a line break may be all


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's keys and values; raises UserError if it holds anything else."""
    try:
        with path.open(encoding="utf-8") as file:
            tree = parse_yaml(file.read(MAX_FILE + 1))
    except OSError as error:
        raise UserError(f"config: cannot read {path} ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:  # also of other bytes than UTF-8
        reason = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        reason = " ".join(reason.split())[:200]
        raise UserError(f"config: {path} is not YAML ({reason})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"config: {path} must hold keys and values")
    return tree


def parse_yaml(text: str) -> Any:
    """Plain values; raises yaml.YAMLError."""
    if len(text) > MAX_FILE:
        raise yaml.YAMLError(f"longer than {MAX_FILE:,} characters")
    try:
        return yaml.load(text, Loader)
    except (ValueError, LookupError, AttributeError):  # from PyYAML's makers of numbers and dates
        raise yaml.YAMLError("a number, a date or a tag cannot be read") from None


def read_text(path: Path, key: str) -> str:
    """A text file of anybody's; raises UserError, naming `key`, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # also of other bytes than UTF-8
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}: cannot read {path} ({reason})") from None


def parse_json(text: str) -> Any:
    """Plain values; raises ValueError if it is no JSON, or a key stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the key {brief(twice[0])} stands twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


class Loader(yaml.SafeLoader):
    """Plain YAML that is hardly larger than its file, or than one may be, with aliases spelled out.

    The size is known before anything is built: a few merge keys could ask for billions of values.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}
        self._most = 2 * max(MAX_FILE, len(text))  # without aliases none is so large

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and node not in self._sizes:
            raise yaml.YAMLError("an alias stands for what it is in")
        if isinstance(node, yaml.MappingNode) and not alias:
            _check_keys(node)
        if node is not None and not alias:
            self._sizes[node] = self._size(node)
            if self._sizes[node] > self._most:
                raise yaml.YAMLError("its aliases stand for too much")
        return node

    def _size(self, node: yaml.Node) -> int:
        """Characters, and one for each value."""
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value)
        pairs = isinstance(node, yaml.MappingNode)
        children = itertools.chain.from_iterable(node.value) if pairs else node.value
        return 1 + sum(self._sizes[child] for child in children)


def _check_keys(node: yaml.MappingNode) -> None:
    """Raises yaml.YAMLError if a key stands twice, of which the last would count."""
    known = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in known:
                problem = f"the key {brief(key.value)} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            known.add(key.value)


def _number(loader: Loader, node: yaml.ScalarNode) -> Any:
    """A number as people write it: none is octal, and times of the day are texts."""
    text = node.value.replace("_", "")
    if ":" in text:
        return node.value
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    whole = node.tag.endswith("int")
    return loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)


for _kind in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy in which no two keys share a value.

    Raises:
      UserError: it is no dictionary, or holds what no configuration has and what could not be shown
        in a message or written to a file.
    """
    if not isinstance(tree, dict):
        raise UserError(f"config: needs keys and values, got {brief(tree)}")
    return _copied(tree, key="", depth=0)


def _copied(value: Any, *, key: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise UserError(f"{key}: nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        copy = {}
        for name, inner in value.items():
            most = MAX_NAME if key == "mixture.opponents" else MAX_KEY
            if not isinstance(name, str) or len(name) > most or not name.isprintable():
                raise UserError(
                    f"{key or 'config'}: a key must be text, at most {most} printable"
                    f" characters, got {brief(name)}"
                )
            copy[name] = _copied(inner, key=f"{key}.{name}" if key else name, depth=depth + 1)
        return copy
    if isinstance(value, (list, tuple)):
        return [_copied(item, key=key, depth=depth + 1) for item in value]
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{key}: a whole number of more than 63 bits")
    if isinstance(value, str):
        _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    is_prose = key in _TEXTS and len(text.split()) > 1  # and not a name or a path
    most = MAX_TEXT if is_prose else MAX_NAME
    if len(text) > most:
        raise UserError(f"{key}: {len(text):,} characters; {most:,} at most")
    breaks = is_prose or key in _MARKS
    if _CONTROL.search(text) or (_BREAK.search(text) and not breaks):
        raise UserError(f"{key}: holds a control character, got {brief(text)}")


def brief(value: Any) -> str:
    """What a message shows of a value."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of 4301 digits
        text = f"a {type(value).__name__} that is too large"
    return text if len(text) <= 200 else f"{text[:200]}..."
