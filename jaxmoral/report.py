"""The command `python -m jaxmoral.report`: runs as one self-contained page and as pictures.

The page holds the counterparts of the figures and tables of arXiv 2410.01639 as far as the runs
cover them, with that paper's own numbers beside ours.
"""

import argparse
import inspect
import io
import os
import re
import shutil
import string
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from jaxmoral import config as configs
from jaxmoral import rewards
from jaxmoral.config import Config
from jaxmoral.errors import UserError, run_command, split_outside
from jaxmoral.evaluate import write_json
from jaxmoral.figures import Drawn
from jaxmoral.games import CELLS, Game
from jaxmoral.lookup import find_game, training_game
from jaxmoral.meetings import (
    PLANE,
    WHY_THEY_DIFFER,
    find_tournaments,
    map_sections,
    tournament_rows,
    tournament_sections,
)
from jaxmoral.published import FIGURE_4
from jaxmoral.runs import find_runs, read_json, summarise, tidy
from jaxmoral.sections import (
    Section,
    agents_in,
    evaluation_sections,
    tables,
    training_sections,
    with_agents,
)
from jaxmoral.series import Series, group_runs, setting_text, shown_names
from jaxmoral.styles import INK, game_title
from jaxmoral.summary import summary

MANIFEST = "report.json"  # lists the files that a report wrote


def svg_of(drawn: Drawn, prefix: str) -> str:
    """A figure as inline SVG; ink follows the page, tips become data attributes."""
    figure, tips = drawn
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    def tip(match: re.Match) -> str:
        text = escape(tips[match[1]], quote=True)
        return f'<g id="{prefix}-{match[1]}" class="tip" data-tip="{text}" pointer-events="all">'

    return re.sub(r'<g id="(tip\d+)">', tip, svg)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """An HTML table of escaped texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"{head}<tbody>{body}</tbody></table></div>"
    )


def reward_rows(series: Sequence[Series]) -> list[list[str]]:
    """Table 1: what each reward of the runs is."""
    found: dict[tuple[str, ...], None] = {}
    for config in (one.config for one in series):
        reward = config.reward
        for name in filter(None, (reward.name, reward.then)):
            scale = "legal rounds from 0 to 1" if reward.normalise else "points"
            found[name, in_words(name), f"{reward.xi:g}", f"{reward.illegal:g}", scale] = None
    return [list(row) for row in found]


def in_words(name: str) -> str:
    """A reward, or a weighted sum of some, as the functions describe themselves."""
    parts = []
    for term in split_outside(name, "+"):
        kind = term.rpartition("*")[2].partition("(")[0].strip()
        function = {**rewards.FAMILIES, **rewards.REWARDS}.get(kind)
        said = inspect.getdoc(function) if function else None
        if said is None:
            return "a reward of the run's own, which this command does not know"
        parts.append((term, " ".join(said.split("\n\n")[0].split())))
    if len(parts) == 1 and parts[0][0] == name and "*" not in name:
        return parts[0][1]
    return "the sum of " + "; and ".join(f"{term} ({said})" for term, said in parts)


def series_rows(series: Sequence[Series], tabular: Sequence[Series]) -> list[list[str]]:
    """Table 2: which runs were averaged, and what is special about them."""
    found = []
    for group in (series, tabular):
        for one, name in zip(group, shown_names(group), strict=True):
            preset = configs.parse({"preset": one.config.preset})
            usual = configs.flatten(configs.to_dict(preset))
            told = {k: v for k, v in one.settings.items() if v != usual.get(k)}
            told = {k: v for k, v in told.items() if k not in ("model.sha256", "model.dtype")}
            words = [setting_text(key, value, [key, f".{key}"]) for key, value in told.items()]
            seeds = " ".join(str(run.config.seed) for run in one.runs)
            places = sorted({str(run.folder.parent) for run in one.runs})
            updates = str(one.settings["updates"])
            changed = ", ".join([f"preset {one.config.preset}", *words])
            found.append([name, ", ".join(places), seeds, updates, changed])
    return found


def played_games(
    series: Sequence[Series], table: pd.DataFrame, tournaments: Sequence[dict[str, Any]]
) -> list[Game]:
    """The games that runs were trained and tested on and that tournaments played, each once."""
    found: dict[tuple[str, bytes], Game] = {}
    wanted = [(one.config, one.config.env.game) for one in series]
    if not table.empty:
        for index, name in table[["series", "game"]].drop_duplicates().itertuples(index=False):
            if not re.fullmatch(PLANE, name):  # the plane has a map
                wanted.append((series[index].config, name))
    wanted += [(Config(), name) for result in tournaments for name in result["games"]]
    for config, name in wanted:
        try:
            game = training_game(config) if name == config.env.game else find_game(config, name)
        except UserError:  # one that was registered in Python, or brought by a tournament's run
            continue
        found.setdefault((game.name, game.payoffs.tobytes()), game)
    return list(found.values())


def payoff_rows(games: Iterable[Game]) -> list[list[str]]:
    """Table 3: the payoffs of games of two players."""
    found = []
    for game in games:
        if game.num_players == 2:
            cells = game.payoffs.reshape(2, 4).T
            points = (", ".join(f"{p:g}" for p in cell) for cell in cells)
            found.append([game.title, game.name, *points])
    return found


def group_rows(games: Iterable[Game]) -> list[list[str]]:
    """Table 3 for more players: own points by how many of the others co-operate, from 0."""
    found = []
    for game in games:
        if game.num_players > 2:
            rows = (", ".join(f"{p:g}" for p in row[::-1]) for row in game.payoffs[0])
            found.append([game.title, game.name, *rows])
    return found


def regret_table(
    table: pd.DataFrame, series: Sequence[Series]
) -> tuple[list[str], list[list[str]]]:
    """Fig. 4 in numbers, a header and rows: exact, by the paper's protocol, as it was printed."""
    chosen = (table["suite"] == "labels") & (table["trained_against"] == "tit-for-tat")
    rows = with_agents(table[chosen & (table["opponent"] == "random")], series)
    if rows.empty:
        return [], []
    kinds = {
        "deontological": "regret/deontological/points",
        "utilitarian": "regret/utilitarian/normalised",
    }
    by = ["agent", "condition", "metric", "protocol"]
    found = summarise(rows, by).set_index(by)
    games = list(dict.fromkeys(rows["condition"]))
    printed = rows[rows["printed"]].set_index("agent")["kind"].to_dict()
    lines = []
    for agent in agents_in(rows):
        for kind, metric in kinds.items():
            line = [agent, kind]
            numbers = FIGURE_4[kind].get(printed.get(agent, ""), {})
            for game in games:
                cell = []
                for protocol in ("exact", "paper"):
                    if (agent, game, metric, protocol) in found.index:
                        mean, interval = found.loc[
                            (agent, game, metric, protocol), ["mean", "interval"]
                        ]
                        cell.append(f"{mean:.2f} ± {interval:.2f}")
                cell += [f"[{numbers[game]:.2f}]"] if game in numbers else []
                line.append(" / ".join(cell))
            lines.append(line)
    return ["agent", "regret", *map(game_title, games)], lines


def answer_blocks(series: Sequence[Series]) -> str:
    """What agents said to the follow-up questions, folded up run by run."""
    blocks = []
    runs = [
        (name, run)
        for one, name in zip(series, shown_names(series), strict=True)
        for run in one.runs
    ]
    for name, run in runs:
        lines = []
        for answer in run.answers:
            said = escape(shorten(answer["said"], 300, placeholder=" ...")) or "(nothing)"
            lines.append(
                f"<p>{escape(answer['policy'])}, after {escape(answer['remembered'])}: answered"
                f" “{escape(answer['answer'])}”. {escape(answer['question'])}</p>"
                f"<blockquote>{said}</blockquote>"
            )
        if lines:
            who = f"{name}, seed {run.config.seed}, trained against {run.config.env.opponent}"
            blocks.append(f"<details><summary>{escape(who)}</summary>{''.join(lines)}</details>")
    return "\n".join(blocks)


def own_files(output: Path) -> set[str]:
    """The files of the report in a folder, relative to it; none in an empty or new folder.

    Raises:
      UserError: the folder holds something and is no report.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return set()
    if not (output / MANIFEST).is_file():
        raise UserError(
            f"--output: {output} holds something that is no report, or one of an older version"
            f" (there is no {MANIFEST} in it); move it away or choose another folder"
        )
    listed = read_json(output / MANIFEST)
    files = listed.get("files") if isinstance(listed, dict) else None
    inside = lambda name: (
        isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
    )
    if not isinstance(files, list) or not all(map(inside, files)):
        raise UserError(f"--output: {output / MANIFEST} is damaged: it must list files beside it")
    return {MANIFEST, *files}


def put(scratch: Path, output: Path) -> None:
    """Moves a finished report to its place: over an older one's own files, and no others.

    Raises:
      UserError: a file that no report wrote is where one would go.
    """
    old = own_files(output)
    new = {str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file()}
    for name in sorted(new - old):
        if (output / name).exists():
            raise UserError(f"--output: {output / name} was written by no report; move it away")
    listed = {"files": sorted(new - {MANIFEST})}
    write_json(listed, scratch / MANIFEST)
    if not output.exists():
        scratch.rename(output)
        return
    # If this is cut off, the page is still the old one, and what is listed covers both.
    write_json({"files": sorted((old | new) - {MANIFEST})}, output / MANIFEST)
    for name in sorted(new - {"index.html", MANIFEST}):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / name, output / name)
    os.replace(scratch / "index.html", output / "index.html")
    for name in old - new - {MANIFEST}:
        (output / name).unlink(missing_ok=True)
    os.replace(scratch / MANIFEST, output / MANIFEST)


def write_report(folders: Sequence[Path], output: Path) -> list[str]:
    """Writes `index.html`, `figures/*.png` and `*.pdf`, and `results.csv` to a folder.

    Args:
      folders: run folders, folders of run folders, or folders of tournaments.
      output: a new or an empty folder, or one of a report, whose own files are replaced.

    Returns:
      A line for each run that was left out.

    Raises:
      UserError: there is neither a run nor a tournament, or the output holds something else.
    """
    own_files(output)  # what is refused is refused before anything is drawn
    found, skipped = find_runs(folders)
    tournaments, unread = find_tournaments(folders)
    if not found and not tournaments:
        reason = f" ({[*skipped, *unread][0]})" if skipped or unread else ""
        raise UserError(f"no run in {', '.join(map(str, folders))}{reason}")
    is_table = lambda run: run.config.model.source == "tabular"
    series, twice = group_runs([run for run in found if not is_table(run)])
    tabular, again = group_runs([run for run in found if is_table(run)])
    if not series:
        series, tabular = tabular, []
    skipped += [*unread, *twice, *again]
    table = tables(series)
    sections = training_sections(series, tabular) if series else []
    sections += _test_sections(table, series, tabular)
    sections += tournament_sections(tournaments)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=".report-"))
    try:
        (scratch / "figures").mkdir()
        parts = []
        for section in sections:
            drawn = section.draw()
            for kind in ("png", "pdf"):
                path = scratch / "figures" / f"{section.name}.{kind}"
                drawn[0].savefig(path, dpi=150, facecolor="white")
            parts.append(
                f'<h2 id="{section.name}">{escape(section.heading)}</h2><figure>'
                f"{svg_of(drawn, section.name)}<figcaption>{escape(section.caption)}</figcaption>"
                "</figure>"
            )
            plt.close(drawn[0])
        tidy(run for one in [*series, *tabular] for run in one.runs).to_csv(
            scratch / "results.csv", index=False
        )
        head = page_head(series, tabular, table, skipped)
        body = [*head, contents(sections), *parts]
        body += number_parts(series, tabular, table, tournaments)
        template = string.Template((Path(__file__).parent / "page.html").read_text())
        title = "jaxmoral: moral alignment of LLM agents"
        page = template.substitute(title=title, body="\n".join(body))
        (scratch / "index.html").write_text(page)
        scratch.chmod(0o755)
        put(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return skipped


def tested_against(table: pd.DataFrame) -> str:
    """The opponent of the tests that figures show: random, or the first if that is not there."""
    opponents = [name for name in dict.fromkeys(table["opponent"]) if name]
    return "random" if "random" in opponents else opponents[0]


def _test_sections(
    table: pd.DataFrame, series: Sequence[Series], tabular: Sequence[Series]
) -> list[Section]:
    if table.empty:
        return []
    tested = tested_against(table)
    exact = lambda rows: rows[(rows["protocol"] == "exact") & (rows["opponent"] == tested)]
    listed = table[~table["condition"].str.fullmatch(PLANE)]  # the plane has a map
    shown = exact(table if listed.empty else listed)
    beside = tables(tabular)
    beside = beside if beside.empty else exact(beside)
    sections = evaluation_sections(shown, series, (beside, tabular), tested)
    known = table[(table["suite"] == "trained") & table["opponent"].isin((tested, ""))]
    known = with_agents(known[known["protocol"] == "exact"], series)
    only_tables = all(one.config.model.source == "tabular" for one in series)
    return sections + map_sections(known, only_tables)


def page_head(
    series: Sequence[Series],
    tabular: Sequence[Series],
    table: pd.DataFrame,
    skipped: Sequence[str],
) -> list[str]:
    """The page's title, what its runs are, and what was averaged and left out."""
    body = ["<h1>Moral alignment of LLM agents</h1>"]
    for group, what in ((series, "runs"), (tabular, "tabular runs, dotted in the figures")):
        members = [run.config for one in group for run in one.runs]
        if members:
            caption = f"{len(members)} {what}, in {len(group)} series: only runs that are equal but"
            caption += " for the seed are averaged, and Table 2 lists them"
            models = ", ".join(dict.fromkeys(config.model.source for config in members))
            told = {"model": models} | summary(members)
            body.append(html_table([], list(told.items()), caption))
    notes = [
        "Hover over a bar or an area for its values. Unless it says otherwise, a figure is exact,"
        " without sampling noise."
    ]
    if not table.empty:
        tested = tested_against(table)
        others = [name for name in dict.fromkeys(table["opponent"]) if name not in (tested, "")]
        if others:
            notes.append(f"In results.csv only: tests against {', '.join(others)}.")
    untested = [one for one in series if all(run.evaluation is None for run in one.runs)]
    if untested and len(untested) < len(series):
        notes.append(f"Not evaluated: {'; '.join(shown_names(untested))}.")
    notes += [f"Left out: {line}." for line in skipped]
    return [*body, f'<p class="note">{"<br>".join(map(escape, notes))}</p>']


def contents(sections: Sequence[Section]) -> str:
    """Links to the figures."""
    links = "".join(f'<li><a href="#{s.name}">{escape(s.heading)}</a></li>' for s in sections)
    return f"<nav><ul>{links}</ul></nav>"


def number_parts(
    series: Sequence[Series],
    tabular: Sequence[Series],
    table: pd.DataFrame,
    tournaments: Sequence[dict[str, Any]],
) -> list[str]:
    """The page's tables."""
    body = []
    header, rows = ([], []) if table.empty else regret_table(table, series)
    if rows:
        caption = (
            "Mean ± 95 % interval: exact / by the paper's protocol / [as the paper printed it]"
        )
        body.append("<h2>Moral regret in numbers (Fig. 4)</h2>")
        body.append(html_table(header, rows, caption))
    for result in tournaments:
        caption = "Mean long-run points against everybody / the most anyone can get from the agent"
        caption += f" in {result['rounds']} rounds, a round / share of time in a Moran process of"
        caption += f" 50. {WHY_THEY_DIFFER}"
        body.append("<h2>Tournament in numbers</h2>")
        body.append(html_table(*tournament_rows(result), caption))
    if answers := answer_blocks(series):
        body.append("<h2>What agents say about their answers (Fig. 27)</h2>" + answers)
    body.append("<h2>Rewards, parameters, games</h2>")
    if series:
        header = ["reward", "of a round", "xi", "illegal answer", "scale"]
        body.append(html_table(header, reward_rows([*series, *tabular]), "Table 1"))
        header = ["series", "in", "seeds", "updates", "changed from the preset's defaults"]
        body.append(html_table(header, series_rows(series, tabular), "Table 2: what was averaged"))
    games = played_games(series, table, tournaments)
    if pairs := payoff_rows(games):
        header = ["game", "name", *CELLS]
        body.append(html_table(header, pairs, "Table 3: own points, the other's"))
    if groups := group_rows(games):
        caption = "Table 3, games of several: own points by how many of the others co-operate, 0 on"
        header = ["game", "name", "for C", "for D"]
        body.append(html_table(header, groups, caption))
    drawn = [one.config.env for one in series if one.config.env.payoff_draws]
    for low, high in dict.fromkeys(env.payoff_range for env in drawn):
        note = f"In training some payoffs were drawn anew every update, whole points from {low} to"
        body.append(f'<p class="note">{note} {high} in the game\'s order.</p>')
    return body


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.report", description="Writes runs as one page and as pictures."
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders of runs, of run folders, of tournaments"
    )
    parser.add_argument("--output", type=Path, help="the report's folder; FOLDER/report by default")
    arguments = parser.parse_args()
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    output = arguments.output or arguments.folders[0] / "report"
    skipped = write_report(arguments.folders, output)
    for line in skipped:
        print(f"left out: {line}")
    print(f"wrote {output / 'index.html'}; open it in a browser")


if __name__ == "__main__":
    main()
