"""Evaluation of one or several policies in many conditions at once.

Conditions are chosen by the configuration's suites and games, measured by the program in
`protocols`, and told as nested dictionaries: all measures (`jaxmoral.measuring.measures`) are sums
over the frequencies that the program returns.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.devices.mesh import Layout, place
from jaxmoral.errors import UserError
from jaxmoral.language.novelty import mark
from jaxmoral.language.prompts import Condition, Presentation
from jaxmoral.language.suites import Subject, conditions, is_redrawn
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.lookup import find_games, find_opponent, training_game
from jaxmoral.learning.mixture import presentation_with, seen_in_training
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import Which
from jaxmoral.learning.tabular_policy import TablePrompter
from jaxmoral.learning.whom import met_by
from jaxmoral.measuring import thoughts
from jaxmoral.measuring.described import describe_policy, reward_tables, xi_of
from jaxmoral.measuring.generalisation import SUITE
from jaxmoral.measuring.protocols import Measured, Protocols, Tested, draw_paper, measure
from jaxmoral.measuring.source import Source, load_source
from jaxmoral.models.sizes import products
from jaxmoral.world.games import SETS, Game
from jaxmoral.world.machines import Opponent, stack

PyTree = Any
Key = tuple  # of a condition
MAX_SHAPES = 5
_WORTH = 0.05  # of all the work, which a shape must save to be worth its compilation
KEY_TAG = 2**32 - 1  # training folds the numbers of its updates, below 2**31, into the same key


def evaluate_agent(
    source: Source,
    games: Sequence[str] | None = None,
    opponents: Sequence[str] | None = None,
    suites: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    update: Which = None,
    *,
    thinking: int | None = None,
    thoughts_of: Path | str | None = None,
) -> dict[str, Any]:
    """Evaluates a trained agent beside its base in many conditions.

    Args:
      source: what `train_agent` returned, a run folder, or a configuration whose untrained model is
        evaluated alone (or beside its `lora.adapter`).
      games, opponents, suites, protocols: see `jaxmoral.config.EvaluationConfig`; by default what
        the configuration says.
      update: of a run folder's checkpoint, "best" for that of the highest exact expected reward
        (see `jaxmoral.learning.score`), None for the newest.
      thinking: the most tokens of a thought, if not those of training.
      thoughts_of: the folder of another run, whose thoughts the agent is given as well in the suite
        `thoughts`.

    Returns:
      A dictionary for JSON; see `describe`. "update" is the checkpoint's, None without training.

    Raises:
      UserError: there is no such run, game, opponent or suite, the checkpoint cannot be used, or
        the model cannot run a suite.

    >>> untrained = jaxmoral.parse({"model": {"source": "tabular"}})
    >>> list(jaxmoral.evaluate_agent(untrained, ["ipd", "ish"])["suites"]["trained"])
    ['ipd', 'ish']
    """
    config, agent, trained, made = load_source(source, update)
    chosen = {
        "games": games,
        "opponents": opponents,
        "suites": suites,
        "protocols": protocols,
        "thinking": thinking,
    }
    config = configs.with_evaluation(config, chosen)
    resolve(config)
    agent = thoughts.rethought(agent, config)
    tested = chosen_conditions(config, agent.presentation)
    if SUITE in tested:
        config = _with_met(config, [c.game for c in tested[SUITE].values()])
    _check_fit(agent, config, chosen=tested)
    policies = {"base": agent.policy.reference_parameters()}
    policies |= {} if trained is None else {"tuned": trained}
    if thoughts_of is not None:
        if thoughts.SUITE not in tested:
            raise UserError(
                f"--thoughts-of: only the suite {thoughts.SUITE} exchanges thoughts; add it to"
                " --suites"
            )
        policies["another"] = thoughts.other_thinker(Path(thoughts_of), agent)
    unique = {c.key: c for suite in tested.values() for c in suite.values()}
    measured = _measure_all(config, agent, trained=trained, unique=list(unique.values()))
    evaluation = {"update": made} | describe(config, tested, measured=measured)
    for name, condition in tested.get(thoughts.SUITE, {}).items():
        key = jax.random.fold_in(jax.random.key(config.seed), KEY_TAG)
        studied = thoughts.study(agent, condition, policies, key)
        evaluation["suites"][thoughts.SUITE][name]["thoughts"] = studied
    return evaluation


def _with_met(config: Config, games: Sequence[Game]) -> Config:
    """Tested against whom training met, too, so that it is known which opponents are new.

    That is as far as they are machines in all the games.
    """
    tests = config.evaluation
    met = [whom.name for whom in met_by(config) if _plays(config, whom.name, games)]
    every = tuple(dict.fromkeys([*tests.opponents, *met]))
    return dataclasses.replace(config, evaluation=dataclasses.replace(tests, opponents=every))


def _plays(config: Config, name: str, games: Sequence[Game]) -> bool:
    try:
        for game in games:
            find_opponent(config, name, game)
    except UserError:
        return False
    return True


def _check_fit(
    agent: Agent, config: Config, *, chosen: Mapping[str, Mapping[str, Condition]]
) -> None:
    """Raises UserError if the agent cannot be measured by a protocol or in a suite."""
    memory = agent.presentation.remembers(training_game(config))
    usual = config.env.memory == 1 and not config.env.blank_start and memory.num_moves == 2
    if "paper" in config.evaluation.protocols and not usual:
        raise UserError(
            "evaluation.protocols: paper needs two players, env.memory 1 and env.blank_start false"
        )
    if agent.model is None and set(chosen) != {"trained"}:
        raise UserError(
            "evaluation.suites: a tabular policy has no language; only the suite 'trained' fits it"
        )
    if thoughts.SUITE in chosen:
        thoughts.check_thinks(agent)
    for name, suite in chosen.items():
        if any(condition.game.num_players != memory.num_moves for condition in suite.values()):
            raise UserError(
                f"evaluation.suites: {name} is about two players, the agent meets several"
            )


def chosen_conditions(
    config: Config, presentation: Presentation
) -> dict[str, dict[str, Condition]]:
    """The conditions of the configuration's suites, by suite and name."""
    settings = config.evaluation
    subject = Subject(
        shown=presentation,
        unseen=settings.labels,
        games=_fitting_games(config),
        seen=seen_in_training(config, presentation),
    )
    return conditions(settings.suites, subject)


def described(condition: Condition) -> dict[str, Any]:
    """What an evaluation says of a condition."""
    shown = condition.presentation._asdict() | {"labels": list(condition.presentation.labels)}
    return {"game": condition.game.name, **shown}


def _fitting_games(config: Config) -> list[Game]:
    """The chosen games; of sets those with as many players as the agent's, which "all" includes."""
    names, trained = config.evaluation.games, training_game(config)
    found, num_players = [], trained.num_players
    for name in names:
        for game in [*find_games(config, [name]), *([trained] if name == "all" else [])]:
            if game.num_players == num_players:
                found.append(game)
            elif name not in SETS:
                raise UserError(
                    f"evaluation.games: {name} has {game.num_players} players, the agent was made"
                    f" for {num_players}"
                )
    if not found:
        raise UserError(
            f"evaluation.games: {', '.join(names)} has no game of {num_players} players, which the"
            " agent was made for; name one"
        )
    return list({game.name: game for game in found}.values())


def _measure_all(
    config: Config, agent: Agent, *, trained: PyTree | None, unique: Sequence[Condition]
) -> dict[Key, Measured]:
    """Measures conditions, those of similar size in one program."""
    settings = config.evaluation
    protocols = Protocols(
        remembers=agent.presentation.memory_key(unique[0].game),
        rounds=settings.rounds,
        episodes=settings.episodes if "sampled" in settings.protocols else None,
    )
    everywhere = agent.layout.sharding()
    prepare = _jit_prepare(agent.policy, agent.layout)
    trainables, key = prepare(config.seed, *([] if trained is None else [trained]))
    draws = place(draw_paper() if "paper" in settings.protocols else (), everywhere)
    found = {}
    for group in group_by_size(_sizes(agent, unique), MAX_SHAPES):
        machines = opponents_of(config, [unique[index].game for index in group])
        tested = Tested(
            inputs=place(agent.prompter.pack([[unique[index]] for index in group]), everywhere),
            opponents=place(machines, everywhere),
            frozen=agent.frozen,
            trainables=trainables,
            key=key,
            paper_draws=draws,
        )
        measured = measure(agent.policy, tested, protocols=protocols, layout=agent.layout)
        measured = jax.device_get(measured)
        for at, index in enumerate(group):
            found[unique[index].key] = jax.tree.map(itemgetter(at), measured)
    return found


@functools.lru_cache(maxsize=32)
def _jit_prepare(policy: Policy, layout: Layout) -> Callable[..., tuple[PyTree, jax.Array]]:
    """The program from a seed and perhaps tuned parameters to all parameters and a PRNG key."""

    def prepare(seed, *trained):
        init_key, key = jax.random.split(jax.random.key(seed))
        policies = [policy.init(init_key), *trained]
        key = jax.random.fold_in(key, KEY_TAG)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *policies), key

    return jax.jit(prepare, out_shardings=layout.sharding())


def opponents_of(config: Config, games: Sequence[Game]) -> Opponent:
    """Every chosen opponent in every game, stacked as `[num_games, num_opponents]`."""
    names = config.evaluation.opponents
    flat = stack([find_opponent(config, name, game) for game in games for name in names])
    return jax.tree.map(lambda x: x.reshape(len(games), len(names), *x.shape[1:]), flat)


def _sizes(agent: Agent, conditions: Sequence[Condition]) -> list[tuple[float, float]]:
    """What each costs: how many products its nodes take in the layers, and its rows of logits."""
    prompter = agent.prompter
    if agent.model is None or isinstance(prompter, TablePrompter):
        return [(1, 0)] * len(conditions)
    found: list[tuple[float, float]] = []
    for condition in conditions:
        room = prompter.room([condition])
        prompts = condition.presentation.remembers(condition.game).num_prompts
        nodes = room.nodes * prompts / room.prompts
        found.append(products(agent.model.config, nodes, prompts * room.responses.prefixes))
    return found


def group_by_size(sizes: Sequence[Sequence[float]], max_groups: int) -> list[list[int]]:
    """Splits indices into few groups, so that padding each in all its sizes costs little.

    Args:
      sizes: what each costs, in several parts; a group's members cost the largest of each part.
      max_groups: the most there may be.
    """

    def cost(group: Sequence[int]) -> float:
        return len(group) * sum(map(max, zip(*(sizes[index] for index in group), strict=True)))

    order = sorted(range(len(sizes)), key=lambda index: tuple(sizes[index])[::-1])
    groups = [list(alike) for _, alike in itertools.groupby(order, key=lambda i: tuple(sizes[i]))]
    total = sum(map(cost, groups))
    while len(groups) > 1:
        costs = list(map(cost, groups))
        joined = [cost(one + other) for one, other in itertools.pairwise(groups)]
        added = [j - a - b for j, (a, b) in zip(joined, itertools.pairwise(costs), strict=True)]
        at = min(range(len(added)), key=added.__getitem__)
        if len(groups) <= max_groups and added[at] > _WORTH * total:
            break
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return groups


def describe(
    config: Config,
    chosen: Mapping[str, Mapping[str, Condition]],
    *,
    measured: Mapping[Key, Measured],
) -> dict[str, Any]:
    """Turns measured arrays into nested dictionaries.

    Returns:
      `{"config", "policies", "opponents", "protocols", "episodes", "rounds", "xi", "r_illegal",
      "largest_gap", "suites": {suite: {condition: {"game", "wording", "persona", "labels",
      "table_order", "novelty", "policies": {policy: {"remembered": {"CC": {"C", "D", "illegal"},
      ...}, "opponents": {opponent: {protocol: measures}}}}}}}}`; measures are those of
      `measures.describe_shares`. Remembered rounds name the agent's move first. "largest_gap" is
      the largest difference of a share between exact and sampled, or None; "config" the
      configuration without what the suites tell; "novelty" is of `language.novelty.mark`. Of an
      agent that samples thoughts there are standard errors too: "remembered_error", and a protocol
      "error" with those of "exact".
    """
    settings = config.evaluation
    some = next(iter(measured.values()))
    names = ["base", "tuned"][: len(some.policies)]
    shown = presentation_with(config, config.prompt.labels)
    seen = seen_in_training(config, shown)
    made = configs.to_dict(config)
    for key in ("suites", "games", "opponents", "protocols"):
        del made["evaluation"][key]
    gap = None
    if some.sampled is not None:
        gap = max(float(np.max(abs(m.exact - m.sampled))) for m in measured.values())
    suites: dict[str, dict[str, Any]] = {suite: {} for suite in chosen}
    for suite, named in chosen.items():
        for name, condition in named.items():
            tables = reward_tables(config, condition.game)
            again = is_redrawn(suite, condition, shown)
            found = {}
            for index, policy in enumerate(names):
                own = jax.tree.map(itemgetter(index), measured[condition.key])
                found[policy] = describe_policy(
                    config, condition, measured=own, tables=tables, redrawn=again
                )
            new = {"novelty": mark(condition, seen)}
            suites[suite][name] = described(condition) | new | {"policies": found}
    return {
        "config": made,
        "policies": names,
        "opponents": list(settings.opponents),
        "protocols": list(settings.protocols),
        "episodes": settings.episodes,
        "rounds": settings.rounds,
        "xi": xi_of(config),
        "r_illegal": config.reward.illegal,
        "largest_gap": gap,
        "suites": suites,
    }
