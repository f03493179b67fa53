"""Configurations as nested dictionaries: written to a file, flattened, compared."""

from pathlib import Path
from typing import Any

import yaml

from jaxmoral.config.schema import ADAPTER, Config

# Keys, or what they begin with: where something is computed and kept, or who is told of it.
OF_THE_MACHINE = ("mesh.", "tracker", "mixture.kept")


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists, strings and numbers."""
    return ADAPTER.dump_python(config, mode="json")


def save(config: Config, path: Path) -> None:
    """Writes the configuration as YAML."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted key."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        found |= flatten(value, key + ".") if isinstance(value, dict) else {key: value}
    return found


def differences(one: Config, other: Config) -> list[str]:
    """The dotted keys in which two configurations differ."""
    return tree_differences(to_dict(one), to_dict(other))


def tree_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted keys in which two configurations as dictionaries differ.

    A key that one of them does not have, because it is older, has its default there.
    """
    usual = flatten(to_dict(Config()))
    a, b = usual | flatten(one), usual | flatten(other)
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
