"""From files, flags and dictionaries to a configuration, or to a population's.

Files and dictionaries may be anybody's: `reader` bounds what they hold before a key of it is
looked at. Flags are the user's own.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from jaxmoral.config.checks import check
from jaxmoral.config.reader import brief, parse_yaml, plain, read_yaml
from jaxmoral.config.schema import ADAPTER, KEYS, Config
from jaxmoral.config.trees import to_dict
from jaxmoral.errors import UserError, split_outside

ALONE = ""  # the name of a run that is no member of a population; checkpoints hold it
MAX_MEMBERS = 4096  # of a population
MAX_NAME = 255  # bytes of a member's name, which is also that of a folder
# What other tools call a key.
SHORT = {"lr": "learning_rate", "kl": "kl_coef", "entropy": "entropy_coef", "steps": "updates"}
PLUGIN = "plugin"  # the flag that adds to the key `plugins`
PAPER_PRESET = Path(__file__).parent.parent / "presets" / "paper.yaml"


def parse(tree: dict[str, Any]) -> Config:
    """Checks a nested dictionary and fills in defaults.

    Raises:
      UserError: an unknown key, a value of the wrong type or out of range, or two keys that
        contradict each other; the message names the key and what is allowed.

    >>> jaxmoral.parse({"env": {"game": "ish"}, "updates": 20}).env.game
    'ish'
    """
    tree = plain(tree)
    if tree.get("preset") == "paper":
        tree = _merge(_paper_preset(), tree)
    try:
        config = ADAPTER.validate_python(tree)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error)) from None
    check(config)
    return config


@functools.cache
def _paper_preset() -> dict[str, Any]:
    return read_yaml(PAPER_PRESET)


def _merge(defaults: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` over `defaults`, group by group."""
    merged = dict(defaults)
    for name, value in tree.items():
        both = isinstance(value, dict) and isinstance(defaults.get(name), dict)
        merged[name] = defaults[name] | value if both else value
    return merged


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    given, kind = first["input"], first["type"]
    # Of a key of several types also the type that was tried stands there.
    key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    if "." in str(first["loc"][0]) and first["loc"][0] in KEYS:
        group, _, leaf = key.rpartition(".")
        return f"unknown key {key!r}; a file holds it as {leaf} inside of {group}"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key!r}; {_keys_like(key)}"
    if kind == "too_short" and not given:
        return f"{key}: names nothing; name at least one, or leave it out"
    message = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {brief(given)}"
    if kind == "dataclass_type":
        return _no_group(key, given)
    if kind == "string_type" and isinstance(given, bool):
        return f"{message}; YAML reads yes, no, on and off as truth values: write them in quotes"
    if key == "mixture.opponents" and kind == "dict_type":
        return f"{message}; weights are written {{tit-for-tat: 2, random: 1}}"
    if kind == "tuple_type" and isinstance(given, str) and given.isprintable():
        return f"{message}; a list is written [{', '.join(split_outside(given, ','))}]"
    return message


def _is_group(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name in KEYS)


def _no_group(key: str, given: Any) -> str:
    inside = next(name for name in KEYS if name.startswith(f"{key}."))
    return f"{key}: is a group of keys, such as {inside}, got {brief(given)}"


def _keys_like(key: str) -> str:
    """What to say to an unknown key: the ones that were probably meant, or all in its group."""
    group, _, leaf = key.rpartition(".")
    leaf = SHORT.get(leaf, leaf)
    alike = [name for name in KEYS if name.rpartition(".")[2] == leaf]
    near = alike or difflib.get_close_matches(key, KEYS, n=1, cutoff=0.75)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    known = [name for name in KEYS if group and name.startswith(f"{group}.")] or KEYS
    return f"the keys are {', '.join(known)}"


def with_evaluation(config: Config, chosen: Mapping[str, Any]) -> Config:
    """The configuration with these keys of `evaluation`, but for those that are None.

    Raises:
      UserError: as `parse`.
    """
    tree = to_dict(config)
    tree["evaluation"] |= {key: value for key, value in chosen.items() if value is not None}
    return parse(tree)


def load(path: Path | str | None, flags: Sequence[str] = ()) -> Config:
    """Reads a YAML file (or nothing) and applies `--dotted.key value` flags on top of it.

    A flag and its value may also be one text, `--dotted.key=value`. `--plugin FILE`, which may be
    repeated, is one more of `plugins`.

    Raises:
      UserError: the file is missing or not YAML, or `parse` refuses the result.

    >>> jaxmoral.load(None, ["--reward.name", "utilitarian"]).reward.name
    'utilitarian'
    """
    return parse(_read_tree(path, flags))


def load_members(path: Path | str | None, flags: Sequence[str] = ()) -> dict[str, Config]:
    """Like `load`, but a key may be a list of values (of a key that is a list itself, a list of
    lists): a population with a member for every combination, named "reward.name=game,seed=1".

    Without such a list it is one configuration under the name `ALONE`, "".

    Raises:
      UserError: as for `load`, or a list is empty or there are too many combinations.

    >>> list(jaxmoral.load_members(None, ["--env.game", "[ipd, ish]", "--seed", "[0]"]))
    ['env.game=ipd,seed=0', 'env.game=ish,seed=0']
    """
    tree = _read_tree(path, flags)
    axes = _axes(tree)
    if not axes:
        return {ALONE: parse(tree)}
    for key, values in axes.items():
        if not values:
            raise UserError(f"{key}: the list of values is empty")
    total = math.prod(map(len, axes.values()))
    if total > MAX_MEMBERS:
        raise UserError(f"{', '.join(axes)}: {total:,} combinations; {MAX_MEMBERS:,} at most")
    members = {}
    for combination in itertools.product(*axes.values()):
        chosen = list(zip(axes, combination, strict=True))
        name = ",".join(f"{key}={_shown(value)}" for key, value in chosen)
        if name in members:
            raise UserError(f"{', '.join(axes)}: {brief(name)} stands twice in the lists")
        if len(name.encode()) > MAX_NAME:
            raise UserError(
                f"{', '.join(axes)}: the member {brief(name)} would have a folder of a longer name"
                " than a file system has; vary fewer keys, or by shorter values"
            )
        members[name] = parse(_with_values(tree, chosen))
    return members


def asks_for_members(flags: Sequence[str]) -> bool:
    """Whether flags hold a list that makes several members."""
    return bool(_axes(_read_tree(None, flags)))


def _shown(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("/", "_")


def _axes(tree: dict[str, Any], cls: type = Config, prefix: str = "") -> dict[str, list]:
    """The keys that hold several values."""
    found: dict[str, list] = {}
    if prefix == "mixture.":  # its lists are what updates draw from
        return found
    types = typing.get_type_hints(cls)
    for name, value in tree.items():
        kind = types.get(name)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            found |= _axes(value, kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif isinstance(value, list) and kind is not None:
            inner = typing.get_origin(kind) is tuple
            if not inner or (value and isinstance(value[0], list)):
                found[prefix + name] = value
    return found


def _read_tree(path: Path | str | None, flags: Sequence[str]) -> dict[str, Any]:
    tree = read_yaml(Path(path)) if path else {}
    given = list(_flag_values(flags))
    tree = _with_values(tree, ((key, value) for key, value in given if key != PLUGIN))
    more = [value for key, value in given if key == PLUGIN]
    if more and isinstance(tree.get("plugins", []), list):  # else it is refused as it stands
        tree["plugins"] = [*tree.get("plugins", []), *more]
    return plain(tree)


def _flag_values(flags: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The flags' dotted keys and values."""
    given = iter(flags)
    for flag in given:
        if not flag.startswith("--"):
            raise UserError(f"expected a flag like --ppo.learning_rate, got {flag!r}")
        flag, equals, joined = flag.partition("=")
        text = joined if equals else next(given, None)
        if text is None:
            raise UserError(f"every flag needs a value; {flag!r} has none")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            value = text
        plain_text = isinstance(value, str) and not text.startswith(("'", '"'))
        yield flag[2:], text if plain_text else value  # what follows a # is no comment here


def _with_values(tree: dict[str, Any], values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy in which dotted keys have these values; only what changes is copied."""
    result = dict(tree)
    for key, value in values:
        *groups, name = key.split(".")
        node = result
        for depth, group in enumerate(groups, 1):
            inner = node.get(group, {})
            if not isinstance(inner, dict):
                begin = ".".join(groups[:depth])
                if _is_group(begin):
                    raise UserError(_no_group(begin, inner))
                raise UserError(f"unknown key {key!r}: a part of it is no group")
            node[group] = dict(inner)
            node = node[group]
        held = node.get(name)
        if _is_group(key) and isinstance(held, dict) and isinstance(value, dict):
            value = held | value
        node[name] = value
    return result
