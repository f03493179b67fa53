"""The command `python -m jaxmoral.report`: runs as one self-contained page and as pictures.

The page holds the counterparts of the figures and tables of arXiv 2410.01639 as far as the runs
cover them, with that paper's own numbers beside ours.
"""

import argparse
import io
import re
import shutil
import string
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from jaxmoral import figures
from jaxmoral.config import Config, differences
from jaxmoral.errors import UserError, run_command
from jaxmoral.figures import Drawn
from jaxmoral.games import CELLS, GAMES
from jaxmoral.meetings import (
    PLANE,
    find_tournaments,
    map_sections,
    tournament_rows,
    tournament_sections,
)
from jaxmoral.published import FIGURE_4
from jaxmoral.runs import Run, find_runs, summarise, tidy
from jaxmoral.sections import (
    Section,
    agents_in,
    evaluation_sections,
    training_sections,
    usual_labels,
    with_agents,
)


def svg_of(drawn: Drawn, prefix: str) -> str:
    """A figure as inline SVG; ink follows the page, tips become data attributes."""
    figure, tips = drawn
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(figures.INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    def tip(match: re.Match) -> str:
        text = escape(tips[match[1]], quote=True)
        return f'<g id="{prefix}-{match[1]}" class="tip" data-tip="{text}" pointer-events="all">'

    return re.sub(r'<g id="(tip\d+)">', tip, svg)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """An HTML table of escaped texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def reward_rows(config: Config) -> list[list[str]]:
    """Table 1: what each reward is."""
    xi, illegal = f"{config.reward.xi:g}", f"{config.reward.illegal:g}"
    last = f"{illegal} for an illegal answer"
    return [
        ["game", f"own points; {last}"],
        ["deontological", f"-{xi} for D after the opponent's C, else 0; {last}"],
        ["utilitarian", f"own points + the opponent's; {last}"],
        ["game+deontological", f"own points, -{xi} for D after the opponent's C; {last}"],
    ]


def parameter_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Table 2: what each experiment changes, its runs counted."""
    experiments: dict[str, list[Run]] = {}
    for run in runs:
        name, _, _ = run.folder.name.rpartition("-seed")
        experiments.setdefault(f"{run.folder.parent.name}/{name or run.folder.name}", []).append(
            run
        )
    found = []
    for name, members in experiments.items():
        config = members[0].config
        changed = differences(config, Config())
        hidden = ("seed", "model.sha256", "model.dtype", "evaluation.")
        kept = [key for key in changed if not key.startswith(hidden)]
        values = []
        for key in kept:
            value: object = config
            for part in key.split("."):
                value = getattr(value, part) if hasattr(value, part) else value
            values.append(f"{key} {value}")
        done = f"{min(len(run.history) for run in members)} of {config.updates}"
        seeds = " ".join(str(run.config.seed) for run in members)
        found.append([name, seeds, done, ", ".join(values) or "defaults"])
    return found


def payoff_rows() -> list[list[str]]:
    """Table 3: the games' payoffs."""
    found = []
    for game in GAMES.values():
        if game.num_players > 2:
            continue
        cells = game.payoffs.reshape(2, 4).T
        found.append([game.title, *(", ".join(f"{p:g}" for p in cell) for cell in cells)])
    return found


def regret_rows(table: pd.DataFrame) -> list[list[str]]:
    """Fig. 4 in numbers: exact, by the paper's protocol, and as the paper printed it."""
    rows = table[(table["suite"] == "labels") & (table["trained_against"] == "tit-for-tat")]
    if rows.empty:
        return []
    rows = with_agents(usual_labels(rows[rows["opponent"] == "random"]))
    kinds = {
        "deontological": "regret/deontological/points",
        "utilitarian": "regret/utilitarian/normalised",
    }
    found = summarise(rows, ["agent", "condition", "metric", "protocol"]).set_index(
        ["agent", "condition", "metric", "protocol"]
    )
    lines = []
    for agent in agents_in(rows):
        for kind, metric in kinds.items():
            line = [agent, kind]
            for index, game in enumerate(dict.fromkeys(rows["condition"])):
                cell = []
                for protocol in ("exact", "paper"):
                    if (agent, game, metric, protocol) in found.index:
                        mean, interval = found.loc[
                            (agent, game, metric, protocol), ["mean", "interval"]
                        ]
                        cell.append(f"{mean:.2f} ± {interval:.2f}")
                printed = FIGURE_4[kind].get(agent, ())
                if index < len(printed):
                    cell.append(f"[{printed[index]:.2f}]")
                line.append(" / ".join(cell))
            lines.append(line)
    return lines


def answer_blocks(runs: Sequence[Run]) -> str:
    """What agents said to the follow-up questions, folded up run by run."""
    blocks = []
    for run in runs:
        lines = []
        for answer in run.answers:
            said = escape(shorten(answer["said"], 300, placeholder=" ...")) or "(nothing)"
            lines.append(
                f"<p>{escape(answer['policy'])}, after {escape(answer['remembered'])}: answered"
                f" “{escape(answer['answer'])}”. {escape(answer['question'])}</p>"
                f"<blockquote>{said}</blockquote>"
            )
        if lines:
            who = f"{run.title} against {run.config.env.opponent}, seed {run.config.seed}"
            blocks.append(f"<details><summary>{escape(who)}</summary>{''.join(lines)}</details>")
    return "\n".join(blocks)


def write_report(folders: Sequence[Path], output: Path) -> list[str]:
    """Writes `index.html`, `figures/*.png` and `*.pdf`, and `results.csv` to a folder.

    Args:
      folders: run folders, folders of run folders, or folders of tournaments.
      output: replaced as a whole.

    Returns:
      A line for each run that was left out.

    Raises:
      UserError: there is neither a run nor a tournament, or the output holds something else.
    """
    if output.exists() and not (output / "index.html").is_file() and any(output.iterdir()):
        raise UserError(f"--output: {output} holds something that is no report; choose another")
    tournaments, skipped = find_tournaments(folders)
    found: list[Run] = []
    try:
        found, unread = find_runs(folders)
        skipped = unread + skipped
    except UserError:
        if not tournaments:
            raise
    tabular = [run for run in found if run.config.model.source == "tabular"]
    runs = [run for run in found if run.config.model.source != "tabular"] or tabular
    tabular = tabular if runs is not tabular else []
    sections = training_sections(runs, tabular) if runs else []
    table = tidy(run for run in runs if run.config.preset == "fast" or len(runs) == 1)
    everything = tidy(found)
    if not table.empty:
        exact = lambda rows: rows[(rows["protocol"] == "exact") & (rows["opponent"] == "random")]
        beside = tidy(tabular)
        listed = table[~table["condition"].str.fullmatch(PLANE)]  # the plane has a map
        listed = exact(table if listed.empty else listed)
        sections += evaluation_sections(listed, None if beside.empty else exact(beside))
        known = table[(table["protocol"] == "exact") & table["opponent"].isin(("random", ""))]
        sections += map_sections(with_agents(usual_labels(known)))
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
        everything.to_csv(scratch / "results.csv", index=False)
        whole = page(runs, table, sections, parts, tournaments, skipped)
        (scratch / "index.html").write_text(whole)
        scratch.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return skipped


def page(
    runs: Sequence[Run],
    table: pd.DataFrame,
    sections: Sequence[Section],
    parts: Sequence[str],
    tournaments: Sequence[dict[str, Any]],
    skipped: Sequence[str],
) -> str:
    """The whole page."""
    models = ", ".join(sorted({run.config.model.source for run in runs}))
    seeds = sorted({run.config.seed for run in runs})
    body = ["<h1>Moral alignment of LLM agents</h1>"]
    kinds = f"{len(runs)} runs of {escape(models)}, seeds {', '.join(map(str, seeds))}."
    body.append(
        f'<p class="note">{kinds if runs else ""}'
        " Hover over a bar or an area for its values. Unless it says otherwise, a figure is"
        " exact, without sampling noise.</p>"
    )
    body += [f'<p class="note">Left out: {escape(line)}.</p>' for line in skipped]
    links = "".join(f'<li><a href="#{s.name}">{escape(s.heading)}</a></li>' for s in sections)
    body.append(f"<nav><ul>{links}</ul></nav>")
    body += parts
    if not table.empty and (rows := regret_rows(table)):
        games = [name.upper() for name in dict.fromkeys(table["game"]) if name in GAMES]
        caption = (
            "Mean ± 95 % interval: exact / by the paper's protocol / [as the paper printed it]"
        )
        body.append("<h2>Moral regret in numbers (Fig. 4)</h2>")
        body.append(html_table(["agent", "regret", *games], rows, caption))
    for result in tournaments:
        caption = "Mean long-run points against everybody / the most anyone can get from the agent"
        caption += (
            f" in {result['rounds']} rounds, a round / share of time in a Moran process of 50"
        )
        body.append("<h2>Tournament in numbers</h2>")
        body.append(html_table(*tournament_rows(result), caption))
    if answers := answer_blocks(runs):
        body.append("<h2>What agents say about their answers (Fig. 27)</h2>" + answers)
    body.append("<h2>Rewards, parameters, games</h2>")
    if runs:
        body.append(html_table(["reward", "of a round"], reward_rows(runs[0].config), "Table 1"))
    header = ["experiment", "seeds", "updates", "changed from the defaults"]
    body.append(html_table(header, parameter_rows(runs), "Table 2"))
    body.append(html_table(["game", *CELLS], payoff_rows(), "Table 3: own points, the other's"))
    template = string.Template((Path(__file__).parent / "page.html").read_text())
    return template.substitute(
        title="jaxmoral: moral alignment of LLM agents", body="\n".join(body)
    )


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
