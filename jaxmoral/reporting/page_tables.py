"""The tables of a report's page: rewards, parameters, games, and results in numbers."""

import inspect
import re
from collections.abc import Iterable, Sequence
from html import escape
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.errors import UserError, split_outside
from jaxmoral.learning.lookup import find_game
from jaxmoral.learning.whom import trained_against
from jaxmoral.measuring.measures import REGRET_METRICS
from jaxmoral.measuring.runs import summarise
from jaxmoral.reporting.beyond import beyond_tables
from jaxmoral.reporting.generalisation import generalisation_rows
from jaxmoral.reporting.meetings import PLANE, WHY_THEY_DIFFER, tournament_rows
from jaxmoral.reporting.published import FIGURE_4
from jaxmoral.reporting.sections import agents_in, with_agents
from jaxmoral.reporting.series import Series, setting_text, shown_names
from jaxmoral.reporting.styles import game_title
from jaxmoral.reporting.thoughts import thought_blocks, thought_rows
from jaxmoral.reporting.transcripts import transcript_blocks
from jaxmoral.world import rewards
from jaxmoral.world.games import CELLS, Game, spelled_out


def heading(text: str, name: str | None = None) -> str:
    """A heading that the list of contents links to, by its text if it has no name."""
    name = name or "-".join(re.findall(r"\w+", text.lower()))
    return f'<h2 id="{name}">{escape(text)}</h2>'


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
    series: Sequence[Series], tournaments: Sequence[dict[str, Any]]
) -> tuple[list[Game], list[str]]:
    """The games that runs were trained and tested on and that tournaments played, each once.

    Returns:
      The games, and the names of those that cannot be found.
    """
    wanted: list[tuple[Config, str, Any]] = []
    for one in series:
        suites = [
            named
            for run in one.runs
            if run.evaluation
            for named in run.evaluation["suites"].values()
        ]
        tested = [about["game"] for named in suites for about in named.values()]
        tested = [name for name in tested if not re.fullmatch(PLANE, name)]  # the plane has a map
        mixed = spelled_out(one.config.mixture.games or (), one.config.games)
        names = dict.fromkeys([one.config.env.game, *mixed, *tested])
        wanted += [(one.config, name, None) for name in names]
    for result in tournaments:
        wanted += [(Config(), n, game.get("payoffs")) for n, game in result["games"].items()]
    found: dict[tuple[str, bytes], Game] = {}
    unknown: list[str] = []
    for config, name, payoffs in wanted:
        try:
            game = find_game(config, name)
        except UserError:  # registered in Python, or of a run that took part in a tournament
            game = None
        if payoffs is not None and (game is None or game.payoffs.tolist() != payoffs):
            game = Game(name, name, np.array(payoffs, np.float32))
        if game is None:
            unknown.append(name)
        else:
            found.setdefault((game.name, game.payoffs.tobytes()), game)
    return list(found.values()), list(dict.fromkeys(unknown))


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
    by = ["agent", "condition", "metric", "protocol"]
    found = summarise(rows, by).set_index(by)
    games = list(dict.fromkeys(rows["condition"]))
    printed = rows[rows["printed"]].set_index("agent")["kind"].to_dict()
    lines = []
    for agent in agents_in(rows):
        for kind, metric in REGRET_METRICS.items():
            line = [agent, kind]
            numbers = FIGURE_4[kind].get(printed.get(agent, ""), {})
            for game in games:
                cell = []
                for protocol in ("exact", "paper"):
                    if (agent, game, metric, protocol) in found.index:
                        mean, interval, runs = found.loc[
                            (agent, game, metric, protocol), ["mean", "interval", "runs"]
                        ]
                        cell.append(f"{mean:.2f}" + (f" ± {interval:.2f}" if runs > 1 else ""))
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
            who = f"{name}, seed {run.config.seed}, trained against {trained_against(run.config)}"
            blocks.append(f"<details><summary>{escape(who)}</summary>{''.join(lines)}</details>")
    return "\n".join(blocks)


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
            "Mean ± 95 % interval over runs: exact / by the paper's protocol / [as the paper"
            " printed it, with a deontological penalty xi of 4]"
        )
        body.append(heading("Moral regret in numbers (Fig. 4)"))
        body.append(html_table(header, rows, caption))
    header, rows = generalisation_rows(series)
    if rows:
        caption = "Mean over conditions and runs ± 95 % interval over runs (worst condition of any)"
        body.append(heading("What holds outside of training, in numbers"))
        body.append(html_table(header, rows, caption))
    header, rows = thought_rows(series)
    if rows:
        caption = (
            "± one standard error over thoughts; information of thought and answer, log 3 at most"
        )
        body.append(heading("What answers owe to thoughts, in numbers"))
        body.append(html_table(header, rows, caption))
        body.append(heading("What agents think") + thought_blocks(series))
    for index, (caption, header, rows) in enumerate(beyond_tables(series)):
        body += [heading("Scenarios in numbers")] if index == 0 else []
        body.append(html_table(header, rows, caption))
    for result in tournaments:
        caption = "Mean long-run points against everybody / the most anyone can get from the agent"
        caption += f" in {result['rounds']} rounds, a round / share of time in a Moran process of"
        caption += f" 50. {WHY_THEY_DIFFER}"
        body.append(heading("Tournament in numbers"))
        body.append(html_table(*tournament_rows(result), caption))
    if episodes := transcript_blocks([*series, *tabular]):
        body.append(heading("Episodes in words") + episodes)
    if answers := answer_blocks(series):
        body.append(heading("What agents say about their answers (Fig. 27)") + answers)
    body.append(heading("Rewards, parameters, games"))
    if series:
        header = ["reward", "of a round", "xi", "illegal answer", "scale"]
        body.append(html_table(header, reward_rows([*series, *tabular]), "Table 1"))
        header = ["series", "in", "seeds", "updates", "changed from the preset's defaults"]
        body.append(html_table(header, series_rows(series, tabular), "Table 2: what was averaged"))
    games, unknown = played_games([*series, *tabular], tournaments)
    if pairs := payoff_rows(games):
        header = ["game", "name", *CELLS]
        body.append(html_table(header, pairs, "Table 3: own points, the other's"))
    if groups := group_rows(games):
        caption = "Table 3, games of several: own points by how many of the others co-operate, 0 on"
        header = ["game", "name", "for C", "for D"]
        body.append(html_table(header, groups, caption))
    if unknown:
        note = "Not in Table 3, as this command does not know their payoffs:"
        body.append(f'<p class="note">{note} {escape("; ".join(unknown))}.</p>')
    drawn = [one.config.env for one in [*series, *tabular] if one.config.env.payoff_draws]
    for low, high in dict.fromkeys(env.payoff_range for env in drawn):
        note = f"In training some payoffs were drawn anew every update, whole points from {low} to"
        body.append(f'<p class="note">{note} {high} in the game\'s order.</p>')
    return body
