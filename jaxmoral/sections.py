"""Which figures a set of runs can fill: the counterparts of those in arXiv 2410.01639."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from jaxmoral import figures
from jaxmoral.figures import BASE, Drawn
from jaxmoral.metrics import ACTION_TYPES
from jaxmoral.prompts import TABLE_ORDERS
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
        for opponent in OPPONENTS
    }
    sections = []

    def types(name: str, heading: str, caption: str, panels: Mapping[str, Sequence[Run]]) -> None:
        if panels:
            draw = lambda: figures.training_types(panels)
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
        table = by_title([run for run in tabular if run.config.env.opponent == "tit-for-tat"])
        text = "Mean reward by update, scaled as in the paper; bands are 95 % intervals over runs."
        draw = lambda: figures.reward_curves(lines, table)
        sections.append(Section("fig12-reward", "Reward during training (Fig. 12)", text, draw))

    if swapped:
        panels = {}
        for title, found in by_title(swapped).items():
            panels[f"{title}, labels as usual"] = by_title(against["tit-for-tat"]).get(title, [])
            panels[f"{title}, labels swapped"] = found
        panels = {title: found for title, found in panels.items() if found}
        types("fig13-swapped", "The control with swapped labels (Fig. 13)", caption, panels)

    others = [opponent for opponent in OPPONENTS if against[opponent]]
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
    first = table["run"].iloc[0]
    table = table[(table["policy"] == "tuned") | (table["run"] == first)]
    return table.assign(agent=table["title"].where(table["policy"] == "tuned", BASE))


def agents_in(table: pd.DataFrame) -> list[str]:
    """The agents of a table, in the order of the paper."""
    found = set(table["agent"])
    ordered = [agent for agent in (BASE, *TITLES) if agent in found]
    return ordered + sorted(found - set(ordered))


def evaluation_sections(table: pd.DataFrame, tabular: pd.DataFrame | None) -> list[Section]:
    """Figures 4, 5 and 15 to 25: what agents do in games and prompts they were not trained on.

    Args:
      table: exact tidy rows of evaluations against a random opponent.
      tabular: the same of tabular policies, or None.
    """
    sections: list[Section] = []

    def add(suite: str, trained_against: str, number: str, heading: str) -> None:
        rows = table[(table["suite"] == suite) & (table["trained_against"] == trained_against)]
        if rows.empty:
            return
        rows = with_agents(rows)
        models, conditions = agents_in(rows), list(dict.fromkeys(rows["condition"]))
        name = f"fig{number}-{suite}-{trained_against}"
        main = suite == "labels" and trained_against == "tit-for-tat"
        alone = None
        if main and tabular is not None and not tabular.empty:
            alone = with_agents(tabular[tabular["trained_against"] == trained_against])
        marks = FIGURE_4 if main else None
        text = "Mean over runs with 95 % intervals, exact, against a random opponent."
        draw = lambda: figures.regrets(rows, models, conditions, marks, alone)
        sections.append(Section(f"{name}-regret", f"Moral regret, {heading}", text, draw))
        types = lambda: figures.stacked_bars(
            rows,
            models,
            conditions,
            TYPES,
            figures.TYPE_COLOURS,
            "agent's action |\nopponent's previous",
        )
        sections.append(Section(f"{name}-actions", f"Actions, {heading}", text, types))

    add("labels", "tit-for-tat", "4-5", "labels never seen in training (Fig. 4 and 5)")
    add("labels", "learner", "15-16", "agents trained against a learner (Fig. 15 and 16)")
    add("trained", "tit-for-tat", "20", "the labels of training (Fig. 20)")
    add("swapped", "tit-for-tat", "21", "labels that have changed places (Fig. 21)")

    against = table[table["trained_against"] == "tit-for-tat"]
    orders = against[against["suite"] == "orders"]
    if not orders.empty:
        rows = with_agents(orders)
        rows = rows[rows["labels"] != rows["trained_labels"]]
        averaged = rows.assign(condition=rows["table_order"])
        keys = ["run", "agent", "condition", "metric"]
        averaged = averaged.groupby(keys, sort=False, as_index=False)["value"].mean()
        models = agents_in(averaged)
        text = "Mean over the games; the order in which the payoff table names rows and columns."
        draw = lambda: figures.regrets(averaged, models, list(TABLE_ORDERS))
        heading = "The payoff table in four orders (Fig. 22 and 23)"
        sections.append(Section("fig22-orders-regret", f"{heading}: regret", text, draw))
        types = lambda: figures.stacked_bars(
            averaged,
            models,
            list(TABLE_ORDERS),
            TYPES,
            figures.TYPE_COLOURS,
            "agent's action |\nopponent's previous",
        )
        sections.append(Section("fig23-orders-actions", f"{heading}: actions", text, types))

    text = "Mean over runs, exact, against a random opponent."
    for suite, metrics, colours, number, heading in (
        ("wordings", TYPES, figures.TYPE_COLOURS, "17", "The dilemma in four wordings (Fig. 17)"),
        (
            "unrelated",
            OUTCOMES,
            tuple(figures.OUTCOME_COLOURS.values()),
            "18",
            "Prompts without payoffs (Fig. 18)",
        ),
    ):
        rows = against[against["suite"] == suite]
        if rows.empty:
            continue
        named = with_agents(rows)

        def draw(named=named, metrics=metrics, colours=colours) -> Drawn:
            conditions = list(dict.fromkeys(named["condition"]))
            title = "answer" if metrics is OUTCOMES else "agent's action |\nopponent's previous"
            return figures.stacked_bars(
                named, agents_in(named), conditions, metrics, colours, title
            )

        sections.append(Section(f"fig{number}-{suite}", heading, text, draw))

    ipd = against[(against["suite"] == "labels") & (against["condition"] == "ipd")]
    bare = against[against["condition"] == "action+game+state"]
    bare = bare[bare["suite"] == "unrelated"]
    if not ipd.empty and not bare.empty:
        panels = {"Prisoner's Dilemma": with_agents(ipd), "without payoffs": with_agents(bare)}
        models = agents_in(panels["Prisoner's Dilemma"])
        draw = lambda: figures.reciprocity(panels, models)
        text += " Dashed: chance. States are the true ones, the prompt's."
        sections.append(Section("fig19-reciprocity", "Reciprocity (Fig. 19)", text, draw))

    personas = table[(table["suite"] == "personas") & (table["policy"] == "base")]
    if not personas.empty:
        rows = personas[personas["run"] == personas["run"].iloc[0]]
        rows = rows[rows["wording"] == "structured"]
        plain = with_agents(table[(table["suite"] == "labels") & (table["policy"] == "base")])
        both = pd.concat([plain, rows.assign(agent=BASE + ", " + rows["persona"] + " persona")])
        both = both.assign(condition=both["game"])
        models, games = list(dict.fromkeys(both["agent"])), list(dict.fromkeys(both["game"]))
        draw = lambda: figures.regrets(both, models, games)
        text = "The base model behind a persona's text, exact, against a random opponent."
        sections.append(Section("fig25-personas", "Moral personas (Fig. 25)", text, draw))
    return sections
