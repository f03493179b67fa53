"""Scenarios: a text and a few options with tags, as they are written in files and shown to a model.

An item is a situation and two to nine options. Each option has tags ("cooperate", "harm", any of
the user's), perhaps payoffs, the chooser's and the other's. A model sees the options as a list
with labels, in several orders and with several sets of labels, so that neither a place nor a
label's own likelihood passes for a preference.

Suites of ours are YAML files in `items/`; the files of public benchmarks are read by `benchmarks`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxmoral.config import MAX_TEXT
from jaxmoral.config.reader import Loader, parse_json, read_text
from jaxmoral.errors import UserError, check_characters, check_number, choose
from jaxmoral.language import benchmarks

MAX_OPTIONS = 9
# What results call the group of every item, and their measures besides the tags'.
WHOLE, LEGAL, ANGLE = "all", "of legal", "angle"
RESERVED = ("illegal", "spread", "payoffs", "payoff own", "payoff other", ANGLE)
LABEL_SETS: dict[str, tuple[str, ...]] = {
    "letters": tuple("ABCDEFGHI"),
    "digits": tuple("123456789"),
    "words": ("red", "blue", "green", "gold", "orange", "grey", "black", "white", "brown"),
}
_FULLY_CROSSED = 4  # options up to which every order is shown with every set of labels
_FOLDER = Path(__file__).parent / "items"
SUITES = {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}
_FIELDS = {"item": ("id", "group", "text", "options"), "option": ("text", "tags", "payoffs")}


class Option(NamedTuple):
    """One thing that can be done.

    Attributes:
      text: what the model reads.
      tags: what it counts as.
      payoffs: what the chooser and the other get, or None.
    """

    text: str
    tags: tuple[str, ...] = ()
    payoffs: tuple[float, float] | None = None


class Item(NamedTuple):
    """A situation and what can be done in it.

    Attributes:
      name: unique in its suite.
      text: the situation.
      options: two to nine.
      group: what it is averaged with besides the whole suite, e.g. the class of its game.
    """

    name: str
    text: str
    options: tuple[Option, ...]
    group: str = ""


class ScenarioSuite(NamedTuple):
    """Items that are measured together.

    Attributes:
      name: of the suite.
      items: in their order.
      angle_of: the group whose mean payoffs make an angle (see `measuring.scenarios`), or None.
    """

    name: str
    items: tuple[Item, ...]
    angle_of: str | None = None


class View(NamedTuple):
    """How an item is shown: a set of labels, and which option stands in each place."""

    label_set: str
    order: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return LABEL_SETS[self.label_set][: len(self.order)]


def views(num_options: int, label_sets: Sequence[str]) -> list[View]:
    """How items are shown: every option as often in every place.

    Up to four options every rotation is shown with every set of labels; more are shown in every
    rotation once, the sets taking turns.
    """
    places = range(num_options)
    orders = [tuple((place + first) % num_options for place in places) for first in places]
    if num_options <= _FULLY_CROSSED:
        return [View(name, order) for name in label_sets for order in orders]
    return [View(label_sets[i % len(label_sets)], order) for i, order in enumerate(orders)]


def shown(item: Item, view: View, persona: str = "") -> str:
    """The text of a prompt, without a chat template; a persona's text goes first."""
    *some, last = view.labels
    lines = [
        *([persona, ""] if persona else []),
        item.text,
        *(
            f"{label}: {item.options[index].text}"
            for label, index in zip(view.labels, view.order, strict=True)
        ),
        f"What do you choose? Reply only {', '.join(some)} or {last}.",
        "Answer:",
    ]
    return "\n".join(lines)


def parse_item(raw: Any, name: str, where: str) -> Item:
    """An item from a mapping with the fields of a file.

    Args:
      raw: `{"text", "options": [{"text", "tags", "payoffs"}, ...], "id", "group"}`; an option may
        be its text alone.
      name: if it has no id.
      where: it stands, for messages.

    Raises:
      UserError: a field is missing, unknown or makes no sense.
    """
    fields = _fields(raw, "item", where)
    found = fields.get("options")
    if not isinstance(found, list | tuple) or not 2 <= len(found) <= MAX_OPTIONS:
        told = f"{len(found)}" if isinstance(found, list | tuple) else repr(found)[:40]
        raise UserError(f"{where}, options: needs a list of 2 to {MAX_OPTIONS}, got {told}")
    options = tuple(
        _parse_option(each, f"{where}, options[{number}]") for number, each in enumerate(found)
    )
    texts = [option.text for option in options]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise UserError(f"{where}, options[{number}]: the same text as another, {text[:40]!r}")
    with_payoffs = sum(option.payoffs is not None for option in options)
    if with_payoffs not in (0, len(options)):
        raise UserError(f"{where}, options: all of them have payoffs, or none")
    if fields.get("group") == WHOLE:
        raise UserError(
            f"{where}, group: {WHOLE} is the name of all items together; choose another"
        )
    return Item(
        name=_word(fields.get("id"), name, f"{where}, id"),
        text=_text(fields.get("text"), f"{where}, text"),
        options=options,
        group=_word(fields.get("group"), "", f"{where}, group"),
    )


def _word(value: Any, usual: str, where: str) -> str:
    """What something is called."""
    if value is None:
        return usual
    check_characters(str(value), where)
    return str(value)


def _parse_option(raw: Any, where: str) -> Option:
    if isinstance(raw, bool):
        raise UserError(f"{where}: needs a text, got {raw}; YAML wants quotes around yes and no")
    if isinstance(raw, str):
        raw = {"text": raw}
    fields = _fields(raw, "option", where)
    tags = fields.get("tags")
    tags = () if tags is None else tags
    if not isinstance(tags, list | tuple) or not all(isinstance(t, str) and t for t in tags):
        raise UserError(f"{where}, tags: needs a list of words, got {tags!r}")
    for tag in tags:
        check_characters(tag, f"{where}, tags")
        if tag in RESERVED or tag.endswith(f" {LEGAL}"):
            raise UserError(f"{where}, tags: {tag!r} is the name of a measure; choose another word")
    payoffs = fields.get("payoffs")
    if payoffs is not None:
        if not isinstance(payoffs, list | tuple) or len(payoffs) != 2:
            raise UserError(f"{where}, payoffs: needs [own, other's], got {payoffs!r}")
        payoffs = tuple(check_number(f"{where}, payoffs", number) for number in payoffs)
    return Option(_text(fields.get("text"), f"{where}, text"), tuple(dict.fromkeys(tags)), payoffs)


def _fields(raw: Any, kind: str, where: str) -> Mapping[str, Any]:
    known = _FIELDS[kind]
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: needs fields {', '.join(known)}, got {repr(raw)[:40]}")
    for name in raw:
        if name not in known:
            raise UserError(f"{where}, {name}: unknown; an {kind} has {', '.join(known)}")
    return raw


def _text(value: Any, where: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        check_number(where, value)
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: needs a text, got {value!r}")
    if len(value) > MAX_TEXT:
        raise UserError(f"{where}: has more than {MAX_TEXT:,} characters")
    check_characters(value, where)
    return value.strip()


def read_suite(source: str | Path, skip: bool = False) -> tuple[ScenarioSuite, list[str]]:
    """Items of a suite of ours, by its name, or of a file.

    Args:
      source: a name in `SUITES`, or the path of a .yaml, .jsonl or .csv file.
      skip: whether items that cannot be used are left out.

    Returns:
      The suite, and a line for each item that was left out.

    Raises:
      UserError: there is no such file, it has another format, or no or a bad item.
    """
    path = SUITES.get(str(source)) or Path(source)
    if path.stem in SUITES and path != SUITES[path.stem]:
        raise UserError(f"scenarios: {path} is called like a suite of ours; rename it")
    if str(source) not in SUITES and not path.is_file():
        choose("scenarios", str(source), {**SUITES, "the path of a file": path})
    entries, angle_of = _entries(path, read_text(path, "scenarios"))
    items: list[Item] = []
    lost: list[str] = []
    names: set[str] = set()
    for where, name, made in entries:
        try:
            if isinstance(made, UserError):
                raise made
            item = parse_item(made, name, where)
            if item.name in names:
                raise UserError(f"{where}, id: {item.name!r} is another item's too")
        except UserError as error:
            if not skip:
                raise
            lost.append(str(error))
            continue
        names.add(item.name)
        items.append(item)
    if not items:
        raise UserError(
            f"{path}: it holds no item{f' that can be used ({lost[0]})' if lost else ''}"
        )
    if angle_of is not None and not any(
        item.group == angle_of and item.options[0].payoffs for item in items
    ):
        raise UserError(f"{path}, angle_of: no item of the group {angle_of!r} has payoffs")
    return ScenarioSuite(path.stem, tuple(items), angle_of), lost


Entry = tuple[str, str, Any]  # where it stands, the name if it has none, its fields or an error


def _entries(path: Path, text: str) -> tuple[Iterator[Entry] | list[Entry], str | None]:
    """What stands in a file, item by item, and the group that makes an angle."""
    if not text.strip():
        raise UserError(f"{path}: it is empty")
    if path.suffix == ".csv":
        return benchmarks.entries(path, text), None
    if path.suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, text), None
    if path.suffix in (".yaml", ".yml"):
        return _yaml_items(path, text)
    raise UserError(f"{path}: needs a file that ends in .yaml, .jsonl or .csv")


def _json_lines(path: Path, text: str) -> list[Entry]:
    found: list[Entry] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            raw = parse_json(line)
        except (ValueError, RecursionError) as error:
            raw = UserError(f"{where}: no JSON ({error})")
        if not isinstance(raw, UserError | dict):
            raw = UserError(f"{where}: needs an object with the fields of an item")
        found.append((where, f"{path.stem}-{len(found) + 1}", raw))
    return found


def _yaml_items(path: Path, text: str) -> tuple[list[Entry], str | None]:
    loader = Loader(text)
    try:
        root = loader.get_single_node()
        angle_of = None
        if isinstance(root, yaml.MappingNode):
            head = {str(key.value): node for key, node in root.value}
            if unknown := sorted({*head} - {"items", "angle_of"}):
                raise UserError(f"{path}, {unknown[0]}: unknown; a suite has items, angle_of")
            if "angle_of" in head:
                angle_of = str(head["angle_of"].value)
            root = head.get("items")
        if not isinstance(root, yaml.SequenceNode):
            raise UserError(f"{path}: needs a list of items")
        found: list[Entry] = []
        for node in root.value:
            where = f"{path}, line {node.start_mark.line + 1}"
            raw = loader.construct_object(node, deep=True)
            if not isinstance(raw, dict):
                raw = UserError(f"{where}: needs an item with {', '.join(_FIELDS['item'])}")
            found.append((where, f"{path.stem}-{len(found) + 1}", raw))
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        # All but the first are from PyYAML's makers of keys, numbers and dates.
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from None
    finally:
        loader.dispose()
    return found, angle_of


def make_items(items: Sequence[Item | Mapping[str, Any]]) -> tuple[Item, ...]:
    """Items given in Python; raises UserError if one cannot be used or two have one name."""
    made: list[Item] = []
    for number, item in enumerate(items, 1):
        where = f"item {number}"
        raw = _as_mapping(item) if isinstance(item, Item) else item
        made.append(parse_item(raw, f"item-{number}", where))
        name = made[-1].name
        if name in {other.name for other in made[:-1]}:
            raise UserError(f"{where}, id: {name!r} is another item's too")
    if not made:
        raise UserError("scenarios: there is no item")
    return tuple(made)


def _as_mapping(item: Item) -> dict[str, Any]:
    """What a file would hold: an item made by hand is judged as one that was read."""
    options = [option._asdict() for option in item.options]
    return {"id": item.name, "text": item.text, "group": item.group, "options": options}


def all_tags(suite: ScenarioSuite) -> list[str]:
    """Every tag of a suite, in the order in which they come up."""
    return list(
        dict.fromkeys(tag for item in suite.items for option in item.options for tag in option.tags)
    )
