"""Makes docs/configuration.md: every key of a configuration, from the dataclasses' docstrings.

python scripts/configuration_page.py
"""

from pathlib import Path

from jaxmoral.config.described import Described, describe_keys, title

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Every key is a flag of `python -m jaxmoral.train` (`--ppo.learning_rate 1e-4`), and stands in a
YAML file by groups:

```yaml
reward:
  name: game
  then: utilitarian
ppo: {learning_rate: 1.0e-4}
updates: 80
```

A flag goes before the file, and its value is read as YAML, too (`--prompt.labels "[X, Y]"`). A list
of values makes [a population](populations.md). `--plugin FILE` is one more of `plugins`. An unknown
key, a wrong type, a value out of range and keys that contradict each other stop the command in one
line. `--help` says what this page does; `python scripts/configuration_page.py` makes it from the
docstrings in `jaxmoral/config/`.
"""
COLUMNS = "| key | default, what else | what it is |\n|---|---|---|"


def page() -> str:
    """The page's text."""
    by_group: dict[str, list[Described]] = {}
    for one in describe_keys():
        by_group.setdefault(one.key.rpartition(".")[0], []).append(one)
    parts = [HEAD]
    for group, keys in by_group.items():
        name, _, what = title(group).partition(": ")
        parts.append(f"## {name}\n\n{what}\n" if group else "## Of the run as a whole\n")
        parts.append("\n".join([COLUMNS, *map(_row, keys)]) + "\n")
    return "\n".join(parts)


def _row(one: Described) -> str:
    either = "".join(f", `{other}`" for other in one.others)
    meaning = one.meaning.replace("|", r"\|")
    return f"| `{one.key}` | `{one.default}`{either} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
