"""What README.md and docs/ say: every block of code runs, every table names what there is.

The blocks of a page run in their order in one folder, with few episodes and with free logits or a
tiny model instead of the real one. A block that cannot run here stands behind a comment
`<!-- not run: why -->`, one that is a file behind `<!-- file: its name -->`.
"""

import builtins
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import configuration_page
import pytest
import size_table
import yaml

import jaxmoral
from jaxmoral.language import scenarios
from jaxmoral.language.prompts import PERSONAS, TABLE_ORDERS, WORDINGS
from jaxmoral.language.suites import SUITES
from jaxmoral.learning import plugins
from jaxmoral.learning.lookup import LEARNER
from jaxmoral.models import gguf_file, hf_config
from jaxmoral.models.byte_level import CUTTINGS
from jaxmoral.models.packaged import PACKAGED
from jaxmoral.reporting import catalogue
from jaxmoral.world import crowds, games, opponents, rewards

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
# How many blocks of a page do not run here.
NOT_RUN = {
    "README.md": 2,
    "docs/devices.md": 1,
    "docs/models.md": 1,
    "docs/results.md": 6,
    "docs/runs.md": 3,
}
# Where a tiny random Gemma stands for the packaged model; elsewhere free logits do.
TINY = ("docs/models.md", "docs/scenarios.md", "docs/thinking.md")
SMALL = {
    "tabular": ["--model.source", "tabular"],
    "tiny": ["--model.source", "tiny", "--updates", "2", "--prompt.labels", "[X,Y]"],
}
FEW = ["--env.episodes", "64", "--evaluation.protocols", "[exact]"]
SHORTER = {  # what a page says, and what is run instead
    "configs/paper/*.yaml": "configs/paper/tft-game.yaml",
    "configs/population.yaml": "configs/population.yaml --reward.name [game,utilitarian] --seed 0",
    "--output-dir runs/meet": "--output-dir runs/meet --games ipd",
    "--run runs/many": "--run runs/many --games ipd",
    "--seeds 1 2 3 5 6": "--seeds 1 --evaluation.suites [trained]",
    "--games plane": "--games 'plane(-5,15)'",
    "--suites all": "--suites trained",  # free logits know no words
    "--thinking.tokens 24 --output-dir": "--output-dir",
    "--thinking.tokens 24 --thinking.thoughts 8": "--thinking.tokens 3 --thinking.thoughts 2",
    "--suites generalisation": "--suites trained",
    "configs/distil.yaml": "configs/distil.yaml --prompt.template plain",
    "--anchor.coef 1": "--anchor.coef 1 --anchor.tokens 20",
    "--checkpoint_every 5": "--checkpoint_every 1",
    "dictator,norms --retention builtin": "norms --retention prose.txt",
    "--update 30 --retention builtin": "--update 1 --retention prose.txt",
    "--update 40 --retention builtin": "--update 2 --retention prose.txt",
    'parse({"updates": 20})': 'parse({"updates": 2, "model": {"source": "tiny"},'
    ' "env": {"episodes": 64}, "prompt": {"labels": ["X", "Y"]}})',
    "--prompt.random_labels 7": "--prompt.random_labels 0",
    '"updates": 20}': '"updates": 20, "model": {"source": "tabular"},'
    ' "evaluation": {"protocols": ["exact"]}}',
}
COMMANDS = ("train", "evaluate", "export", "chat", "ask", "play", "sweep", "compare")
COMMANDS += ("tournament", "report")


class Block(NamedTuple):
    """A fenced block: its language, its text, and what a comment right before it says."""

    language: str
    text: str
    note: str


def blocks(page):
    fence = r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    found = re.finditer(fence, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [Block(m["language"], m["text"], m["note"] or "") for m in found]


def test_every_block_runs_or_says_why_not():
    skipped = {}
    for page in PAGES:
        found = blocks(page)
        assert (ROOT / page).read_text().count("```") == 2 * len(found)
        assert {block.language for block in found} <= {"sh", "python", "yaml", "text"}
        skipped[page] = sum(block.note.startswith("not run: ") for block in found)
    assert {page: count for page, count in skipped.items() if count} == NOT_RUN


@pytest.fixture
def here(tmp_path, shallow, monkeypatch):
    """A folder with this repository's configurations, the tiny model and a short text."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "tiny").symlink_to(shallow)
    (tmp_path / "prose.txt").write_text("She had said that she would call. She did, at noon.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_memory", lambda: tmp_path / "plugins.json")
    registries = (jaxmoral.GAMES, jaxmoral.OPPONENTS, jaxmoral.REWARDS)
    with patch.dict(registries[0]), patch.dict(registries[1]), patch.dict(registries[2]):
        yield tmp_path


def commands(text, kind):
    """The arguments of each command of a shell block, with small settings."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("gemma3-270m", kind), comments=True)
        if not words:
            continue
        python, _, module = words[:3]
        assert words[:2] == ["python", "-m"], line
        name = module.removeprefix("jaxmoral.")
        assert name in COMMANDS, line
        trains = name in ("train", "sweep") and "--resume" not in words
        yield name, words[3:] + ([*SMALL[kind], *FEW] if trains else [])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_blocks_of_a_page_run(page, here, monkeypatch, capsys):
    said = iter(["c", "quit"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(said))
    names = {}
    for language, text, note in blocks(page):
        for written, shorter in SHORTER.items():
            text = text.replace(written, shorter)
        if note.startswith("file: "):
            Path(note.removeprefix("file: ")).write_text(text)
        if note.startswith("not run: "):
            continue
        if language == "yaml":
            jaxmoral.parse(yaml.safe_load(text))
        if language == "python":
            exec(compile(text, page, "exec"), names)
        if language == "sh":
            for name, arguments in commands(text, "tiny" if page in TINY else "tabular"):
                monkeypatch.setattr(sys, "argv", [name, *arguments])
                importlib.import_module(f"jaxmoral.{name}").main()
    if page == "README.md":  # the sample's head is what is printed
        printed = capsys.readouterr().out
        (head,) = re.findall(r"^condition .*$", (ROOT / page).read_text(), re.MULTILINE)
        assert head in printed


def table(page, title):
    """The rows of the table under a heading, without its head."""
    _, found, rest = (ROOT / page).read_text().partition(f"\n## {title}\n")
    assert found, title
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def names_in(page, title, column=0):
    return re.findall(r"`([^`]+)`", " ".join(row[column] for row in table(page, title)))


def plain(names):
    """Names without their brackets, each once."""
    found = [name.partition("(")[0] for name in names]
    assert len(set(names)) == len(names)
    return set(found)


def test_the_table_of_games_has_every_game_with_its_points():
    rows = table("docs/games.md", "Games of two players")
    assert [row[0].strip("`") for row in rows] == list(games.BUILT_IN)
    for name, title, points in rows:
        game = games.get_game(name.strip("`"))
        assert title == game.title
        cells = [[float(x) for x in cell.split(",")] for cell in points.split(";")]
        assert cells == [list(game.payoffs[:, own, other]) for own in (0, 1) for other in (0, 1)]


def test_the_table_of_families_has_every_family_of_games():
    named = names_in("docs/games.md", "Families of games")
    assert plain(named) == {*games.FAMILIES}
    assert [games.get_game(name).name.partition("(")[0] for name in named] == [
        name.partition("(")[0] for name in named
    ]


def test_the_table_of_sets_has_every_set():
    assert names_in("docs/games.md", "Sets of games") == list(games.SETS)


def test_the_table_of_opponents_has_every_opponent():
    named = names_in("docs/games.md", "Opponents")
    assert plain(named) == {LEARNER, *opponents.OPPONENTS, *opponents.FAMILIES}
    assert {name for name in named if "(" not in name} == {LEARNER, *opponents.OPPONENTS}
    for name in named:
        if name != LEARNER:
            opponents.get_opponent(name)


def test_the_table_of_contributors_has_every_one():
    rows = table("docs/games.md", "Opponents in games of more players")
    named = [row[0].strip("`") for row in rows]
    assert plain(named) == {*crowds.CONTRIBUTORS}
    for name in named:
        opponents.get_opponent(name, games.get_game("public-goods(4,10,2)"))


def test_the_tables_say_what_the_command_lists():
    page = "docs/games.md"
    listed = {
        "Families of games": catalogue.GAME_FAMILIES,
        "Sets of games": catalogue.GAME_SETS,
        "Opponents": catalogue.OPPONENTS,
        "Opponents in games of more players": catalogue.CONTRIBUTORS,
        "Rewards": catalogue.REWARDS,
    }
    for title, lines in listed.items():
        rows = {row[0].strip("`"): row[1].replace("\\|", "|") for row in table(page, title)}
        assert rows == lines


def test_the_table_of_rewards_has_every_reward():
    named = [row[0].strip("`") for row in table("docs/games.md", "Rewards")]
    assert plain(named) == {*rewards.REWARDS, *rewards.FAMILIES}
    for name in named:
        rewards.get_reward(name)


def test_the_tables_of_words_have_every_wording_persona_order_and_suite():
    page = "docs/evaluation.md"
    known = {
        row[0].strip("`"): set(re.findall(r"`([^`]+)`", row[1]))
        for row in table(page, "The words of a prompt")
    }
    assert known["prompt.wording"] == {*WORDINGS}
    assert known["prompt.persona"] == {*PERSONAS}
    assert known["prompt.table_order"] == {*TABLE_ORDERS}
    assert names_in(page, "Suites") == list(SUITES)


def test_the_table_of_scenarios_has_every_suite_with_its_size():
    sizes = {row[0].strip("`"): int(row[1]) for row in table("docs/scenarios.md", "Suites")}
    assert sizes == {name: len(scenarios.read_suite(name)[0].items) for name in scenarios.SUITES}


def test_the_table_of_models_has_every_family():
    rows = table("docs/models.md", "Families")
    kinds, files = (
        {name for row in rows for name in re.findall(r"`(\w+)`", row[i])} for i in (1, 2)
    )
    assert kinds == {*hf_config.FAMILIES, *hf_config.BESIDE}
    assert files == {*gguf_file.FAMILIES}
    described = (ROOT / "docs/models.md").read_text()
    assert all(f"`{name}`" in described for name in (*PACKAGED, *CUTTINGS))


def test_links_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), (page, target)


def test_the_page_of_keys_is_that_of_the_docstrings():
    assert configuration_page.PAGE.read_text() == configuration_page.page()
    assert all(f"| `{key}` |" in configuration_page.page() for key in jaxmoral.config.KEYS)


@pytest.mark.slow
def test_figures_are_those_of_the_scripts(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    page = importlib.import_module("page").page()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == page
    quoted = table("README.md", "How fast it is")
    assert all(f"| {' | '.join(row)} |" in page.splitlines() for row in quoted)
    size_table.main()
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "devices.md").read_text()
