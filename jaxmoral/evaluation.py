"""Evaluation of one or several policies in many conditions at once, exactly and by sampling.

One program computes every policy's table in every condition, the exact visit frequencies against
every opponent (`chain.visits`) and, where asked for, the same frequencies from sampled episodes or
by the paper's own protocol. All measures (`jaxmoral.measures`) are sums over those frequencies.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral import config as configs
from jaxmoral.agent import Agent, Condition, make_agent, settle
from jaxmoral.chain import memory_policy, visits
from jaxmoral.checkpoint import Checkpoints
from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.games import CELLS, GAMES, Game, get_game
from jaxmoral.measures import describe_shares
from jaxmoral.opponents import get_opponent, stack
from jaxmoral.policy import Policy
from jaxmoral.prompts import NUM_ORDERS, Presentation, all_prompts
from jaxmoral.rewards import REWARDS, reward_table
from jaxmoral.rollout import Draws, Environment, Trajectories, rollout
from jaxmoral.streams import Streams
from jaxmoral.suites import REDRAWN, conditions
from jaxmoral.training import TrainedAgent, first_player, initial_state, resolve

PyTree = Any
Key = tuple[str, Presentation]  # of a condition
MAX_SHAPES = 3
PAPER_SEED, PAPER_EPISODES, PAPER_ROUNDS = 100, 10, 5


class Measured(NamedTuple):
    """The evaluation program's output; what was not asked for is None.

    Attributes:
      policies: `[num_conditions, num_policies, 2, 2, 3]` of outcomes per remembered round.
      exact, sampled: `[num_conditions, num_policies, num_opponents, 2, 2, 3, 2]` shares of rounds.
      paper: `[num_conditions, num_policies, 2 (memory is carried on, drawn anew), 2, 2, 3, 2]`.
    """

    policies: Any
    exact: Any
    sampled: Any
    paper: Any


def sampled_visits(trajectories: Trajectories) -> jax.Array:
    """Shares of each kind of round in a rollout, shaped like `chain.visits`."""
    memory = trajectories.prompt.astype(jnp.int32) // NUM_ORDERS
    cell = (memory * 3 + trajectories.outcome) * 2 + trajectories.other_action
    return jnp.array([jnp.mean(cell == index) for index in range(24)]).reshape(2, 2, 3, 2)


def measure(
    policy: Policy,
    frozen: PyTree,
    inputs: PyTree,
    trainables: PyTree,
    opponents: PyTree,
    key: jax.Array,
    settings: configs.EvaluationConfig,
    paper_draws: Sequence[Draws],
) -> Measured:
    """Measures policies in conditions against opponents; pure, to be jitted.

    Args:
      policy: static.
      frozen: the policy's frozen arrays.
      inputs: the conditions' prompts, stacked on a leading `[num_conditions]` axis.
      trainables: parameters, stacked on a leading `[num_policies]` axis.
      opponents: from `opponents.stack`.
      key: PRNG key of the sampled episodes.
      settings: static; sizes and protocols.
      paper_draws: from `draw_paper`.
    """
    num_opponents = len(opponents.p_cooperate)
    num_policies = len(jax.tree.leaves(trainables)[0])
    no_rewards = jnp.zeros((2, 2, 3, 2))
    pairs = list(itertools.product(range(num_policies), range(num_opponents)))
    players, others = np.array(pairs).T

    def one(xs):
        key, inputs = xs
        apply = lambda trainable: policy.apply(frozen, inputs, trainable, None).log_probs
        log_probs = jax.lax.map(apply, trainables)
        tables = jax.vmap(memory_policy)(log_probs)
        machines = jax.tree.map(lambda leaf: jnp.asarray(leaf)[others], opponents)
        square = lambda shares: shares.reshape(num_policies, num_opponents, 2, 2, 3, 2)
        exact = jax.vmap(lambda p, o: visits(p, o, settings.rounds))(tables[players], machines)

        def play(xs):
            key, log_probs, opponent = xs
            arena = Environment(opponent, no_rewards)
            return sampled_visits(
                rollout(key, log_probs, arena, settings.episodes, settings.rounds)
            )

        sampled = paper = None
        if "sampled" in settings.protocols:
            keys = jax.random.split(key, len(pairs))
            sampled = square(jax.lax.map(play, (keys, log_probs[players], machines)))
        if "paper" in settings.protocols:
            shares = [paper_visits(log_probs, draws) for draws in paper_draws]
            paper = jnp.stack(shares, axis=1)
        return Measured(tables, square(exact), sampled, paper)

    num_conditions = len(jax.tree.leaves(inputs)[0])
    return jax.lax.map(one, (jax.random.split(key, num_conditions), inputs))


def paper_visits(log_probs: jax.Array, draws: Draws) -> jax.Array:
    """Shares of rounds by the paper's protocol (arXiv 2410.01639, section 5).

    The last policy plays against a random opponent; the others answer the same prompts. The agents'
    own choices are drawn alike in every condition.

    Args:
      log_probs: `[num_policies, num_prompts, 3]`.
      draws: the episodes' memories, label orders and opponent's moves.

    Returns:
      `[num_policies, 2, 2, 3, 2]`.
    """
    key = jax.random.key(PAPER_SEED)
    arena = Environment(get_opponent("random"), jnp.zeros((2, 2, 3, 2)))
    num_rounds, num_episodes = draws.coin.shape
    played = rollout(key, log_probs[-1], arena, num_episodes, num_rounds, draws)
    shares = []
    for index, others in enumerate(log_probs[:-1]):
        seen = others[played.prompt.astype(jnp.int32)]
        outcome = jax.random.categorical(jax.random.fold_in(key, index), seen)
        shares.append(sampled_visits(played._replace(outcome=outcome)))
    return jnp.stack([*shares, sampled_visits(played)])


def draw_paper() -> tuple[Draws, Draws]:
    """Episodes of the paper's protocol: with memories carried on, and drawn anew every round."""
    carried = Streams(PAPER_SEED).draw(PAPER_EPISODES, PAPER_ROUNDS)
    return carried, Streams(PAPER_SEED).draw(PAPER_EPISODES * PAPER_ROUNDS, 1)


def evaluate(
    source: TrainedAgent | Path | str | Config,
    games: Sequence[str] | None = None,
    opponents: Sequence[str] | None = None,
    suites: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    update: int | None = None,
) -> dict[str, Any]:
    """Evaluates a trained agent beside its base in many conditions.

    Args:
      source: what `train` returned, a run folder, or a configuration whose untrained model is
        evaluated alone (or beside its `lora.adapter`).
      games, opponents, suites, protocols: see `jaxmoral.config.EvaluationConfig`; by default what
        the configuration says.
      update: of a run folder's checkpoint; None for the newest.

    Returns:
      A dictionary for JSON; see `describe`.

    Raises:
      UserError: there is no such run, game, opponent or suite, the checkpoint cannot be used, or
        the model cannot run a suite.
    """
    if isinstance(source, TrainedAgent):
        config, agent, trained = source.config, source.agent, source.trainable
    elif isinstance(source, Config):
        config = resolve(source)
        agent = make_agent(config)
        config, trained = settle(config, agent), None
        if agent.adapter is not None:
            trained = agent.policy.reference_parameters() | {"adapter": agent.adapter}
    else:
        config, agent, trained = load_run(Path(source), update)
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
    chosen = conditions(
        settings.suites, agent.presentation, settings.labels, choose_games(settings.games)
    )
    if agent.model is None and set(chosen) != {"trained"}:
        raise UserError(
            "evaluation.suites: a tabular policy has no language; only the suite 'trained' fits it"
        )
    unique = {c.key: c for suite in chosen.values() for c in suite.values()}
    return describe(config, chosen, _measure_all(config, agent, trained, list(unique.values())))


def _measure_all(
    config: Config, agent: Agent, trained: PyTree, unique: Sequence[Condition]
) -> dict[Key, Measured]:
    """Measures conditions, those of similar length in one program."""
    settings = config.evaluation
    machines = stack([get_opponent(name) for name in settings.opponents])

    def program(seed, frozen, inputs, trained, machines, draws):
        init_key, key = jax.random.split(jax.random.key(seed))
        base = agent.policy.init(init_key)
        policies = [base] if trained is None else [base, trained]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *policies)
        return measure(agent.policy, frozen, inputs, stacked, machines, key, settings, draws)

    jitted, found, draws = jax.jit(program), {}, draw_paper()
    sizes = [len(all_prompts(*condition)[0]) for condition in unique]
    for group in group_by_size(sizes, MAX_SHAPES):
        inputs = agent.inputs([unique[index] for index in group])
        seed = np.uint32(config.seed)
        measured = jitted(seed, agent.frozen, inputs, trained, machines, draws)
        measured = jax.device_get(measured)
        for place, index in enumerate(group):
            found[unique[index].key] = jax.tree.map(lambda leaf, at=place: leaf[at], measured)
    return found


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


def choose_games(names: Sequence[str]) -> list[Game]:
    """The named games, all registered ones for "all", each once."""
    found: list[str] = []
    for name in names:
        found += GAMES if name == "all" else [name]
    return [get_game(name) for name in dict.fromkeys(found)]


def load_run(folder: Path, update: int | None = None) -> tuple[Config, Agent, PyTree]:
    """Reads a run folder: its configuration, its agent, and a checkpoint's parameters.

    Raises:
      UserError: the folder holds no run, or its checkpoint cannot be used.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run (there is no config.yaml in it)")
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} holds no checkpoints")
    config = resolve(configs.load(folder / "config.yaml"))
    # The checkpoint holds the adapter; the folder it once started from may be gone.
    agent = make_agent(
        dataclasses.replace(config, lora=dataclasses.replace(config.lora, adapter=None))
    )
    fresh, _ = jax.jit(initial_state(config, agent))(np.uint32(config.seed))
    with Checkpoints(folder, config.reward.switch_at) as checkpoints:
        state = checkpoints.restore(fresh, config, update)
    return config, agent, first_player(state)


def describe(
    config: Config,
    chosen: dict[str, dict[str, Condition]],
    measured: dict[Key, Measured],
) -> dict[str, Any]:
    """Turns measured arrays into nested dictionaries.

    Returns:
      `{"policies", "opponents", "protocols", "episodes", "rounds", "xi", "r_illegal",
      "largest_gap", "suites": {suite: {condition: {"game", "wording", "persona", "labels",
      "table_order", "policies": {policy: {"remembered": {"CC": {"C", "D", "illegal"}, ...},
      "opponents": {opponent: {protocol: measures}}}}}}}}`; measures are those of
      `measures.describe_shares`. Remembered rounds name the agent's move first. "largest_gap" is
      the largest difference of a share between exact and sampled, or None.
    """
    settings = config.evaluation
    some = next(iter(measured.values()))
    names = ["base", "tuned"][: len(some.policies)]
    xi = config.reward.xi if settings.xi is None else settings.xi
    gap = None
    if some.sampled is not None:
        gap = max(float(np.max(abs(m.exact - m.sampled))) for m in measured.values())
    suites: dict[str, Any] = {}
    for suite, named in chosen.items():
        suites[suite] = {}
        for name, condition in named.items():
            tables = {
                reward: reward_table(condition.game.payoffs, function, xi, config.reward.illegal)
                for reward, function in REWARDS.items()
            }
            shown = condition.presentation._asdict() | {
                "labels": list(condition.presentation.labels)
            }
            suites[suite][name] = {"game": condition.game.name, **shown} | {
                "policies": {
                    policy: _describe_policy(
                        settings, condition.game, tables, measured[condition.key], index, suite
                    )
                    for index, policy in enumerate(names)
                }
            }
    return {
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


def _describe_policy(
    settings: configs.EvaluationConfig,
    game: Game,
    tables: dict[str, np.ndarray],
    measured: Measured,
    policy: int,
    suite: str,
) -> dict[str, Any]:
    opponents: dict[str, dict[str, Any]] = {}
    for index, opponent in enumerate(settings.opponents):
        opponents[opponent] = {
            "exact": describe_shares(measured.exact[policy, index], tables, game.payoffs)
        }
        if measured.sampled is not None:
            shares = measured.sampled[policy, index]
            opponents[opponent]["sampled"] = describe_shares(shares, tables, game.payoffs)
    if measured.paper is not None:
        shares = measured.paper[policy, int(suite in REDRAWN)]
        described = describe_shares(shares, tables, game.payoffs)
        opponents.setdefault("random", {})["paper"] = described
    outcomes = ("C", "D", "illegal")
    rows = measured.policies[policy].reshape(4, 3)
    remembered = {
        cell: dict(zip(outcomes, map(float, row), strict=True))
        for cell, row in zip(CELLS, rows, strict=True)
    }
    return {"remembered": remembered, "opponents": opponents}
