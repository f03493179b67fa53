"""Evaluation of one or several policies in many conditions at once, exactly and by sampling.

One program computes every policy's table in every condition, the exact visit frequencies against
every opponent (`chain.visits`) and, where asked for, the same frequencies from sampled episodes or
by the paper's own protocol. All measures (`jaxmoral.measuring.measures`) are sums over those
frequencies.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral import config as configs
from jaxmoral.config import Config, MeshConfig
from jaxmoral.devices.mesh import Layout, constrain, map_spread, place
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition, Presentation, all_prompts
from jaxmoral.language.suites import REDRAWN, conditions
from jaxmoral.learning import ppo
from jaxmoral.learning.agent import Agent, make_agent, make_presentation, settle
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.experiment import first_states, resolve
from jaxmoral.learning.lookup import find_games, find_opponent, training_game
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.training import (
    POPULATION,
    TrainedAgent,
    member_names,
    member_state,
    population_of,
)
from jaxmoral.measuring.measures import describe_shares
from jaxmoral.world.chain import against, by_state, memory_policy, visits
from jaxmoral.world.games import SETS, Game
from jaxmoral.world.memory import Memory, history_name, make_memory
from jaxmoral.world.opponents import Opponent, get_opponent, stack
from jaxmoral.world.pairs import agent_player, machine_player, meet
from jaxmoral.world.rewards import PAPER_REWARDS, REWARDS, get_reward, reward_table
from jaxmoral.world.rollout import Draws, Environment, Trajectories, rollout
from jaxmoral.world.streams import Streams

PyTree = Any
Which = int | Literal["best"] | None  # checkpoint; None is the newest
Key = tuple  # of a condition
MAX_SHAPES = 3
PAPER_SEED, PAPER_EPISODES, PAPER_ROUNDS = 100, 10, 5
KEY_TAG = 2**32 - 1  # training folds the numbers of its updates, below 2**31, into the same key


class Measured(NamedTuple):
    """The evaluation program's output; what was not asked for is None.

    Attributes:
      policies: `[num_conditions, num_policies, num_histories, 3]` of outcomes per history.
      exact, sampled: `[num_conditions, num_policies, num_opponents, num_previous, 3, num_moves]`
        shares of rounds.
      paper: `[num_conditions, num_policies, 2 (memory is carried on, drawn anew), num_previous, 3,
        num_moves]`.
    """

    policies: Any
    exact: Any
    sampled: Any
    paper: Any


def sampled_visits(trajectories: Trajectories, memory: Memory) -> jax.Array:
    """Shares of each kind of round in a rollout, shaped like `chain.visits`."""
    shape = (memory.num_previous, 3, memory.num_moves)
    cell = trajectories.previous.astype(jnp.int32) * 3 + trajectories.outcome
    cell = cell * memory.num_moves + trajectories.other_action
    return jnp.array([jnp.mean(cell == index) for index in range(np.prod(shape))]).reshape(shape)


@partial(jax.jit, static_argnames=("policy", "settings", "remembers", "layout"))
def measure(
    policy: Policy,
    frozen: PyTree,
    inputs: PyTree,
    trainables: PyTree,
    opponents: PyTree,
    key: jax.Array,
    settings: configs.EvaluationConfig,
    remembers: tuple,
    paper_draws: Sequence[Draws],
    layout: Layout | None = None,
) -> Measured:
    """Measures policies in conditions against opponents.

    Args:
      policy: static.
      frozen: the policy's frozen arrays.
      inputs: the conditions' prompts, stacked on a leading `[num_conditions]` axis.
      trainables: parameters, stacked on a leading `[num_policies]` axis.
      opponents: `[num_conditions, num_opponents]` of them, stacked.
      key: PRNG key of the sampled episodes.
      settings: static; sizes and protocols.
      remembers: static arguments of `memory.make_memory`.
      paper_draws: from `draw_paper`.
      layout: static; what spreads the conditions.
    """
    memory = make_memory(*remembers)
    num_opponents = opponents.moves.shape[1]
    num_policies = len(jax.tree.leaves(trainables)[0])
    no_rewards = jnp.zeros((1, memory.num_previous, 3, memory.num_moves))
    pairs = list(itertools.product(range(num_policies), range(num_opponents)))
    players, others = np.array(pairs).T

    def one(xs):
        key, inputs, opponents = xs
        apply = lambda trainable: policy.apply(frozen, inputs, trainable, None).log_probs
        log_probs = jax.lax.map(apply, trainables)
        tables = jax.vmap(memory_policy)(log_probs)
        machines = jax.tree.map(lambda leaf: leaf[others], opponents)
        square = lambda shares: shares.reshape(num_policies, num_opponents, *shares.shape[1:])
        shares = lambda p, o: visits(against(memory, o), by_state(memory, p), settings.rounds)
        exact = jax.vmap(shares)(tables[players], machines)

        def play(xs):
            key, log_probs, opponent = xs
            arena = Environment(opponent, no_rewards)
            sizes = (memory, settings.episodes, settings.rounds)
            return sampled_visits(rollout(key, log_probs, arena, *sizes), memory)

        sampled = paper = None
        if "sampled" in settings.protocols:
            keys = jax.random.split(key, len(pairs))
            sampled = square(jax.lax.map(play, (keys, log_probs[players], machines)))
        if "paper" in settings.protocols:
            paper = jnp.stack([paper_visits(log_probs, draws) for draws in paper_draws], axis=1)
        return Measured(tables, square(exact), sampled, paper)

    num_conditions = len(jax.tree.leaves(inputs)[0])
    opponents = jax.tree.map(jnp.asarray, opponents)
    xs = (jax.random.split(key, num_conditions), inputs, opponents)
    return jax.tree.map(lambda x: constrain(x, layout), map_spread(one, xs, layout))


def paper_visits(log_probs: jax.Array, draws: Draws) -> jax.Array:
    """Shares of rounds by the paper's protocol (arXiv 2410.01639, section 5).

    The last policy plays against a random opponent; the others answer the same prompts. The agents'
    own choices are drawn alike in every condition.

    Args:
      log_probs: `[num_policies, num_prompts, 3]`.
      draws: the episodes' memories, label orders and opponent's moves.

    Returns:
      `[num_policies, num_previous, 3, 2]`.
    """
    key, memory = jax.random.key(PAPER_SEED), make_memory()
    arena = Environment(get_opponent("random"), jnp.zeros((1, memory.num_previous, 3, 2)))
    num_rounds, num_episodes = draws.coin.shape
    played = rollout(key, log_probs[-1], arena, memory, num_episodes, num_rounds, draws)
    shares = []
    for index, others in enumerate(log_probs[:-1]):
        seen = others[played.prompt.astype(jnp.int32)]
        outcome = jax.random.categorical(jax.random.fold_in(key, index), seen)
        shares.append(sampled_visits(played._replace(outcome=outcome), memory))
    return jnp.stack([*shares, sampled_visits(played, memory)])


def draw_paper() -> tuple[Draws, Draws]:
    """Episodes of the paper's protocol: with memories carried on, and drawn anew every round."""
    carried = Streams(PAPER_SEED).draw(PAPER_EPISODES, PAPER_ROUNDS)
    return carried, Streams(PAPER_SEED).draw(PAPER_EPISODES * PAPER_ROUNDS, 1)


def evaluate_agent(
    source: TrainedAgent | Path | str | Config,
    games: Sequence[str] | None = None,
    opponents: Sequence[str] | None = None,
    suites: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    update: Which = None,
) -> dict[str, Any]:
    """Evaluates a trained agent beside its base in many conditions.

    Args:
      source: what `train_agent` returned, a run folder, or a configuration whose untrained model is
        evaluated alone (or beside its `lora.adapter`).
      games, opponents, suites, protocols: see `jaxmoral.config.EvaluationConfig`; by default what
        the configuration says.
      update: of a run folder's checkpoint, "best" for that of the highest exact expected reward
        (see `jaxmoral.learning.score`), None for the newest.

    Returns:
      A dictionary for JSON; see `describe`. "update" is the checkpoint's, None without training.

    Raises:
      UserError: there is no such run, game, opponent or suite, the checkpoint cannot be used, or
        the model cannot run a suite.

    >>> untrained = jaxmoral.parse({"model": {"source": "tabular"}})
    >>> list(jaxmoral.evaluate_agent(untrained, ["ipd", "ish"])["suites"]["trained"])
    ['ipd', 'ish']
    """
    config, agent, trained, made = _tested(source, update)
    overrides = {
        "games": games,
        "opponents": opponents,
        "suites": suites,
        "protocols": protocols,
    }
    tree = configs.to_dict(config)
    tree["evaluation"] |= {key: list(value) for key, value in overrides.items() if value}
    config = configs.parse(tree)
    resolve(config)
    settings = config.evaluation
    memory = agent.presentation.remembers(training_game(config))
    usual = config.env.memory == 1 and not config.env.blank_start and memory.num_moves == 2
    if "paper" in settings.protocols and not usual:
        raise UserError(
            "evaluation.protocols: paper needs two players, env.memory 1 and env.blank_start false"
        )
    chosen = chosen_conditions(config, agent.presentation)
    if agent.model is None and set(chosen) != {"trained"}:
        raise UserError(
            "evaluation.suites: a tabular policy has no language; only the suite 'trained' fits it"
        )
    odd = [
        name
        for name, suite in chosen.items()
        for c in suite.values()
        if c.game.num_players != memory.num_moves
    ]
    if odd:
        raise UserError(
            f"evaluation.suites: {odd[0]} is about two players, the agent meets several"
        )
    unique = {c.key: c for suite in chosen.values() for c in suite.values()}
    measured = _measure_all(config, agent, trained, list(unique.values()))
    return {"update": made} | describe(config, chosen, measured)


def _tested(
    source: TrainedAgent | Path | str | Config, update: Which
) -> tuple[Config, Agent, PyTree | None, int | None]:
    """The settled configuration, the agent, what was trained and in how many updates, if it was."""
    if isinstance(source, Config):
        config = resolve(source)
        agent = make_agent(config, None)
        adapted = None
        if agent.adapter is not None:
            adapted = agent.policy.reference_parameters() | {"adapter": agent.adapter}
        return settle(config, agent), agent, adapted, None
    if not isinstance(source, TrainedAgent):
        source = load_trained(Path(source), update)
    return source.config, source.agent, source.trainable, int(source.state.update)


def chosen_conditions(
    config: Config, presentation: Presentation
) -> dict[str, dict[str, Condition]]:
    """The conditions of the configuration's suites, by suite and name."""
    settings = config.evaluation
    return conditions(settings.suites, presentation, settings.labels, _fitting_games(config))


def described(condition: Condition) -> dict[str, Any]:
    """What an evaluation says of a condition."""
    shown = condition.presentation._asdict() | {"labels": list(condition.presentation.labels)}
    return {"game": condition.game.name, **shown}


def xi_of(config: Config) -> float:
    """The deontological penalty of the evaluation."""
    return config.reward.xi if config.evaluation.xi is None else config.evaluation.xi


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
    config: Config, agent: Agent, trained: PyTree, unique: Sequence[Condition]
) -> dict[Key, Measured]:
    """Measures conditions, those of similar length in one program."""
    settings = config.evaluation
    game = unique[0].game
    remembers = (agent.presentation.memory, game.num_players, agent.presentation.blank)
    everywhere = agent.layout.sharding()

    @partial(jax.jit, out_shardings=everywhere)
    def prepare(seed, *trained):
        init_key, key = jax.random.split(jax.random.key(seed))
        policies = [agent.policy.init(init_key), *trained]
        key = jax.random.fold_in(key, KEY_TAG)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *policies), key

    stacked, key = prepare(config.seed, *([] if trained is None else [trained]))
    draws = place(draw_paper() if "paper" in settings.protocols else (), everywhere)
    found = {}
    sizes = [len(all_prompts(*condition)[0]) for condition in unique]
    for group in group_by_size(sizes, MAX_SHAPES):
        inputs = place(agent.inputs([[unique[index]] for index in group]), everywhere)
        machines = opponents_of(config, [unique[index].game for index in group])
        measured = measure(
            agent.policy,
            agent.frozen,
            inputs,
            stacked,
            place(machines, everywhere),
            key,
            settings,
            remembers,
            draws,
            agent.layout,
        )
        measured = jax.device_get(measured)
        for at, index in enumerate(group):
            found[unique[index].key] = jax.tree.map(lambda leaf, at=at: leaf[at], measured)
    return found


def opponents_of(config: Config, games: Sequence[Game]) -> Opponent:
    """Every chosen opponent in every game, stacked as `[num_games, num_opponents]`."""
    names = config.evaluation.opponents
    flat = stack([find_opponent(config, name, game) for game in games for name in names])
    return jax.tree.map(lambda x: x.reshape(len(games), len(names), *x.shape[1:]), flat)


def group_by_size(sizes: Sequence[int], max_groups: int) -> list[list[int]]:
    """Splits indices into few groups so that padding each to its largest member costs least."""
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    best, cost = [order], sizes[order[-1]] * len(order)
    places = range(1, len(order))
    for count in range(1, min(max_groups, len(order))):
        for cuts in itertools.combinations(places, count):
            bounds = [0, *cuts, len(order)]
            groups = [order[a:b] for a, b in itertools.pairwise(bounds)]
            total = sum(sizes[group[-1]] * len(group) for group in groups)
            if total < 0.9 * cost:  # another shape is another compilation
                best, cost = groups, total
    return best


def load_run(folder: Path, update: Which = None) -> tuple[Config, Agent, PyTree]:
    """Reads a run folder: its configuration, its agent, and a checkpoint's parameters.

    Raises:
      UserError: the folder holds no run, or its checkpoint cannot be used.
    """
    found = load_trained(folder, update)
    return found.config, found.agent, found.trainable


def load_trained(folder: Path, update: Which = None) -> TrainedAgent:
    """Reads a run folder as `load_run` does, with a checkpoint's whole state."""
    if (folder / POPULATION).is_file():
        some = ", ".join(member_names(folder)[:3])
        raise UserError(f"{folder} holds a population; name a member's folder in it: {some}, ...")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run (there is no config.yaml in it)")
    config = resolve(configs.load(folder / "config.yaml"))
    agent = _agent_of_run(config)
    return TrainedAgent(config, agent, load_state(folder, config, agent, update), [])


def _agent_of_run(config: Config) -> Agent:
    """A run's agent. Its checkpoint holds the adapter; the folder it started from may be gone."""
    lora = dataclasses.replace(config.lora, adapter=None)
    # The run may have been made on other devices.
    return make_agent(dataclasses.replace(config, lora=lora, mesh=MeshConfig()), None)


def update_of(folder: Path, update: Which = None) -> int | None:
    """The number of a run's or a member's checkpoint, without a model; None if there is none.

    Raises:
      UserError: no checkpoint is known to be the best.
    """
    if isinstance(update, int):
        return update
    home, _, index = population_of(folder) or (folder, [], 0)
    if not (home / "checkpoints").is_dir():
        return None
    with Checkpoints(home) as checkpoints:
        return checkpoints.best(index) if update == "best" else checkpoints.latest()


def _members(folder: Path) -> dict[str, Config]:
    """A population's configurations by name."""
    names = member_names(folder)
    return {name: resolve(configs.load(folder / name / "config.yaml")) for name in names}


def _restore(
    folder: Path, members: Mapping[str, Config], agent: Agent, update: Which, wanted: Sequence[int]
) -> Iterator[ppo.TrainState]:
    """The wanted members' states in a checkpoint, or each in its own best."""
    fresh, _ = first_states(list(members.values()), agent)
    with Checkpoints(folder) as checkpoints:
        chosen = [checkpoints.best(i) if update == "best" else update for i in wanted]
        before = None
        for index, one in zip(wanted, chosen, strict=True):
            if before is None or before[0] != one:
                before = one, checkpoints.restore(fresh, members, one)
            yield before[1] if len(members) == 1 else member_state(before[1], index)


def load_state(folder: Path, config: Config, agent: Agent, update: Which = None) -> ppo.TrainState:
    """A checkpoint's state of a run or of a member of a population."""
    population = population_of(folder)
    if population is None:
        members, home, index = {"": config}, folder, 0
    else:
        home, _, index = population
        members = _members(home)
    if not (home / "checkpoints").is_dir():
        raise UserError(f"{home} holds no checkpoints")
    (state,) = _restore(home, members, agent, update, [index])
    return state


def load_population(folder: Path, update: Which = None) -> Iterator[tuple[Path, TrainedAgent]]:
    """Every member's folder and trained agent, the model loaded once."""
    members = _members(folder)
    first = next(iter(members.values()))
    agent = _agent_of_run(first)
    states = _restore(folder, members, agent, update, range(len(members)))
    for (name, config), state in zip(members.items(), states, strict=True):
        own = agent._replace(presentation=make_presentation(config, agent.model))
        yield folder / name, TrainedAgent(config, own, state, [])


def describe(
    config: Config,
    chosen: dict[str, dict[str, Condition]],
    measured: dict[Key, Measured],
) -> dict[str, Any]:
    """Turns measured arrays into nested dictionaries.

    Returns:
      `{"config", "policies", "opponents", "protocols", "episodes", "rounds", "xi", "r_illegal",
      "largest_gap", "suites": {suite: {condition: {"game", "wording", "persona", "labels",
      "table_order", "policies": {policy: {"remembered": {"CC": {"C", "D", "illegal"}, ...},
      "opponents": {opponent: {protocol: measures}}}}}}}}`; measures are those of
      `measures.describe_shares`. Remembered rounds name the agent's move first. "largest_gap" is
      the largest difference of a share between exact and sampled, or None; "config" the
      configuration without what the suites tell.
    """
    settings = config.evaluation
    some = next(iter(measured.values()))
    names = ["base", "tuned"][: len(some.policies)]
    xi = xi_of(config)
    made = configs.to_dict(config)
    for key in ("suites", "games", "opponents", "protocols"):
        del made["evaluation"][key]
    gap = None
    if some.sampled is not None:
        gap = max(float(np.max(abs(m.exact - m.sampled))) for m in measured.values())
    suites: dict[str, Any] = {}
    for suite, named in chosen.items():
        suites[suite] = {}
        for name, condition in named.items():
            tables = reward_tables(config, condition.game, xi)
            suites[suite][name] = described(condition) | {
                "policies": {
                    policy: _describe_policy(
                        config, condition, tables, measured[condition.key], index, suite
                    )
                    for index, policy in enumerate(names)
                }
            }
    return {
        "config": made,
        "policies": names,
        "opponents": list(settings.opponents),
        "protocols": list(settings.protocols),
        "episodes": settings.episodes,
        "rounds": settings.rounds,
        "xi": xi,
        "r_illegal": config.reward.illegal,
        "largest_gap": gap,
        "suites": suites,
    }


def reward_tables(config: Config, game: Game, xi: float) -> dict[str, np.ndarray]:
    """Tables of the paper's rewards, of all simple ones, and of those the run was trained with."""
    own = [config.reward.name, config.reward.then]
    names = dict.fromkeys([*PAPER_REWARDS, *REWARDS, *(name for name in own if name)])
    illegal = config.reward.illegal
    return {name: reward_table(game, get_reward(name), xi, illegal) for name in names}


def _describe_policy(
    config: Config,
    condition: Condition,
    tables: Mapping[str, np.ndarray],
    measured: Measured,
    policy: int,
    suite: str,
) -> dict[str, Any]:
    settings, game = config.evaluation, condition.game
    memory = condition.presentation.remembers(game)
    table = measured.policies[policy]
    opponents: dict[str, dict[str, Any]] = {}
    for index, opponent in enumerate(settings.opponents):
        shares = {"exact": measured.exact[policy, index]}
        if measured.sampled is not None:
            shares["sampled"] = measured.sampled[policy, index]
        if "long-run" in settings.protocols:
            machine = machine_player(find_opponent(config, opponent, game))
            shares["long-run"] = meet([agent_player(memory, table)], [machine], 1).long_run[0, 0]
        opponents[opponent] = {
            protocol: describe_shares(found, tables, game) for protocol, found in shares.items()
        }
    if measured.paper is not None:
        shares = measured.paper[policy, int(suite in REDRAWN)]
        opponents.setdefault("random", {})["paper"] = describe_shares(shares, tables, game)
    remembered = {
        history_name(history, memory.num_moves): dict(
            zip(("C", "D", "illegal"), map(float, row), strict=True)
        )
        for history, row in zip(memory.histories, table, strict=True)
    }
    return {"remembered": remembered, "opponents": opponents}
