"""Which figures a set of runs can fill: the counterparts of those in arXiv 2410.01639."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmoral.errors import UserError
from jaxmoral.learning.metrics import ACTION_TYPES
from jaxmoral.learning.mixture import seen_labels
from jaxmoral.measuring.runs import tidy
from jaxmoral.reporting import figures
from jaxmoral.reporting.canvas import Drawn
from jaxmoral.reporting.figures import Curve
from jaxmoral.reporting.published import FIGURE_4, is_counterpart
from jaxmoral.reporting.series import Series, normalised_rewards, shown_names, tell_apart
from jaxmoral.reporting.styles import BASE, OUTCOME_COLOURS, TYPE_COLOURS

MAIN_OPPONENTS = ("tit-for-tat", "learner")
TYPES = {f"action_types/{kind}": kind for kind in ACTION_TYPES}
OUTCOMES = {"outcomes/C": "label of C", "outcomes/D": "label of D", "outcomes/illegal": "other"}
# What an untrained model's answers and their measures depend on, besides the prompt.
_BASE_KEYS = (
    "model.",
    "prompt.template",
    "prompt.thinking",
    "thinking.tokens",
    "thinking.cue",
    "thinking.stop",
    "env.memory",
    "env.blank_start",
    "reward.xi",
    "reward.illegal",
    "evaluation.",
)
_WHITE = " White: rounds without one before."
_PROMPT_COLUMNS = ["labels", "wording", "persona", "table_order"]


class Section(NamedTuple):
    """A figure of the page: its file name, heading, caption, and how it is drawn."""

    name: str
    heading: str
    caption: str
    draw: Callable[[], Drawn]


def training_sections(series: Sequence[Series], tabular: Sequence[Series]) -> list[Section]:
    """Figures 2, 3, 12, 13 and 14, and one of the runs with the paper's own PPO."""
    single = [one for one in series if one.config.mixture.labels is None]
    labels = [one.config.prompt.labels for one in single for _ in one.runs]
    usual = max(dict.fromkeys(labels), key=labels.count, default=())
    swapped = [one for one in single if one.config.prompt.labels == usual[::-1]]
    plain = [one for one in series if one not in swapped]
    fast = [one for one in plain if one.config.preset == "fast"]
    sections: list[Section] = []
    caption = "Stacked shares of what the agent did, given the opponent's previous move; mean over"
    caption += (
        " the runs of a panel, which differ in the seed only. Dashed: the reward is switched."
    )

    def types(name: str, heading: str, chosen: Sequence[Series], more: str = "") -> None:
        if chosen:
            more += _WHITE if any(one.config.env.blank_start for one in chosen) else ""
            panels = dict(zip(shown_names(chosen), (one.runs for one in chosen), strict=True))
            draw = partial(figures.training_types, panels)
            sections.append(Section(name, heading, caption + more, draw))

    changes = lambda one: one.config.reward.then is not None
    for letter, opponent in zip("ab", MAIN_OPPONENTS, strict=True):
        who = "another learner" if opponent == "learner" else opponent
        against = [one for one in fast if one.opponent == opponent]
        pure = [one for one in against if not changes(one)]
        types(f"fig2{letter}-training-{opponent}", f"Training against {who} (Fig. 2{letter})", pure)
        mixed = [one for one in against if changes(one)]
        heading = f"Unlearning selfishness against {who} (Fig. 3{letter})"
        types(f"fig3{letter}-unlearning-{opponent}", heading, mixed)
    sections += _reward_section(plain, tabular)
    if swapped:
        pairs = [pair for one in swapped for pair in (*_as_usual(one, plain), one)]
        types("fig13-swapped", "The control with swapped labels (Fig. 13)", pairs)
    if any(one.opponent not in MAIN_OPPONENTS for one in fast):
        shown = [one for one in fast if one.opponent not in MAIN_OPPONENTS or not changes(one)]
        types("fig14-opponents", "All opponents (Fig. 14)", sorted(shown, key=lambda s: s.opponent))
    token = [one for one in plain if one.config.preset == "paper"]
    heading = "With the paper's own PPO: five rounds an update, token by token"
    types("paper-preset", heading, token, " Averaged over windows of updates.")
    return sections


def _as_usual(swapped: Series, others: Sequence[Series]) -> list[Series]:
    """The series that differs from one in the order of its labels only, if there is one."""
    wanted = swapped.settings | {"prompt.labels": swapped.settings["prompt.labels"][::-1]}
    return [one for one in others if one.settings == wanted]


def _reward_section(series: Sequence[Series], tabular: Sequence[Series]) -> list[Section]:
    panels: dict[str, list[Curve]] = {}
    unknown: list[str] = []
    for one in [*series, *tabular]:
        dotted = one in tabular
        title = f"against {one.opponent}"
        title += "" if one.config.preset == "fast" else f", preset {one.config.preset}"
        if dotted and title not in panels:  # tables stand beside other agents
            continue
        try:
            values = np.array([normalised_rewards(run) for run in one.runs])
        except UserError as error:
            unknown.append(f"{one.name} ({error})")
            continue
        panels.setdefault(title, []).append(Curve(one.name, one.title, values, dotted))
    if not panels:
        return []
    text = "Mean reward by update, from the lowest (0) to the highest (1) that a round of the run's"
    text += " own game and reward can have; bands are 95 % intervals over runs."
    text += f" Left out: {'; '.join(unknown)}." if unknown else ""
    draw = partial(figures.reward_curves, panels)
    return [Section("fig12-reward", "Reward during training (Fig. 12)", text, draw)]


def tables(series: Sequence[Series]) -> pd.DataFrame:
    """Tidy rows of evaluated runs, with a column `series` of its place in the sequence."""
    frames = [tidy(one.runs).assign(series=index) for index, one in enumerate(series)]
    return pd.concat([frame for frame in frames if not frame.empty] or [pd.DataFrame()])


def with_agents(table: pd.DataFrame, series: Sequence[Series]) -> pd.DataFrame:
    """Adds columns that say whose rows these are, and leaves out repetitions of a base.

    Args:
      table: rows of `tables`, of one suite.
      series: what its column `series` counts.

    Returns:
      The rows with columns `agent` (a name in the figure), `kind` (the reward, or that of no
      fine-tuning), `place` (in its order) and `printed` (whether the paper shows such an agent).
    """
    if table.empty:
        return table.assign(agent="", kind="", place=0, printed=False)
    present = sorted(table["series"].unique())
    names = shown_names([series[index] for index in present])
    tuned = table[table["policy"] == "tuned"]
    look = lambda values: tuned["series"].map(dict(zip(present, values, strict=True)))
    tuned = tuned.assign(
        agent=look(names),
        kind=look([series[index].title for index in present]),
        place=tuned["series"] + 1,
        printed=look([is_counterpart(series[index].config) for index in present]),
    )
    return pd.concat([_base_rows(table[table["policy"] == "base"], series), tuned])


def _base_rows(table: pd.DataFrame, series: Sequence[Series]) -> pd.DataFrame:
    """Rows of untrained models, each once, named by what they differ in."""
    shown = table.groupby("condition")[_PROMPT_COLUMNS].nunique().max() > 1
    columns = ["series", *(name for name in _PROMPT_COLUMNS if shown[name])]
    kinds = table[columns].drop_duplicates()
    shaping = _BASE_KEYS + _unlike_names(series)
    told = [
        {key: v for key, v in series[index].settings.items() if key.startswith(shaping)}
        | dict(zip(columns[1:], prompt, strict=True))
        for index, *prompt in kinds.itertuples(index=False)
    ]
    distinct = list({json.dumps(one, sort_keys=True): one for one in told}.values())
    names = tell_apart(BASE, distinct)
    kinds = kinds.assign(
        agent=[names[distinct.index(one)] for one in told],
        kind=BASE,
        place=[distinct.index(one) - len(distinct) for one in told],
        printed=[is_counterpart(series[index].config, tuned=False) for index in kinds["series"]],
    )
    keys = ["agent", "suite", "condition", "opponent", "protocol", "metric"]
    return table.merge(kinds, on=columns).drop_duplicates(keys)


def _unlike_names(series: Sequence[Series]) -> tuple[str, ...]:
    """The starts of the keys of own games and opponents that are defined in several ways."""
    found: dict[str, list[Any]] = {}
    for one in series:
        for kind, own in (("games", one.config.games), ("opponents", one.config.opponents)):
            for name, made in own.items():
                found.setdefault(f"{kind}.{name}.", []).append(made)
    return tuple(start for start, made in found.items() if any(one != made[0] for one in made))


def agents_in(table: pd.DataFrame) -> list[str]:
    """The agents of a table from `with_agents`, in their order."""
    return list(dict.fromkeys(table.sort_values("place", kind="stable")["agent"]))


def _printed(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """The paper's Fig. 4 beside the agents that it has."""
    agents = rows[rows["printed"]].drop_duplicates("agent")
    return {
        regret: {
            agent: numbers[kind]
            for agent, kind in zip(agents["agent"], agents["kind"], strict=True)
            if kind in numbers
        }
        for regret, numbers in FIGURE_4.items()
    }


def evaluation_sections(
    table: pd.DataFrame,
    series: Sequence[Series],
    tabular: tuple[pd.DataFrame, Sequence[Series]],
    tested: str,
) -> list[Section]:
    """Figures 4, 5 and 15 to 25: what agents do in games and prompts they were not trained on.

    Args:
      table: exact rows of `tables`, of evaluations against one opponent.
      series: what it counts.
      tabular: the same of tabular policies beside them.
      tested: that opponent.
    """
    sections: list[Section] = []
    text = f"Mean over runs with 95 % intervals, exact, against {tested}."
    text += _WHITE if any(one.config.env.blank_start for one in series) else ""
    new, known = "labels never seen in training", "the labels of training"
    changed = "labels that have changed places"
    shown: dict[str, list[str]] = {"labels": [], "trained": [], "swapped": []}
    for suite, opponent, number, heading in (
        ("labels", "tit-for-tat", "4-5", f"{new} (Fig. 4 and 5)"),
        ("labels", "learner", "15-16", "agents trained against a learner (Fig. 15 and 16)"),
        ("trained", "tit-for-tat", "20", f"{known} (Fig. 20)"),
        ("swapped", "tit-for-tat", "21", f"{changed} (Fig. 21)"),
    ):
        chosen = (table["suite"] == suite) & (table["trained_against"] == opponent)
        rows = with_agents(table[chosen], series)
        shown[suite].append(opponent)
        name = f"fig{number}-{suite}-{opponent}"
        if number == "4-5":
            alone = tabular[0]
            if not alone.empty:
                alone = with_agents(alone[alone["trained_against"] == opponent], tabular[1])
            beside = _beside(rows, alone)
            marks = _printed(rows) if tested == "random" else None  # as in the paper
            crosses = " Crosses: the paper's, with a penalty xi of 4." if marks else ""
            sections += _regret_and_actions(rows, name, heading, text + crosses, marks, beside)
        else:
            sections += _regret_and_actions(rows, name, heading, text)
    for suite, what in (("labels", new), ("trained", known), ("swapped", changed)):
        chosen = (table["suite"] == suite) & ~table["trained_against"].isin(shown[suite])
        rows = with_agents(table[chosen], series)
        heading = f"{what}, other opponents of training"
        sections += _regret_and_actions(rows, f"{suite}-others", heading, text)

    orders = with_agents(table[table["suite"] == "orders"], series)
    own = [set(map("/".join, seen_labels(one.config))) for one in series]
    pairs = zip(orders["series"], orders["labels"], strict=True)
    orders = orders[np.array([labels not in own[index] for index, labels in pairs], bool)]
    keys = ["folder", "agent", "kind", "place", "condition", "metric"]
    orders = orders.assign(condition=orders["table_order"])
    orders = orders.groupby(keys, sort=False, as_index=False)["value"].mean()
    more = "Mean over the games, with labels never seen in training; the order in which the payoff"
    more += " table names rows and columns. "
    heading = "the payoff table in four orders (Fig. 22 and 23)"
    sections += _regret_and_actions(orders, "fig22-23-orders", heading, more + text)
    return sections + _wording_sections(table, series, tested) + _personas(table, series, text)


def _wording_sections(table: pd.DataFrame, series: Sequence[Series], tested: str) -> list[Section]:
    """Figures 17 to 19."""
    of_suite = lambda suite: with_agents(table[table["suite"] == suite], series)
    sections = []
    text = f"Mean over runs, exact, against {tested}."
    heading = "The dilemma in four wordings (Fig. 17)"
    sections += _actions(of_suite("wordings"), "fig17-wordings", heading, text)
    unrelated = of_suite("unrelated")
    if not unrelated.empty:
        conditions = list(dict.fromkeys(unrelated["condition"]))
        colours = tuple(OUTCOME_COLOURS.values())
        agents = agents_in(unrelated)
        draw = partial(
            figures.stacked_bars, unrelated, agents, conditions, OUTCOMES, colours, "answer"
        )
        heading = "Prompts without payoffs (Fig. 18)"
        sections.append(Section("fig18-unrelated", heading, text, draw))
    dilemma = of_suite("labels")
    bare = unrelated[unrelated["condition"] == "action+game+state"]
    # Only agents that were asked both, so that they have the same names.
    both = set(dilemma["series"]) & set(bare["series"]) if len(bare) else set()
    chosen = table[table["series"].isin(both)]
    dilemma = chosen[(chosen["suite"] == "labels") & (chosen["condition"] == "ipd")]
    bare = chosen[(chosen["suite"] == "unrelated") & (chosen["condition"] == "action+game+state")]
    if not dilemma.empty and not bare.empty:
        dilemma, bare = with_agents(dilemma, series), with_agents(bare, series)
        panels = {"Prisoner's Dilemma": dilemma, "without payoffs": bare}
        even = tested in ("random", "tit-for-tat")
        even &= not any(one.config.env.blank_start for one in series)
        draw = partial(figures.reciprocity, panels, agents_in(dilemma), even=even)
        text += " States are the true ones, the prompt's."
        sections.append(Section("fig19-reciprocity", "Reciprocity (Fig. 19)", text, draw))
    return sections


def _personas(table: pd.DataFrame, series: Sequence[Series], text: str) -> list[Section]:
    base = table[table["policy"] == "base"]
    behind = base[(base["suite"] == "personas") & (base["wording"] == "structured")]
    if behind.empty:
        return []
    plain = base[(base["suite"] == "labels") & base["series"].isin(behind["series"])]
    behind = with_agents(behind, series)
    behind = behind.assign(agent=behind["agent"] + ", " + behind["persona"] + " persona")
    both = pd.concat([with_agents(plain, series), behind])
    both = both.assign(condition=both["game"])
    more = "The base model behind a persona's text. "
    return _regret_and_actions(both, "fig25-personas", "moral personas (Fig. 25)", more + text)


def _beside(rows: pd.DataFrame, tabular: pd.DataFrame) -> pd.DataFrame | None:
    """Rows of tabular policies under the names of the agents that they stand beside."""
    frames = []
    if not tabular.empty:
        for agent, kind in rows[["agent", "kind"]].drop_duplicates().itertuples(index=False):
            own = tabular[tabular["kind"] == kind]
            names = [figures.tabular_name(name, kind) for name in own["agent"]]
            frames.append(own.assign(agent=agent, table=names))
    return pd.concat(frames) if frames and any(map(len, frames)) else None


def _regret_and_actions(
    rows: pd.DataFrame,
    name: str,
    heading: str,
    caption: str,
    marks: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
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
    agents = agents_in(rows)
    draw = partial(figures.stacked_bars, rows, agents, conditions, TYPES, TYPE_COLOURS, title)
    return [Section(name, heading, caption, draw)]
