"""Figures and tables of meetings: tournaments, fingerprints, the S-T plane."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from jaxmoral.errors import UserError, split_outside
from jaxmoral.measuring.keeping import read_json
from jaxmoral.measuring.measures import fingerprint
from jaxmoral.measuring.tournaments import FILE, RATES
from jaxmoral.reporting.canvas import Drawn, Tips, lay_out
from jaxmoral.reporting.sections import Section, agents_in
from jaxmoral.reporting.styles import game_title, level, line_styles, wrapped
from jaxmoral.world.memory import OUTCOMES, make_memory
from jaxmoral.world.pairs import agent_player

_MOST_NAMED = 40  # rows of a heat map that still have names beside them
_MOST_COLOURED = 8  # lines of a figure of who spreads
_JUMP = 0.02  # answers to two rates that differ by more, though the rates are as near as
_NEAR = 1e-3  # this
_OLD_RATES = np.linspace(0, 1, 21)  # of tournaments that do not say theirs
PLANE = r"plane\((-?[\d.]+),(-?[\d.]+)\)"  # a condition's name


def find_tournaments(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads tournaments in folders or their subfolders: results, and a line for each damaged."""
    found: dict[Path, dict[str, Any]] = {}
    skipped: dict[Path, str] = {}
    for folder in folders:
        for path in [folder / FILE, *sorted(folder.glob(f"*/{FILE}"))]:
            if not path.is_file():
                continue
            try:
                result = read_json(path)
                whole = isinstance(result, dict) and {"agents", "games", "rounds"} <= set(result)
                if not whole or not isinstance(result["games"], dict) or not result["games"]:
                    raise UserError(f"{path} is damaged (no agents, games or rounds in it)")
                found[path.resolve()] = result
            except UserError as error:
                skipped[path.resolve()] = str(error)
    return list(found.values()), list(skipped.values())


def short_names(agents: Sequence[str]) -> list[str]:
    """Agents' names without what members of populations have in common.

    "reward.name=game,seed=0" becomes "game, seed 0", and just "game" if all members have this seed.
    """
    members = {agent: parts for agent in agents if (parts := _parts(agent))}
    values: dict[str, set[str]] = {}
    for parts in members.values():
        for key, value in parts.items():
            values.setdefault(key, set()).add(value)
    everywhere = [k for k in values if all(k in parts for parts in members.values())]
    common = {key for key in everywhere if len(values[key]) == 1}
    if len(members) == 1 or common == set(values):
        common = set()
    found = []
    for agent in agents:
        told = {k: v for k, v in members.get(agent, {}).items() if k not in common}
        texts = [
            value if key == "reward.name" else f"{key.rpartition('.')[2]} {value}"
            for key, value in told.items()
        ]
        found.append(", ".join(texts) or agent)
    return found if len(set(found)) == len(found) else list(agents)


def _parts(agent: str) -> dict[str, str]:
    """The keys and values that a member's name is made of; of other names none."""
    pairs = [part.partition("=") for part in split_outside(agent, ",")]
    pairs.sort(key=lambda pair: not pair[0].startswith("reward."))
    return {key: value for key, _, value in pairs} if all(pair[1] for pair in pairs) else {}


def titles_of(agents: Sequence[str]) -> list[str]:
    """What decides an agent's colour: the reward where its name tells it, or else the name."""
    return [_parts(agent).get("reward.name", agent) for agent in agents]


def heat_maps(panels: Mapping[str, np.ndarray], names: Sequence[str], label: str) -> Drawn:
    """A square per game: the row's number against the column.

    Args:
      panels: a title to `[num_agents, num_agents]`.
      names: of the agents.
      label: what the numbers are.
    """
    count, size = len(panels), len(names)
    side = min(max(2.4, 0.26 * size + 1.2), 9.0)
    font = 8 if size <= 20 else 6
    most = 3 if size <= 20 else 2
    figure, grid = lay_out(count, most, panel=(side, side), margin=(1.5, 0.4))
    across = grid.shape[1]
    tips = Tips()
    for place, (axes, (title, values)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        mesh = axes.pcolormesh(values, cmap="viridis", rasterized=size > _MOST_NAMED)
        axes.invert_yaxis()
        axes.set(title=title)
        axes.spines[:].set_visible(False)
        figure.colorbar(mesh, ax=axes, shrink=0.8)
        named = names if size <= _MOST_NAMED else []
        places = np.arange(len(named)) + 0.5
        first, bottom = place % across == 0, place >= count - across
        axes.set_yticks(places, named if first else [], fontsize=font)
        axes.set_xticks(places, named if bottom else [], fontsize=font, rotation=90)
        if size > _MOST_NAMED:
            continue
        for row, column in np.ndindex(size, size):
            cell = axes.fill_between([column, column + 1], row, row + 1, alpha=0, linewidth=0)
            text = f"{title}: {names[row]} against {names[column]}: {values[row, column]:.3f}"
            tips.add(cell, text)
    figure.supylabel(label, fontsize=9)
    return figure, tips


def evolution_curves(games: Mapping[str, Any], styles: Mapping[str, tuple[str, Any]]) -> Drawn:
    """Replicator dynamics per game from equal shares; the largest eight at the end have names.

    Args:
      games: a title to a tournament's numbers.
      styles: every agent's colour and line, in the tournament's order.
    """
    names = list(styles)
    figure, grid = lay_out(len(games), 3, panel=(2.6, 2.2), margin=(2.4, 0.4), sharey=True)
    tips = Tips()
    last = np.mean([found["evolution"]["path"][-1] for found in games.values()], axis=0)
    named = np.argsort(-last, kind="stable")[:_MOST_COLOURED].tolist()
    for axes, (title, found) in zip(grid.flat, games.items(), strict=False):
        path = np.array(found["evolution"]["path"])
        for index, name in enumerate(names):
            colour, style = styles[name] if index in named else ("#C0C0C0", "-")
            (line,) = axes.plot(path[:, index], color=colour, linestyle=style, linewidth=1.3)
            if index in named:
                line.set_label(wrapped(name))
            tips.add(line, f"{title}, {name}: {path[-1, index]:.1%} at last")
        axes.set(title=wrapped(title), xlabel="time", ylim=(0, 1), xticks=[])
    for row in grid:
        row[0].set_ylabel("share of the population")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure, tips


WHY_THEY_DIFFER = (
    "The replicator's is an endless population without chance, which starts with equal shares of"
    " everyone, and where what does equally well keeps its share; the Moran process has 50 agents,"
    " chance and rare mutants, so that one kind at a time holds it and all that counts is who can"
    " take over from whom: the two need not agree."
)


def _is_uneven(game: dict[str, Any]) -> bool:
    """Whether a game's sides differ; files of earlier versions do not say what it pays."""
    payoffs = np.array(game.get("payoffs", np.zeros((2, 2, 2))))
    return not np.array_equal(payoffs[0], payoffs[1].T)


def tournament_sections(results: Sequence[dict[str, Any]]) -> list[Section]:
    """Heat maps of what everyone gets from everyone, and who would spread."""
    sections = []
    for number, result in enumerate(results, 1):
        name = "tournament" if len(results) == 1 else f"tournament{number}"
        games, agents = result["games"], short_names(result["agents"])
        styles = dict(zip(agents, line_styles(titles_of(result["agents"])), strict=True))
        some = next(iter(games.values()))
        uneven = [game_title(name) for name, game in games.items() if _is_uneven(game)]
        both = f" Means over both sides of {', '.join(uneven)}." if uneven else ""
        for kind in some["long_run"]:
            label = {"cooperation": "share of rounds with C", "game": "points a round"}.get(
                kind, f"{kind} reward a round"
            )
            panels = {game_title(game): np.array(games[game]["long_run"][kind]) for game in games}
            draw = partial(heat_maps, panels, agents, label)
            caption = f"In the long run, exact: the row's {label} against the column.{both}"
            heading = f"Tournament: {label}"
            sections.append(Section(f"{name}-{kind}", heading, caption, draw))
        game = game_title(next(iter(games)))
        curves = dict(zip(agents, map(np.array, some["fingerprint"]), strict=True))
        caption = f"Exact, in {game}: the agent's rate of C by that of a memoryless opponent. A dot"
        caption += " stands apart where an opponent that never errs is answered otherwise than one"
        caption += " that hardly ever does."
        heading = "Tournament: fingerprints"
        draw = partial(fingerprints, curves, styles, np.array(result.get("rates", _OLD_RATES)))
        sections.append(Section(f"{name}-fingerprints", heading, caption, draw))
        draw = partial(evolution_curves, {game_title(game): games[game] for game in games}, styles)
        caption = "Replicator dynamics from equal shares, on the long-run points. "
        heading = "Tournament: who spreads"
        sections.append(Section(f"{name}-evolution", heading, caption + WHY_THEY_DIFFER, draw))
    return sections


def tournament_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table's header and rows: mean points, exploitability, share of time in a Moran process."""
    games = result["games"]
    lines = []
    for index, agent in enumerate(short_names(result["agents"])):
        cells = [agent]
        for found in games.values():
            mean = float(np.mean(found["long_run"]["game"][index]))
            taken = found["exploitability"][index]
            held = found["evolution"]["stationary"][index]
            cells.append(f"{mean:.2f} / {taken:.2f} / {held:.0%}")
        lines.append(cells)
    return ["agent", *map(game_title, games)], lines


def fingerprints(
    curves: Mapping[str, np.ndarray],
    styles: Mapping[str, tuple[str, Any]],
    rates: np.ndarray = RATES,
) -> Drawn:
    """Cooperation in the long run by how often a memoryless opponent plays C, a line per agent.

    It can jump at the ends only: between them the same rounds are possible at every rate.

    Args:
      curves: an agent to its shares of C by rate.
      styles: an agent to its colour and line.
      rates: of the opponent's C, from 0 to 1.
    """
    lines = sum(wrapped(agent).count("\n") + 1 for agent in curves)
    columns = -(-lines // 20) if len(curves) <= _MOST_NAMED else 0
    size = (5.0 + 2.4 * max(columns, 1), 4.0)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    tips = Tips()
    for agent, curve in curves.items():
        colour, style = styles[agent]
        near = rates[1] - rates[0] < _NEAR
        low, high = (near and abs(np.diff(curve)[end]) > _JUMP for end in (0, -1))
        inside = slice(int(low), len(curve) - int(high))
        (line,) = axes.plot(
            rates[inside],
            curve[inside],
            color=colour,
            linestyle=style,
            label=wrapped(agent),
            linewidth=1.5,
        )
        for end in [0] * bool(low) + [-1] * bool(high):
            axes.plot(rates[end], curve[end], "o", color=colour, markersize=4, clip_on=False)
        places = np.searchsorted(rates, (0, 0.5, 1))
        shown = ", ".join(f"{curve[i]:.2f} at {rates[i]:.1f}" for i in places)
        tips.add(line, f"{agent}: P(C) {shown}")
    level(axes, 0.5, "chance: 1/2")
    axes.set(xlabel="opponent's rate of C", ylabel="agent's rate of C", ylim=(-0.03, 1.03))
    if columns:
        figure.legend(loc="outside right center", fontsize=8, ncols=columns)
    return figure, tips


def planes(table: pd.DataFrame, agents: Sequence[str]) -> Drawn:
    """Cooperation of each agent over the S-T plane (R = 10, P = 0), mean over runs.

    Args:
      table: tidy rows with a column `agent`, of conditions "plane(S,T)".
      agents: in the order they are drawn.
    """
    figure, grid = lay_out(
        len(agents), 4, panel=(2.3, 2.3), margin=(0.9, 0.4), sharex=True, sharey=True
    )
    tips = Tips()
    for axes, agent in zip(grid.flat, agents, strict=False):
        own = table[table["agent"] == agent].pivot_table("value", "temptation", "sucker")
        sucker, temptation = own.columns.to_numpy(), own.index.to_numpy()
        axes.pcolormesh(sucker, temptation, own.to_numpy(), vmin=0, vmax=1, cmap="viridis")
        axes.axhline(10, color="w", linewidth=0.8, linestyle="--")
        axes.axvline(0, color="w", linewidth=0.8, linestyle="--")
        axes.set_title(wrapped(agent), fontsize=8)
        half = (sucker[1] - sucker[0]) / 2, (temptation[1] - temptation[0]) / 2
        for row, t in enumerate(temptation):
            for column, s in enumerate(sucker):
                if np.isnan(own.to_numpy()[row, column]):
                    continue
                cell = axes.fill_between(
                    [s - half[0], s + half[0]], t - half[1], t + half[1], alpha=0, linewidth=0
                )
                tips.add(cell, f"{agent}, S={s:g} T={t:g}: C {own.to_numpy()[row, column]:.1%}")
    corners = ((-9, 1, "Stag Hunt"), (4, 1, "Harmony"), (-9, 18, "Dilemma"), (4, 18, "Chicken"))
    for x, y, name in corners:
        grid[0, 0].text(x, y, name, fontsize=6, color="w")
    for row in grid:
        row[0].set_ylabel("T: D against C, points")
    for axes in grid[-1]:
        axes.set_xlabel("S: C against D, points")
    shades = plt.cm.ScalarMappable(plt.Normalize(0, 1), "viridis")
    figure.colorbar(shades, ax=grid, label="share of rounds with C")
    return figure, tips


def map_sections(rows: pd.DataFrame, tabular: bool) -> list[Section]:
    """Fingerprints of agents that remember one round, and the S-T plane if it was played.

    Args:
      rows: exact rows of the suite "trained", from `sections.with_agents`.
      tabular: whether the agents are tables, which play every game alike.
    """
    sections = []
    curves, game, others = _fingerprint_curves(rows)
    if curves:
        kinds = dict(zip(rows["agent"], rows["kind"], strict=True))
        styles = dict(zip(curves, line_styles(kinds[agent] for agent in curves), strict=True))
        text = f"Exact, in {game_title(game)} with the labels of training; mean over runs."
        text += " Unconditional agents are flat, a reciprocal one is the diagonal."
        if others:
            text += " Left out, as they were not tested in it or do not remember one round:"
            text += f" {'; '.join(others)}."
        draw = partial(fingerprints, curves, styles)
        sections.append(Section("fingerprints", "Fingerprints", text, draw))
    places = rows["condition"].str.extract(PLANE).astype(float)
    plane = rows.assign(sucker=places[0], temptation=places[1])
    plane = plane[(plane["metric"] == "outcomes/C") & plane["sucker"].notna()]
    spans = plane.groupby("agent")[["sucker", "temptation"]].nunique().min(axis=1)
    mapped = [agent for agent in agents_in(plane) if spans[agent] > 1]
    if mapped:
        text = "Exact, mean over runs. R = 10, P = 0; T > 10 tempts, S < 0 frightens."
        if unmapped := [agent for agent in agents_in(plane) if agent not in mapped]:
            text += f" Left out, as they were tested on a line of it only: {'; '.join(unmapped)}."
        if tabular:
            text += " A tabular policy reads no prompt and plays every game alike: its map is one"
            text += " colour by construction."
        draw = partial(planes, plane, mapped)
        heading = "Cooperation over the S-T plane"
        sections.append(Section("plane", heading, text, draw))
    return sections


def _fingerprint_curves(rows: pd.DataFrame) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """Curves by agent, the game they are of, and the agents that have none."""
    cells = [f"remembered/{cell}/{kind}" for cell in ("CC", "CD", "DC", "DD") for kind in OUTCOMES]
    shown = rows[rows["metric"].str.startswith("remembered/")]
    curves: dict[str, np.ndarray] = {}
    others: list[str] = []
    game = ""
    if shown.empty:
        return curves, game, others
    tested = shown.groupby("condition", sort=False)["agent"].nunique()
    game = str(tested.idxmax())  # what most agents were tested in
    for agent in agents_in(shown):
        own = shown[(shown["agent"] == agent) & (shown["condition"] == game)]
        own = own.pivot_table("value", "folder", "metric")
        # After a blank start there is a prompt without a round ("-") too.
        known = {name for name in own.columns if not name.startswith("remembered/-/")}
        if known == set(cells):
            policies = own[cells].to_numpy().reshape(-1, 4, 3)
            players = [agent_player(make_memory(), policy) for policy in policies]
            curves[agent] = fingerprint(players, RATES).mean(0)
        else:
            others.append(agent)
    return curves, game, others
