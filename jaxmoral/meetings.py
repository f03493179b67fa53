"""Figures and tables of meetings: tournaments, fingerprints, the S-T plane."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from jaxmoral.errors import UserError
from jaxmoral.figures import BASE, CURVE_COLOURS, Drawn, Tips
from jaxmoral.measures import fingerprint
from jaxmoral.runs import read_json
from jaxmoral.sections import Section, agents_in
from jaxmoral.tournament import FILE, RATES

KINDS = ("C", "D", "illegal")
_MOST_NAMED = 40  # rows of a heat map that still have names beside them
PLANE = r"plane\((-?[\d.]+),(-?[\d.]+)\)"  # a condition's name


def find_tournaments(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads tournaments in folders or their subfolders: results, and a line for each damaged."""
    found, skipped = [], []
    for folder in folders:
        for path in [folder / FILE, *sorted(folder.glob(f"*/{FILE}"))]:
            if not path.is_file():
                continue
            try:
                result = read_json(path)
                if not {"agents", "games", "rounds"} <= set(result):
                    raise UserError(f"{path} is damaged (no agents, games or rounds in it)")
                found.append(result)
            except UserError as error:
                skipped.append(str(error))
    return found, skipped


def heat_maps(panels: Mapping[str, np.ndarray], names: Sequence[str], label: str) -> Drawn:
    """A square per game: the row's number against the column.

    Args:
      panels: a title to `[num_agents, num_agents]`.
      names: of the agents.
      label: what the numbers are.
    """
    count, size = len(panels), len(names)
    across = min(3 if size <= 20 else 2, count)
    down = -(-count // across)
    side = min(max(2.2, 0.24 * size + 1.2), 7.0)
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(side * across + 1.5, side * down + 0.4),
        squeeze=False,
        layout="constrained",
    )
    tips = Tips()
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for place, (axes, (title, values)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        mesh = axes.pcolormesh(values, cmap="viridis", rasterized=size > _MOST_NAMED)
        axes.invert_yaxis()
        axes.set(title=title)
        axes.spines[:].set_visible(False)
        figure.colorbar(mesh, ax=axes, shrink=0.8)
        named = names if size <= _MOST_NAMED else []
        places = np.arange(len(named)) + 0.5
        first, bottom = place % across == 0, place >= count - across
        axes.set_yticks(places, named if first else [], fontsize=6)
        axes.set_xticks(places, named if bottom else [], fontsize=6, rotation=90)
        if size > _MOST_NAMED:
            continue
        for row, column in np.ndindex(size, size):
            cell = axes.fill_between([column, column + 1], row, row + 1, alpha=0, linewidth=0)
            text = f"{title}: {names[row]} against {names[column]}: {values[row, column]:.3f}"
            tips.add(cell, text)
    figure.supylabel(label, fontsize=9)
    return figure, tips


def evolution_curves(games: Mapping[str, Any], names: Sequence[str]) -> Drawn:
    """Replicator dynamics per game from equal shares; the largest eight at the end have names."""
    figure, grid = plt.subplots(
        1,
        len(games),
        figsize=(2.2 * len(games) + 2.2, 2.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    tips = Tips()
    last = np.mean([found["evolution"]["path"][-1] for found in games.values()], axis=0)
    named = np.argsort(-last, kind="stable")[: len(CURVE_COLOURS) + 2]
    colours = dict(zip(named.tolist(), (*CURVE_COLOURS, "#696969", "#8B4513"), strict=False))
    for axes, (title, found) in zip(grid[0], games.items(), strict=True):
        path = np.array(found["evolution"]["path"])
        for index, name in enumerate(names):
            colour = colours.get(index, "#C0C0C0")
            label = name if index in colours else None
            (line,) = axes.plot(path[:, index], color=colour, label=label, linewidth=1.3)
            tips.add(line, f"{title}, {name}: {path[-1, index]:.1%} at last")
        axes.set(title=title, xlabel="time", ylim=(0, 1), xticks=[])
    grid[0, 0].set_ylabel("share of the population")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=6)
    return figure, tips


def tournament_sections(results: Sequence[dict[str, Any]]) -> list[Section]:
    """Heat maps of what everyone gets from everyone, and who would spread."""
    sections = []
    for number, result in enumerate(results, 1):
        name = "tournament" if len(results) == 1 else f"tournament{number}"
        games, agents = result["games"], result["agents"]
        some = next(iter(games.values()))
        titles = {game: game.upper() if len(game) == 3 else game for game in games}
        for kind in some["long_run"]:
            label = {"cooperation": "share of rounds with C", "game": "points a round"}.get(
                kind, f"{kind} reward a round"
            )
            panels = {titles[game]: np.array(games[game]["long_run"][kind]) for game in games}
            draw = partial(heat_maps, panels, agents, label)
            caption = f"In the long run, exact: the row's {label} against the column."
            heading = f"Tournament: {label}"
            sections.append(Section(f"{name}-{kind}", heading, caption, draw))
        game = next(iter(games))
        curves = dict(zip(agents, map(np.array, some["fingerprint"]), strict=True))
        caption = (
            f"Exact, in {titles[game]}: the agent's rate of C by that of a memoryless opponent."
        )
        heading = "Tournament: fingerprints"
        draw = partial(fingerprints, curves)
        sections.append(Section(f"{name}-fingerprints", heading, caption, draw))
        draw = partial(evolution_curves, {titles[game]: games[game] for game in games}, agents)
        caption = "Replicator dynamics from equal shares, on the long-run points."
        sections.append(Section(f"{name}-evolution", "Tournament: who spreads", caption, draw))
    return sections


def tournament_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table's header and rows: mean points, exploitability, share of time in a Moran process."""
    games = result["games"]
    lines = []
    for index, agent in enumerate(result["agents"]):
        cells = [agent]
        for found in games.values():
            mean = float(np.mean(found["long_run"]["game"][index]))
            taken = found["exploitability"][index]
            held = found["evolution"]["stationary"][index]
            cells.append(f"{mean:.2f} / {taken:.2f} / {held:.0%}")
        lines.append(cells)
    return ["agent", *games], lines


def fingerprints(curves: Mapping[str, np.ndarray]) -> Drawn:
    """Cooperation in the long run by how often a memoryless opponent plays C, a line per agent.

    Args:
      curves: an agent to its shares of C by `tournament.RATES`.
    """
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    tips = Tips()
    styles = [(colour, line) for line in ("-", "--", ":", "-.") for colour in CURVE_COLOURS]
    for index, (agent, curve) in enumerate(curves.items()):
        colour, style = styles[index % len(styles)]
        colour = "#A9A9A9" if agent == BASE else colour
        (line,) = axes.plot(RATES, curve, style, color=colour, label=agent, linewidth=1.5)
        shown = ", ".join(f"{curve[i]:.2f} at {RATES[i]:.1f}" for i in (0, 10, 20))
        tips.add(line, f"{agent}: P(C) {shown}")
    axes.set(xlabel="opponent's rate of C", ylabel="agent's rate of C", ylim=(-0.03, 1.03))
    if len(curves) <= _MOST_NAMED:
        figure.legend(loc="outside right center", fontsize=8 if len(curves) < 14 else 5)
    return figure, tips


def planes(table: pd.DataFrame, agents: Sequence[str]) -> Drawn:
    """Cooperation of each agent over the S-T plane (R = 10, P = 0), mean over runs.

    Args:
      table: tidy rows with a column `agent`, of conditions "plane(S,T)".
      agents: in the order they are drawn.
    """
    across = min(4, len(agents))
    down = -(-len(agents) // across)
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(2.3 * across + 0.9, 2.3 * down + 0.4),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    tips = Tips()
    for axes in grid.flat[len(agents) :]:
        axes.set_visible(False)
    for axes, agent in zip(grid.flat, agents, strict=False):
        own = table[table["agent"] == agent].pivot_table("value", "temptation", "sucker")
        sucker, temptation = own.columns.to_numpy(), own.index.to_numpy()
        axes.pcolormesh(sucker, temptation, own.to_numpy(), vmin=0, vmax=1, cmap="viridis")
        axes.axhline(10, color="w", linewidth=0.8, linestyle="--")
        axes.axvline(0, color="w", linewidth=0.8, linestyle="--")
        axes.set_title(agent, fontsize=8)
        half = (sucker[1] - sucker[0]) / 2, (temptation[1] - temptation[0]) / 2
        for row, t in enumerate(temptation):
            for column, s in enumerate(sucker):
                cell = axes.fill_between(
                    [s - half[0], s + half[0]], t - half[1], t + half[1], alpha=0, linewidth=0
                )
                tips.add(cell, f"{agent}, S={s:g} T={t:g}: C {own.to_numpy()[row, column]:.1%}")
    corners = ((-9, 1, "Stag Hunt"), (4, 1, "Harmony"), (-9, 18, "Dilemma"), (4, 18, "Chicken"))
    for x, y, name in corners:
        grid[0, 0].text(x, y, name, fontsize=6, color="w")
    for row in grid:
        row[0].set_ylabel("T")
    for axes in grid[-1]:
        axes.set_xlabel("S")
    shades = plt.cm.ScalarMappable(plt.Normalize(0, 1), "viridis")
    figure.colorbar(shades, ax=grid, label="share of rounds with C")
    return figure, tips


def map_sections(rows: pd.DataFrame) -> list[Section]:
    """Fingerprints of agents that remember one round, and the S-T plane if it was played.

    Args:
      rows: tidy, exact, with a column `agent`.
    """
    sections = []
    trained = rows[rows["suite"] == "trained"]
    cells = [f"remembered/{cell}/{kind}" for cell in ("CC", "CD", "DC", "DD") for kind in KINDS]
    known = trained[trained["metric"].isin(cells)]
    # Agents that remember more have other histories too.
    more = trained["metric"].str.startswith("remembered/") & ~trained["metric"].isin(cells)
    more &= ~trained["metric"].str.startswith("remembered/-/")
    known = known[~known["agent"].isin(trained[more]["agent"])]
    known = known[known["condition"] == known["condition"].iloc[0]] if len(known) else known
    curves = {}
    for agent in agents_in(known) if len(known) else []:
        own = known[known["agent"] == agent].pivot_table("value", "run", "metric")
        if set(cells) <= set(own.columns):
            policies = own[cells].to_numpy().reshape(-1, 4, 3)
            curves[agent] = np.mean([fingerprint(policy, RATES) for policy in policies], axis=0)
    if curves:
        text = f"Exact, in {known['condition'].iloc[0].upper()} with the labels of training; mean"
        text += " over runs. Unconditional agents are flat, a reciprocal one is the diagonal."
        draw = partial(fingerprints, curves)
        sections.append(Section("fingerprints", "Fingerprints", text, draw))
    places = trained["condition"].str.extract(PLANE).astype(float)
    plane = trained.assign(sucker=places[0], temptation=places[1])
    plane = plane[(plane["metric"] == "outcomes/C") & plane["sucker"].notna()]
    if min(plane["sucker"].nunique(), plane["temptation"].nunique()) > 1:
        text = "Exact, mean over runs. R = 10, P = 0; T > 10 tempts, S < 0 frightens."
        draw = partial(planes, plane, agents_in(plane))
        heading = "Cooperation over the S-T plane"
        sections.append(Section("plane", heading, text, draw))
    return sections
