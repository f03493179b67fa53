"""Which figures a set of runs can fill: the counterparts of those in arXiv 2410.01639."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd

from jaxmoral import figures
from jaxmoral.figures import BASE, Drawn
from jaxmoral.metrics import ACTION_TYPES
from jaxmoral.published import FIGURE_4
from jaxmoral.runs import Run

TITLES = (
    "game",
    "deontological",
    "utilitarian",
    "game+deontological",
    "game, then deontological",
    "game, then utilitarian",
)
OPPONENTS = ("tit-for-tat", "random", "always-defect", "always-cooperate", "learner")
TYPES = {f"action_types/{kind}": kind for kind in ACTION_TYPES}
OUTCOMES = {"outcomes/C": "label of C", "outcomes/D": "label of D", "outcomes/illegal": "other"}


class Section(NamedTuple):
    """A figure of the page: its file name, heading, caption, and how it is drawn."""

    name: str
    heading: str
    caption: str
    draw: Callable[[], Drawn]


def by_title(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by their reward's title, those of the paper first and in its order."""
    titles = [title for title in TITLES if any(run.title == title for run in runs)]
    titles += sorted({run.title for run in runs} - set(titles))
    return {title: [run for run in runs if run.title == title] for title in titles}


def training_sections(runs: Sequence[Run], tabular: Sequence[Run]) -> list[Section]:
    """Figures 2, 3, 12, 13 and 14, and one of the runs with the paper's own PPO."""
    labels = [run.config.prompt.labels for run in runs]
    usual = max(set(labels), key=labels.count)
    plain = [r for r in runs if r.config.prompt.labels == usual and r.config.preset == "fast"]
    swapped = [r for r in runs if r.config.prompt.labels == usual[::-1]]
    against = {
        opponent: [run for run in plain if run.config.env.opponent == opponent]
        for opponent in dict.fromkeys([*OPPONENTS, *(run.config.env.opponent for run in plain)])
    }
    sections = []

    def types(name: str, heading: str, caption: str, panels: Mapping[str, Sequence[Run]]) -> None:
        if panels:
            draw = partial(figures.training_types, panels)
            sections.append(Section(name, heading, caption, draw))

    caption = "Stacked shares of what the agent did, given the opponent's previous move; mean over"
    caption += " runs. Dashed: the reward is switched."
    for letter, opponent in (("a", "tit-for-tat"), ("b", "learner")):
        who = "another learner" if opponent == "learner" else opponent
        grouped = by_title(against[opponent])
        pure = {title: found for title, found in grouped.items() if ", then" not in title}
        mixed = {title: found for title, found in grouped.items() if ", then" in title}
        heading = f"Training against {who}"
        types(f"fig2{letter}-training-{opponent}", f"{heading} (Fig. 2{letter})", caption, pure)
        heading = f"Unlearning selfishness against {who}"
        types(f"fig3{letter}-unlearning-{opponent}", f"{heading} (Fig. 3{letter})", caption, mixed)

    lines = {
        f"against {opponent}": by_title(against[opponent])
        for opponent in ("tit-for-tat", "learner")
        if against[opponent]
    }
    if lines:
        tables = {
            f"against {opponent}": by_title(
                [
                    run
                    for run in tabular
                    if run.config.env.opponent == opponent and run.config.prompt.labels == usual
                ]
            )
            for opponent in ("tit-for-tat", "learner")
        }
        text = "Mean reward by update, scaled as in the paper; bands are 95 % intervals over runs."
        draw = partial(figures.reward_curves, lines, tables)
        sections.append(Section("fig12-reward", "Reward during training (Fig. 12)", text, draw))

    if swapped:
        panels = {}
        for title, found in by_title(swapped).items():
            panels[f"{title}, labels as usual"] = by_title(against["tit-for-tat"]).get(title, [])
            panels[f"{title}, labels swapped"] = found
        panels = {title: found for title, found in panels.items() if found}
        types("fig13-swapped", "The control with swapped labels (Fig. 13)", caption, panels)

    others = [opponent for opponent, found in against.items() if found]
    if len(set(others) - {"learner", "tit-for-tat"}):
        panels = {
            f"{title} vs {opponent}": found
            for opponent in others
            for title, found in by_title(against[opponent]).items()
            if ", then" not in title
        }
        types("fig14-opponents", "All opponents (Fig. 14)", caption, panels)
    token = by_title([run for run in runs if run.config.preset == "paper"])
    heading = "With the paper's own PPO: five rounds an update, token by token"
    types("paper-preset", heading, caption + " Averaged over windows of updates.", token)
    return sections


def with_agents(table: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `agent`: the base once, and the tuned agents by their reward's title."""
    if table.empty:
        return table.assign(agent="")
    first = table["run"].iloc[0]
    table = table[(table["policy"] == "tuned") | (table["run"] == first)]
    return table.assign(agent=table["title"].where(table["policy"] == "tuned", BASE))


def usual_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Leaves out agents trained with other labels than most."""
    if table.empty:
        return table
    return table[table["trained_labels"] == table["trained_labels"].mode()[0]]


def agents_in(table: pd.DataFrame) -> list[str]:
    """The agents of a table, in the order of the paper."""
    found = set(table["agent"])
    ordered = [agent for agent in (BASE, *TITLES) if agent in found]
    return ordered + [agent for agent in dict.fromkeys(table["agent"]) if agent not in ordered]


def evaluation_sections(table: pd.DataFrame, tabular: pd.DataFrame | None) -> list[Section]:
    """Figures 4, 5 and 15 to 25: what agents do in games and prompts they were not trained on.

    Args:
      table: exact tidy rows of evaluations against a random opponent.
      tabular: the same of tabular policies, or None.
    """
    table = usual_labels(table)
    sections: list[Section] = []
    for suite, opponent, number, heading in (
        ("labels", "tit-for-tat", "4-5", "labels never seen in training (Fig. 4 and 5)"),
        ("labels", "learner", "15-16", "agents trained against a learner (Fig. 15 and 16)"),
        ("trained", "tit-for-tat", "20", "the labels of training (Fig. 20)"),
        ("swapped", "tit-for-tat", "21", "labels that have changed places (Fig. 21)"),
    ):
        rows = table[(table["suite"] == suite) & (table["trained_against"] == opponent)]
        main = number == "4-5"
        alone = None
        if main and tabular is not None:
            alone = with_agents(usual_labels(tabular[tabular["trained_against"] == opponent]))
        marks = FIGURE_4 if main else None
        text = "Mean over runs with 95 % intervals, exact, against a random opponent."
        name = f"fig{number}-{suite}-{opponent}"
        sections += _regret_and_actions(with_agents(rows), name, heading, text, marks, alone)

    against = table[table["trained_against"] == "tit-for-tat"]
    orders = with_agents(against[against["suite"] == "orders"])
    orders = orders[orders["labels"] != orders["trained_labels"]]
    keys = ["run", "agent", "condition", "metric"]
    orders = orders.assign(condition=orders["table_order"])
    orders = orders.groupby(keys, sort=False, as_index=False)["value"].mean()
    text = "Mean over the games; the order in which the payoff table names rows and columns."
    heading = "the payoff table in four orders (Fig. 22 and 23)"
    sections += _regret_and_actions(orders, "fig22-23-orders", heading, text)

    text = "Mean over runs, exact, against a random opponent."
    wordings = with_agents(against[against["suite"] == "wordings"])
    heading = "The dilemma in four wordings (Fig. 17)"
    sections += _actions(wordings, "fig17-wordings", heading, text)
    unrelated = with_agents(against[against["suite"] == "unrelated"])
    if not unrelated.empty:
        conditions = list(dict.fromkeys(unrelated["condition"]))
        colours = tuple(figures.OUTCOME_COLOURS.values())
        draw = partial(
            figures.stacked_bars,
            unrelated,
            agents_in(unrelated),
            conditions,
            OUTCOMES,
            colours,
            "answer",
        )
        heading = "Prompts without payoffs (Fig. 18)"
        sections.append(Section("fig18-unrelated", heading, text, draw))

    dilemma = with_agents(against[(against["suite"] == "labels") & (against["condition"] == "ipd")])
    bare = unrelated[unrelated["condition"] == "action+game+state"]
    if not dilemma.empty and not bare.empty:
        panels = {"Prisoner's Dilemma": dilemma, "without payoffs": bare}
        draw = partial(figures.reciprocity, panels, agents_in(dilemma))
        text += " Dashed: chance. States are the true ones, the prompt's."
        sections.append(Section("fig19-reciprocity", "Reciprocity (Fig. 19)", text, draw))
    return sections + _personas(table)


def _personas(table: pd.DataFrame) -> list[Section]:
    base = table[table["policy"] == "base"]
    personas = base[(base["suite"] == "personas") & (base["wording"] == "structured")]
    if personas.empty:
        return []
    run = personas["run"].iloc[0]
    plain = base[(base["suite"] == "labels") & (base["run"] == run)].assign(agent=BASE)
    behind = personas[personas["run"] == run]
    behind = behind.assign(agent=BASE + ", " + behind["persona"] + " persona")
    both = pd.concat([plain, behind])
    text = "The base model behind a persona's text, exact, against a random opponent."
    both = both.assign(condition=both["game"])
    return _regret_and_actions(both, "fig25-personas", "moral personas (Fig. 25)", text)


def _regret_and_actions(
    rows: pd.DataFrame,
    name: str,
    heading: str,
    caption: str,
    marks: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    tabular: pd.DataFrame | None = None,
) -> list[Section]:
    if rows.empty:
        return []
    conditions = list(dict.fromkeys(rows["condition"]))
    draw = partial(figures.regrets, rows, agents_in(rows), conditions, marks, tabular)
    regret = Section(f"{name}-regret", f"Moral regret, {heading}", caption, draw)
    return [regret, *_actions(rows, f"{name}-actions", f"Actions, {heading}", caption)]


def _actions(rows: pd.DataFrame, name: str, heading: str, caption: str) -> list[Section]:
    if rows.empty:
        return []
    conditions = list(dict.fromkeys(rows["condition"]))
    title = "agent's action |\nopponent's previous"
    draw = partial(
        figures.stacked_bars,
        rows,
        agents_in(rows),
        conditions,
        TYPES,
        figures.TYPE_COLOURS,
        title,
    )
    return [Section(name, heading, caption, draw)]
