"""Runs and tournaments as one self-contained page and as pictures.

The page holds the counterparts of the figures and tables of arXiv 2410.01639 as far as the runs
cover them, with that paper's own numbers beside ours.
"""

import io
import os
import re
import string
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from jaxmoral.errors import UserError
from jaxmoral.files import scratch_beside
from jaxmoral.learning.summary import summary
from jaxmoral.measuring.keeping import read_json, write_json
from jaxmoral.measuring.runs import find_runs, tidy, without_stale
from jaxmoral.reporting.beyond import beyond_sections
from jaxmoral.reporting.canvas import Drawn
from jaxmoral.reporting.generalisation import generalisation_sections
from jaxmoral.reporting.meetings import PLANE, find_tournaments, map_sections, tournament_sections
from jaxmoral.reporting.page_tables import heading, html_table, number_parts
from jaxmoral.reporting.sections import (
    Section,
    evaluation_sections,
    tables,
    training_sections,
    with_agents,
)
from jaxmoral.reporting.series import Series, group_runs, shown_names
from jaxmoral.reporting.styles import INK
from jaxmoral.reporting.thoughts import thought_sections

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
        isinstance(name, str)
        and Path(name).parts
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
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
      A line for each run, tournament or evaluation that was left out.

    Raises:
      UserError: there is neither a run nor a tournament, or the output holds something else.
    """
    own_files(output)  # what is refused is refused before anything is drawn
    found, skipped = find_runs(folders)
    tournaments, unread = find_tournaments(folders)
    if not found and not tournaments:
        reason = f" ({[*skipped, *unread][0]})" if skipped or unread else ""
        raise UserError(f"no run in {', '.join(map(str, folders))}{reason}")
    found, stale = without_stale(found)
    is_table = lambda run: run.config.model.source == "tabular"
    series, twice = group_runs([run for run in found if not is_table(run)])
    tabular, again = group_runs([run for run in found if is_table(run)])
    if not series:
        series, tabular = tabular, []
    skipped += [*unread, *stale, *twice, *again]
    table = tables(series)
    sections = training_sections(series, tabular) if series else []
    sections += _test_sections(table, series, tabular)
    sections += generalisation_sections(series)
    sections += thought_sections(series)
    sections += beyond_sections(series)
    sections += tournament_sections(tournaments)
    with scratch_beside(output) as scratch:
        (scratch / "figures").mkdir()
        parts = []
        for section in sections:
            drawn = section.draw()
            for kind in ("png", "pdf"):
                path = scratch / "figures" / f"{section.name}.{kind}"
                drawn[0].savefig(path, dpi=150, facecolor="white")
            parts.append(
                f"{heading(section.heading, section.name)}<figure>"
                f"{svg_of(drawn, section.name)}<figcaption>{escape(section.caption)}</figcaption>"
                "</figure>"
            )
            plt.close(drawn[0])
        tidy(run for one in [*series, *tabular] for run in one.runs).to_csv(
            scratch / "results.csv", index=False
        )
        head = page_head(series, tabular, table, skipped)
        parts += number_parts(series, tabular, table, tournaments)
        body = [*head, contents(parts), *parts]
        template = string.Template(
            (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        )
        title = "jaxmoral: moral alignment of LLM agents"
        page = template.substitute(title=title, body="\n".join(body))
        (scratch / "index.html").write_text(page, encoding="utf-8")
        put(scratch, output)
    return skipped


def tested_against(table: pd.DataFrame) -> str:
    """The opponent of the tests that figures show: random, or the first if that is not there.

    The paper's protocol, which has an opponent of its own, does not count beside exact tests.
    """
    exact = table[table["protocol"] == "exact"]
    names = (table if exact.empty else exact)["opponent"]
    opponents = [name for name in dict.fromkeys(names) if name]
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
            caption = f"{len(members)} {what}, in {len(group)} series: only runs with the same"
            caption += " settings are averaged, but for the seed, the devices and memory used, the"
            caption += " checkpoints kept, and what they were tested in; Table 2 lists them"
            models = ", ".join(dict.fromkeys(config.model.source for config in members))
            told = {"model": models} | summary(members)
            body.append(html_table([], list(told.items()), caption))
    notes = [
        "Hover over a bar or an area for its values. Unless it says otherwise, a figure of tests is"
        " exact, without sampling noise (but for that of thoughts); those of training show what the"
        " updates learned from."
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


def contents(parts: Sequence[str]) -> str:
    """Links to the headings in parts of a page."""
    headings = [found for part in parts for found in re.findall('<h2 id="(.*?)">(.*?)</h2>', part)]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in headings)
    return f"<nav><ul>{links}</ul></nav>"
