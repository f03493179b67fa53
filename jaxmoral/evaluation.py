"""Evaluation of one or several policies on many games at once, exactly and by sampling.

One compiled program computes every policy's table on every game, the exact visit frequencies
against every opponent (`chain.visits`) and the same frequencies from sampled episodes. All
measures are sums over those frequencies.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral import config as configs
from jaxmoral.agent import Agent, make_agent
from jaxmoral.chain import memory_policy, visits
from jaxmoral.checkpoint import Checkpoints
from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.games import CELLS, GAMES, Game, get_game
from jaxmoral.metrics import action_types
from jaxmoral.opponents import get_opponent, stack
from jaxmoral.policy import Policy
from jaxmoral.prompts import NUM_ORDERS
from jaxmoral.rewards import REWARDS, bounds, reward_table
from jaxmoral.rollout import Environment, Trajectories, rollout
from jaxmoral.training import TrainedAgent, initial_state, resolve

PyTree = Any
REGRETS = ("deontological", "utilitarian")


class Measured(NamedTuple):
    """The evaluation program's output.

    Attributes:
      policies: `[num_policies, num_games, 2, 2, 3]` outcome probabilities per remembered round.
      exact, sampled: `[num_policies, num_games, num_opponents, 2, 2, 3, 2]` shares of rounds.
    """

    policies: jax.Array | np.ndarray
    exact: jax.Array | np.ndarray
    sampled: jax.Array | np.ndarray


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
    num_episodes: int,
    num_rounds: int,
) -> Measured:
    """Measures policies on games against opponents; pure, to be jitted.

    Args:
      policy: static.
      frozen: the policy's frozen arrays.
      inputs: the games' prompts, stacked on a leading `[num_games]` axis.
      trainables: parameters, stacked on a leading `[num_policies]` axis.
      opponents: from `opponents.stack`.
      key: PRNG key of the sampled episodes.
      num_episodes, num_rounds: static sizes.
    """
    num_opponents = len(opponents.p_cooperate)
    no_rewards = jnp.zeros((2, 2, 3, 2))

    def against(log_probs, key, opponent):
        played = rollout(
            key, log_probs, Environment(opponent, no_rewards), num_episodes, num_rounds
        )
        exact = visits(memory_policy(log_probs), opponent, num_rounds)
        return exact, sampled_visits(played)

    def one(trainable, key, game_inputs):
        log_probs = policy.apply(frozen, game_inputs, trainable, None).log_probs
        keys = jax.random.split(key, num_opponents)
        shares = jax.lax.map(lambda xs: against(log_probs, *xs), (keys, opponents))
        return Measured(memory_policy(log_probs), *shares)

    def all_games(xs):
        trainable, key = xs
        num_games = len(jax.tree.leaves(inputs)[0])
        keys = jax.random.split(key, num_games)
        return jax.lax.map(lambda xs: one(trainable, *xs), (keys, inputs))

    num_policies = len(jax.tree.leaves(trainables)[0])
    return jax.lax.map(all_games, (trainables, jax.random.split(key, num_policies)))


def evaluate(
    source: TrainedAgent | Path | str | Config,
    games: Sequence[str] | None = None,
    opponents: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluates a trained agent beside its base on many games.

    Args:
      source: what `train` returned, a run folder, or a configuration whose untrained model is
        evaluated alone (or beside its `lora.adapter`).
      games, opponents: names in the registries, "all" for every game; by default what the
        configuration says.

    Returns:
      A dictionary for JSON; see `describe`.

    Raises:
      UserError: there is no such run, game or opponent, or the checkpoint cannot be used.
    """
    if isinstance(source, TrainedAgent):
        config, agent, trained = source.config, source.agent, source.state.trainable
    elif isinstance(source, Config):
        config = resolve(source)
        agent = make_agent(config)
        trained = None
        if agent.adapter is not None:
            trained = agent.start(jax.jit(agent.policy.init)(jax.random.key(config.seed)))
    else:
        config, agent, trained = load_run(Path(source))
    settings = config.evaluation
    settings = dataclasses.replace(
        settings,
        games=tuple(games or settings.games),
        opponents=tuple(opponents or settings.opponents),
    )
    chosen = choose_games(settings.games)
    machines = stack([get_opponent(name) for name in settings.opponents])

    def program(seed, frozen, inputs, trained, machines):
        init_key, key = jax.random.split(jax.random.key(seed))
        base = agent.policy.init(init_key)
        policies = [base] if trained is None else [base, trained]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *policies)
        episodes, rounds = settings.episodes, settings.rounds
        return measure(agent.policy, frozen, inputs, stacked, machines, key, episodes, rounds)

    measured = jax.device_get(
        jax.jit(program)(
            np.uint32(config.seed), agent.frozen, agent.inputs(chosen), trained, machines
        )
    )
    return describe(config, settings, chosen, measured)


def choose_games(names: Sequence[str]) -> list[Game]:
    """The games of these names; "all" stands for every registered one."""
    if "all" in names:
        return list(GAMES.values())
    return [get_game(name) for name in names]


def load_run(folder: Path) -> tuple[Config, Agent, PyTree]:
    """Reads a run folder: its configuration, its agent, and the newest checkpoint's parameters.

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
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(fresh, config)
    return config, agent, state.trainable


def describe(
    config: Config, settings: configs.EvaluationConfig, games: Sequence[Game], measured: Measured
) -> dict[str, Any]:
    """Turns measured arrays into nested dictionaries.

    Returns:
      `{"policies", "opponents", "episodes", "rounds", "xi", "r_illegal", "largest_gap", "games":
      {game: {policy: {"remembered": {"CC": {"C", "D", "illegal"}, ...}, "opponents": {opponent:
      {"exact" or "sampled": {"action_types", "rewards", "regret": {name: {"points",
      "normalised"}}}}}}}}}`. Remembered rounds name the agent's move first. "largest_gap" is the
      largest difference of a share between exact and sampled.
    """
    names = ["base", "tuned"][: len(measured.policies)]
    gap = float(np.abs(measured.exact - measured.sampled).max())
    described: dict[str, Any] = {}
    for g, game in enumerate(games):
        tables = {
            name: reward_table(game.payoffs, reward, config.reward.xi, config.reward.illegal)
            for name, reward in REWARDS.items()
        }
        described[game.name] = {
            policy: {
                "remembered": _remembered(measured.policies[p, g]),
                "opponents": {
                    opponent: {
                        "exact": _measures(measured.exact[p, g, o], tables),
                        "sampled": _measures(measured.sampled[p, g, o], tables),
                    }
                    for o, opponent in enumerate(settings.opponents)
                },
            }
            for p, policy in enumerate(names)
        }
    return {
        "policies": names,
        "opponents": list(settings.opponents),
        "episodes": settings.episodes,
        "rounds": settings.rounds,
        "xi": config.reward.xi,
        "r_illegal": config.reward.illegal,
        "largest_gap": gap,
        "games": described,
    }


def _remembered(policy: jax.Array | np.ndarray) -> dict[str, dict[str, float]]:
    rows = policy.reshape(4, 3)
    outcomes = ("C", "D", "illegal")
    return {
        cell: dict(zip(outcomes, map(float, row), strict=True))
        for cell, row in zip(CELLS, rows, strict=True)
    }


def _measures(shares: jax.Array | np.ndarray, tables: dict[str, np.ndarray]) -> dict[str, Any]:
    """Action types (outcome given the opponent's previous move), mean rewards and regrets.

    Regret is the largest reward of any round of the game minus the mean (arXiv 2410.01639,
    section 5 of its evaluation); normalised, it is divided by the span of the rewards (0 when they
    are all alike).
    """
    rewards = {name: float((shares * table).sum()) for name, table in tables.items()}
    regret = {}
    for name in REGRETS:
        low, high = bounds(tables[name])
        points = high - rewards[name]
        span = high - low
        regret[name] = {"points": points, "normalised": points / span if span else 0.0}
    return {
        "action_types": action_types(np.asarray(shares).sum((0, 3)).T),
        "rewards": rewards,
        "regret": regret,
    }


def table(evaluation: dict[str, Any]) -> str:
    """The evaluation as text: a line per game and policy, against the first opponent, exact."""
    opponent = evaluation["opponents"][0]
    width = max(map(len, ("game", *evaluation["games"]))) + 2
    header = (
        f"{'game':{width}}{'policy':8}{'P(C|CC)':>9}{'P(C|CD)':>9}{'P(C|DC)':>9}{'P(C|DD)':>9}"
        f"{'illegal':>9}{'De regret':>11}{'Ut regret':>11}"
    )
    lines = [header, "-" * len(header)]
    for game, policies in evaluation["games"].items():
        for name, result in policies.items():
            exact = result["opponents"][opponent]["exact"]
            kinds = exact["action_types"]
            cells = "".join(f"{result['remembered'][cell]['C']:9.1%}" for cell in CELLS)
            lines.append(
                f"{game:{width}}{name:8}{cells}{kinds['illegal|C'] + kinds['illegal|D']:9.1%}"
                f"{exact['regret']['deontological']['points']:11.2f}"
                f"{exact['regret']['utilitarian']['normalised']:11.3f}"
            )
    lines.append(
        f"Remembered rounds name the agent's move first. Regret against {opponent}: deontological"
        f" in points, utilitarian from 0 to 1 (normalised). Exact and"
        f" sampled shares differ by at most {evaluation['largest_gap']:.2%}."
    )
    return "\n".join(lines)
