"""Agents and strategies meet each other in every game.

Everything is exact: payoffs and moral rewards of each side in an episode and in the long run, the
most that anyone can get from each, and which of them would spread in a population.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.config import parse
from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import is_population, is_run, member_names
from jaxmoral.learning.saved import load_population, load_trained, update_of
from jaxmoral.learning.trained import TrainedAgent
from jaxmoral.measuring.keeping import read_json
from jaxmoral.measuring.measures import fingerprint
from jaxmoral.models.peft import base_of, is_adapter
from jaxmoral.world.chain import memory_policy
from jaxmoral.world.evolution import fixation, replicator, stationary
from jaxmoral.world.games import Game, mirror
from jaxmoral.world.machines import Opponent, noisy
from jaxmoral.world.opponents import NONE, get_opponent
from jaxmoral.world.pairs import (
    Player,
    agent_player,
    best_response,
    group_players,
    machine_player,
    meet,
)
from jaxmoral.world.rewards import add_illegal_opponent, get_reward, reward_table

T = TypeVar("T", Game, Opponent)


FILE = "tournament.json"


# Rates of C at which fingerprints are taken; an agent may answer "always" and "nearly always" in
# ways that are far apart.
RATES = np.array([0, 1e-6, *np.linspace(0, 1, 21)[1:-1], 1 - 1e-6, 1])


class Entrant(NamedTuple):
    """Who takes part.

    Attributes:
      name: in tables and pictures.
      players: by the game's name and whether it is the second side.
      update: of its checkpoint, None without one.
    """

    name: str
    players: dict[tuple[str, bool], Player]
    update: int | None = None


def strategy(
    name: str, games: Sequence[Game], noise: float, own: Mapping[str, Opponent] = NONE
) -> Entrant:
    """A classic strategy, or one of `own`, in every game."""
    found = {}
    for game in games:
        # A strategy that knows the payoffs is told those of whom it meets.
        for second, met in ((False, mirror(game)), (True, game)):
            found[game.name, second] = machine_player(noisy(get_opponent(name, met, own), noise))
    return Entrant(name, found)


def entrant(
    name: str, agent: Agent, trainable: Any, games: Sequence[Game], noise: float
) -> Entrant:
    """A trained agent: its policy in every game, as either side is shown it."""
    conditions = []
    for game in games:
        conditions += [Condition(seen, agent.presentation) for seen in (game, mirror(game))]
    inputs = agent.prompter.pack([[condition] for condition in conditions])
    policies = _jit_policies(agent.policy, agent.layout)(agent.frozen, inputs, trainable)
    memory = agent.presentation.remembers(games[0])
    try:
        players = [agent_player(memory, policy, noise=noise) for policy in np.asarray(policies)]
    except UserError as error:
        raise UserError(f"agents: {name}: {error}") from None
    keys = [(game.name, second) for game in games for second in (False, True)]
    return Entrant(name, dict(zip(keys, players, strict=True)))


@functools.lru_cache(maxsize=32)
def _jit_policies(policy: Policy, layout: Layout) -> Any:
    """From conditions' prompts to what the policy does after each history, `[n, h, 3]`."""

    def policies(frozen: Any, inputs: Any, trainable: Any) -> jax.Array:
        def one(inputs):
            return memory_policy(policy.bind(frozen, inputs).table(trainable).log_probs)

        return jax.lax.map(one, inputs)

    return jit_often(policies, layout)


def sources_of(names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Who `read_entrants` would return for some names, before anything is loaded.

    Returns:
      By the entrant's name `{"path", "update"}`, its folder and its newest checkpoint's number;
      None for a strategy.

    Raises:
      UserError: two have one name.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for name in names:
        for who, source in _sources(name).items():
            if who in found:
                raise UserError(f"agents: {who} takes part twice; names must differ")
            found[who] = source
    return found


def _sources(name: str) -> dict[str, dict[str, Any] | None]:
    folder = Path(name)
    if is_population(folder):
        folders = [folder / member for member in member_names(folder)]
        update = update_of(folders[0])
    elif is_run(folder):
        folders, update = [folder], update_of(folder)
    elif is_adapter(folder):
        folders, update = [folder], None
    else:
        return {name: None}
    return {path.name: {"path": str(path.resolve()), "update": update} for path in folders}


def read_entrants(
    name: str, games: Sequence[Game], noise: float, own: Mapping[str, Opponent] = NONE
) -> list[Entrant]:
    """A run's or an adapter folder's agent, a population's members, or a named strategy."""
    folder = Path(name)
    if is_population(folder):
        return [
            _of_run(path.name, member, games, noise) for path, member in load_population(folder)
        ]
    if is_run(folder):
        return [_of_run(folder.name, load_trained(folder), games, noise)]
    if is_adapter(folder):
        tree = {"model": {"source": base_of(folder)}, "lora": {"adapter": str(folder)}}
        agent = make_agent(resolve(parse(tree)))
        trainable = agent.policy.reference_parameters() | {"adapter": agent.adapter}
        return [entrant(folder.name, agent, trainable, games, noise)]
    try:
        return [strategy(name, games, noise, own)]
    except UserError as error:
        if folder.is_dir():
            raise UserError(f"{folder} holds no run, population or adapter") from None
        raise UserError(f"agents: {error}") from None


def _of_run(name: str, trained: TrainedAgent, games: Sequence[Game], noise: float) -> Entrant:
    learned = training_game(trained.config)
    if learned.num_players > 2:
        raise UserError(
            f"agents: {name} learned {learned.name}, a game of {learned.num_players} players; a"
            " tournament has games of two"
        )
    found = entrant(name, trained.agent, trained.trainable, games, noise)
    return found._replace(update=int(trained.state.update))


def hold(
    entrants: Sequence[Entrant],
    games: Sequence[Game],
    rewards: Sequence[str],
    num_rounds: int,
    xi: float,
    r_illegal: float,
) -> dict[str, Any]:
    """Everyone meets everyone, itself included, in every game.

    An illegal answer earns its giver `r_illegal`; for the other side the last legal move stands.

    Args:
      entrants: who takes part.
      games: of two players; in asymmetric ones everyone plays both sides, and numbers are means.
      rewards: names; "game" (the points) is always among the results.
      num_rounds: length of an episode.
      xi: the deontological penalty in points.
      r_illegal: what an illegal answer earns.

    Returns:
      A dictionary for JSON: `{"agents", "rounds", "xi", "r_illegal", "rates", "games": {game:
      {"payoffs", "episode", "long_run": {"cooperation", reward: [[row's against column]]},
      "exploitability": [points a round], "fingerprint": [[long-run cooperation by rate]],
      "evolution": {"path", "fixation", "stationary"}}}}`.
    """
    found = {}
    for game in games:
        tables = {
            second: {
                name: reward_table(seen, get_reward(name, "rewards"), xi, r_illegal)
                for name in dict.fromkeys(["game", *rewards])
            }
            for second, seen in ((False, game), (True, mirror(game)))
        }
        found[game.name] = _play(entrants, game, tables, num_rounds, r_illegal)
    return {
        "agents": [one.name for one in entrants],
        "rounds": num_rounds,
        "xi": xi,
        "r_illegal": r_illegal,
        "rates": RATES.tolist(),
        "games": found,
    }


def _play(
    entrants: Sequence[Entrant],
    game: Game,
    tables: Mapping[bool, Mapping[str, np.ndarray]],
    num_rounds: int,
    r_illegal: float,
) -> dict[str, Any]:
    """One game of `hold`, given the rewards of its first and its second side."""
    sides, exploited, prints = [], [], []
    for second, against in ((False, mirror(game)), (True, game)):
        ours = [one.players[game.name, second] for one in entrants]
        theirs = [one.players[game.name, not second] for one in entrants]
        sides.append(_side(ours, theirs, tables[second], num_rounds, r_illegal))
        points = against.payoffs[0].astype(float)
        exploited.append([best_response(one, points, num_rounds=num_rounds) for one in ours])
        prints.append(fingerprint(ours, RATES))
        if np.array_equal(game.payoffs, mirror(game).payoffs) and _alike(ours, theirs):
            break
    measured = {
        span: {
            name: np.mean([side[span][name] for side in sides], axis=0).tolist()
            for name in sides[0][span]
        }
        for span in ("episode", "long_run")
    }
    return measured | {
        "payoffs": game.payoffs.tolist(),
        "exploitability": np.mean(exploited, axis=0).tolist(),
        "fingerprint": np.mean(prints, axis=0).tolist(),
        "evolution": _evolve(np.array(measured["long_run"]["game"])),
    }


def _evolve(payoffs: np.ndarray) -> dict[str, Any]:
    """What selection makes of the entrants, given the points of each against each."""
    start = np.full(len(payoffs), 1 / len(payoffs), np.float32)
    chances = fixation(payoffs)
    return {
        "path": np.asarray(replicator(jnp.asarray(payoffs, jnp.float32), start)).tolist(),
        "fixation": chances.tolist(),
        "stationary": stationary(chances).tolist(),
    }


def _alike(ours: Sequence[Player], theirs: Sequence[Player]) -> bool:
    """Whether everybody plays both sides of a symmetric game in the same way."""
    pairs = zip(ours, theirs, strict=True)
    return all(np.array_equal(one.outcomes, two.outcomes) for one, two in pairs)


def _side(
    ours: Sequence[Player],
    theirs: Sequence[Player],
    tables: Mapping[str, np.ndarray],
    num_rounds: int,
    r_illegal: float,
) -> dict[str, dict[str, np.ndarray]]:
    """Cooperation and rewards of our side against theirs, `[num_entrants, num_entrants]` each."""
    tables = {
        name: add_illegal_opponent(table, "last-move", name, r_illegal)
        for name, table in tables.items()
    }
    size = len(ours)
    found = {
        span: {name: np.zeros((size, size)) for name in ("cooperation", *tables)}
        for span in ("episode", "long_run")
    }
    for rows in group_players(ours):
        for columns in group_players(theirs):
            meeting = meet(
                [ours[i] for i in rows], [theirs[j] for j in columns], num_rounds=num_rounds
            )
            place = np.ix_(rows, columns)
            for span, shares in zip(found, meeting, strict=True):
                outcomes, others = shares.shape[-2:]
                found[span]["cooperation"][place] = shares[..., 0, :].sum((-1, -2))
                for name, table in tables.items():
                    known = table[:, :outcomes, :others]
                    found[span][name][place] = np.einsum("ikpob,pob->ik", shares, known)
    return found


def together(kind: str, each: Mapping[Path, Mapping[str, T]], asked: Sequence[str]) -> dict[str, T]:
    """All runs' own games or opponents; raises UserError if one that is asked for is ambiguous."""
    within = lambda name: re.compile(rf"(^|[(,]\s*){re.escape(name)}(\s*[),]|$)").search
    found: dict[str, T] = {}
    first: dict[str, Path] = {}
    for folder, own in each.items():
        for name, value in own.items():
            known = found.setdefault(name, value)
            first.setdefault(name, folder)
            same = jax.tree.all(jax.tree.map(np.array_equal, known, value))
            meant = any(map(within(name), asked)) or (kind == "games" and "all" in asked)
            if not same and meant:
                raise UserError(
                    f"{kind}.{name}: {first[name]} and {folder} define it differently, so it cannot"
                    f" be part of one tournament; name the {kind} that are"
                )
    return found


def check_same(path: Path, settings: Mapping[str, Any], games: Sequence[Game]) -> None:
    """Raises UserError if a file's tournament is not one that these settings hold again."""
    rest = "choose another --output-dir, or move it away"
    earlier = read_json(path)
    held = earlier.get("games") if isinstance(earlier, dict) else None
    if not isinstance(held, dict) or not all(isinstance(one, dict) for one in held.values()):
        raise UserError(f"{path} holds no tournament; {rest}")
    payoffs = {game.name: game.payoffs.tolist() for game in games}
    changed = [key for key, value in settings.items() if earlier.get(key, value) != value]
    changed += [] if set(held) <= set(payoffs) else ["games"]
    changed += [
        f"payoffs of {name}"
        for name in filter(held.__contains__, payoffs)
        if held[name].get("payoffs", payoffs[name]) != payoffs[name]
    ]
    if changed:
        raise UserError(f"{path} holds a tournament with other {', '.join(changed)}; {rest}")
    unsaid = [key for key in settings if key not in earlier]
    unsaid += ["payoffs"] * any("payoffs" not in one for one in held.values())
    if unsaid:
        raise UserError(
            f"{path} was written by an earlier version, which did not say its {', '.join(unsaid)},"
            f" so it cannot be told from another tournament; {rest}"
        )


def standings(result: dict[str, Any]) -> str:
    """A line per entrant: mean long-run points against all in each game."""
    width = max(map(len, result["agents"])) + 2
    lines = [" " * width + "".join(f"{game[:12]:>13}" for game in result["games"])]
    means = [np.mean(found["long_run"]["game"], axis=1) for found in result["games"].values()]
    for index, name in enumerate(result["agents"]):
        lines.append(f"{name:{width}}" + "".join(f"{mean[index]:13.3f}" for mean in means))
    lines.append("Points a round in the long run, the mean against everybody (itself included).")
    return "\n".join(lines)
