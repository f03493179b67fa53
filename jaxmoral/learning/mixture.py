"""A mixture: conditions from which every update draws, so that an agent learns no single label.

A condition is a game and how it is put into words. What the configuration's `mixture` leaves out
has the one value it has anyway, so a run without a mixture is a mixture of one condition. Of a
resolved configuration `env.game` and `prompt` name the first of the conditions.
"""

import itertools
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmoral.config import Config
from jaxmoral.errors import UserError, telling
from jaxmoral.language import prompts
from jaxmoral.language.novelty import Seen
from jaxmoral.language.prompts import Condition, Presentation, check_labels
from jaxmoral.learning.lookup import LEARNER, find_games, training_game
from jaxmoral.learning.whom import meets_agents
from jaxmoral.world.games import Game, draw_payoffs, mirror
from jaxmoral.world.memory import NUM_ORDERS

# Names of what labels are drawn from, and the files that hold it.
LISTS = {"words": ("labels.txt",), "labels": ("labels.txt", "longer_labels.txt")}
_MOST = {"words": 250, "labels": 300}  # pairs that can be told apart, whatever the seed
_DRAWN = re.compile(rf"({'|'.join(LISTS)})\((\d{{1,4}})\)")
_DRAWS, _PAIRS = 1, 2  # the third number that seeds a stream, which keeps them apart


class Choice(NamedTuple):
    """One value of each axis; None stands for what the agent is shown anyway."""

    game: Game
    labels: tuple[str, str] | None
    wording: str | None
    persona: str | None
    table_order: str | None

    @property
    def words(self) -> dict[str, Any]:
        """The values chosen but for the game, by name."""
        return {k: v for k, v in self._asdict().items() if k != "game" and v is not None}

    def shown(self, presentation: Presentation) -> Presentation:
        """The presentation with the values chosen."""
        return presentation._replace(**self.words)

    @property
    def name(self) -> str:
        """The values chosen, in a few words."""
        parts = [
            self.game.name,
            "/".join(self.labels or ()),
            *(value and value.split("\n")[0][:20] for value in self[2:]),
        ]
        return " ".join(filter(None, parts))


@cache
def kinds_of_labels(name: str) -> tuple[tuple[str, ...], ...]:
    """What pairs of a list are drawn from, by kind: words, letters, names, other languages, ..."""
    folder, kinds = Path(prompts.__file__).parent, []
    for file in LISTS[name]:
        text = (folder / file).read_text(encoding="utf-8")
        _, *found = text.split("\n\n")  # the first lines say what the file is for
        kinds += found
    return tuple(tuple(kind.splitlines()[1:]) for kind in kinds)


def label_pairs(config: Config) -> list[tuple[str, str]] | None:
    """The mixture's labels, spelled out; None if it has none.

    Raises:
      UserError: two labels of a pair cannot be told apart, or there are not so many words.
    """
    labels = config.mixture.labels
    if labels is None:
        return None
    if isinstance(labels, str):
        pairs = _drawn_pairs(labels, config.seed)
    else:
        pairs = [check_labels(pair, "mixture.labels") for pair in labels]
    if config.mixture.both_ways:
        pairs = [way for first, second in pairs for way in ((first, second), (second, first))]
    return list(dict.fromkeys(pairs))


def _drawn_pairs(asked: str, seed: int) -> list[tuple[str, str]]:
    """The pairs of "words(n)" or "labels(n)"."""
    match = _DRAWN.fullmatch(asked)
    if not match or not 0 < int(match[2]) <= _MOST[match[1]]:
        known = " or ".join(f"{name}(n) with n from 1 to {most}" for name, most in _MOST.items())
        raise UserError(f"mixture.labels: {asked!r} is neither a list of pairs nor {known}")
    return _shuffled_pairs(match[1], seed)[: int(match[2])]


def _shuffled_pairs(name: str, seed: int) -> list[tuple[str, str]]:
    """All pairs of a list that a seed makes, of every kind in turn as long as there are some."""
    random = np.random.default_rng([seed, 0, _PAIRS])
    kinds = []
    for known in kinds_of_labels(name):
        order = random.permutation(len(known))
        pairs = [(known[a], known[b]) for a, b in order[: len(order) // 2 * 2].reshape(-1, 2)]
        # "sea" and "seal" could not be told apart.
        kinds.append([(a, b) for a, b in pairs if not (a.startswith(b) or b.startswith(a))])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
    return [pair for pair in turns if pair is not None]


def seen_labels(config: Config) -> list[tuple[str, str]]:
    """The pairs that training draws from."""
    return label_pairs(config) or [config.prompt.labels]


def labels_in_words(config: Config) -> str:
    """A mixture's labels, whatever the seed drew: "words(200), both ways"."""
    mixture = config.mixture
    told = mixture.labels or ()
    if not isinstance(told, str):
        pairs = [tuple(pair) for pair in told]
        drawn = [n for n in LISTS if _shuffled_pairs(n, config.seed)[: len(pairs)] == pairs]
        told = f"{drawn[0]}({len(pairs)})" if drawn else " ".join(map("/".join, pairs))
    return told + (", both ways" if mixture.both_ways else "")


def axes(config: Config) -> tuple[Sequence, ...]:
    """The mixture's values by field of `Choice`.

    Raises:
      UserError: a name is unknown, a game is for another number of players, or labels collide.
    """
    mixture, own = config.mixture, training_game(config)
    games: Sequence[Game] = [own]
    if mixture.games is not None:
        with telling("mixture.games", "game"):
            games = find_games(config, mixture.games)
        for game in games:
            if game.num_players != own.num_players:
                raise UserError(
                    f"mixture.games: {game.name} has {game.num_players} players, env.game ="
                    f" {own.name} has {own.num_players}; take games of as many"
                )
    return (
        games,
        label_pairs(config) or [None],
        mixture.wordings or [None],
        mixture.personas or [None],
        mixture.table_orders or [None],
    )


def num_choices(config: Config) -> int:
    """How many conditions the mixture holds."""
    return math.prod(map(len, axes(config)))


def every_condition(config: Config, presentation: Presentation) -> list[Condition]:
    """All that learners and agents they meet can be shown, but for drawn payoffs."""
    choices = [Choice(*values) for values in itertools.product(*axes(config))]
    conditions = [Condition(choice.game, choice.shown(presentation)) for choice in choices]
    if meets_agents(config):
        conditions += [c._replace(game=mirror(c.game)) for c in conditions]
    return list({condition.key: condition for condition in conditions}.values())


def without_points(config: Config, wording: str) -> list[str]:
    """The wordings whose prompts are the same in all of the mixture's games.

    Args:
      config: of the run.
      wording: where the mixture has none.
    """
    games, _, wordings, *_ = axes(config)
    shown = [one or wording for one in wordings] if len(games) > 1 else []
    return [one for one in shown if not prompts.shows_points(games[0], one)]


def drawn(config: Config, update: int) -> list[Choice]:
    """The conditions of an update: different ones, all alike in their chance."""
    values = axes(config)
    sizes = [len(axis) for axis in values]
    total, count = math.prod(sizes), config.mixture.conditions
    chosen = [0]
    if total > 1:
        random = np.random.default_rng([config.seed, update, _DRAWS])
        chosen = random.choice(total, count, replace=False).tolist()
    places = np.stack(np.unravel_index(chosen, sizes), axis=1)
    return [Choice(*(axis[at] for axis, at in zip(values, row, strict=True))) for row in places]


def player_conditions(
    config: Config, presentation: Presentation, update: int = 0
) -> list[list[Condition]]:
    """What each learning player is shown in an update: conditions, payoffs drawn if asked for."""
    env, conditions = config.env, []
    random = np.random.default_rng([config.seed, update])
    for choice in drawn(config, update):
        games = [choice.game]
        if env.payoff_draws:
            games = [
                draw_payoffs(random, choice.game, *env.payoff_range)
                for _ in range(env.payoff_draws)
            ]
        conditions += [Condition(game, choice.shown(presentation)) for game in games]
    if env.opponent == LEARNER:
        other = [condition._replace(game=mirror(condition.game)) for condition in conditions]
        return [conditions, other]
    return [conditions]


def seen_in_training(config: Config, presentation: Presentation) -> Seen:
    """All that training draws from, axis by axis."""
    games, labels, wordings, personas, table_orders = axes(config)
    own = lambda values, value: tuple(value if v is None else v for v in values)
    return Seen(
        games=tuple(games),
        labels=own(labels, presentation.labels),
        wordings=own(wordings, presentation.wording),
        personas=own(personas, presentation.persona),
        table_orders=own(table_orders, presentation.table_order),
    )


def player_games(config: Config, update: int = 0) -> list[list[Game]]:
    """The training games as each learning player sees them; drawn anew each update if asked for."""
    return [
        [condition.game for condition in conditions]
        for conditions in player_conditions(config, Presentation(), update)
    ]


def presentation_with(config: Config, labels: tuple[str, str]) -> Presentation:
    """The configuration's presentation with these labels.

    Raises:
      UserError: no prompt can be made of it, or more than the configuration allows.
    """
    prompt, env = config.prompt, config.env
    presentation = prompts.check(
        Presentation(
            wording=prompt.wording,
            persona=prompt.persona,
            labels=labels,
            table_order=prompt.table_order,
            memory=env.memory,
            blank=env.blank_start,
        )
    )
    game = training_game(config)
    histories = len(presentation.remembers(game).histories)
    draws = max(1, env.payoff_draws) * config.mixture.conditions
    total = histories * NUM_ORDERS * draws
    if total > env.max_prompts:
        raise UserError(
            f"env.memory: {env.memory} remembered rounds of {game.name} make {total:,} prompts,"
            f" more than env.max_prompts = {env.max_prompts:,}; remember fewer rounds, lower"
            " env.payoff_draws or mixture.conditions, or raise env.max_prompts"
        )
    return presentation
