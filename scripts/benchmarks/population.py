"""Measures what many agents cost: populations, the exact estimator, mixed rollouts, tournaments.

    python scripts/benchmarks/population.py [--members 8] [--any.key value ...]

Everything is compared within one process, in turns. The comparison with Axelrod's matches needs
`pip install axelrod==4.13.1` (the extra `dev`).
"""

import argparse
import itertools
import time
from typing import Any

import jax
import numpy as np
from workers import write

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.config.states import Resolved
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.environments import environment
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.resolve import resolve
from jaxmoral.measuring.tournaments import Entrant, hold
from jaxmoral.models.load import use_compilation_cache
from jaxmoral.world.games import choose_games
from jaxmoral.world.machines import memory_one, stack
from jaxmoral.world.memory import make_memory
from jaxmoral.world.opponents import OPPONENTS, get_opponent
from jaxmoral.world.pairs import agent_player, machine_player
from jaxmoral.world.rewards import get_reward, reward_table
from jaxmoral.world.rollout import Environment, rollout

TABULAR = ["--model.source", "tabular", "--ppo.learning_rate", "0.3"]


def show(name: str, value: str, target: str = "") -> None:
    print(f"{name:58}{value:>40}   {target}", flush=True)


def compiled(members: list[Resolved]) -> list[Any]:
    """[state, step] of a run or a population."""
    agent = make_agent(members[0])
    return list(compile_update([(config, agent) for config in members]))


def in_turns(runs: list[list[Any]], repeats: int) -> list[float]:
    """Median wall time of an update of each, taken in turns after a warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for update in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run[0], metrics = run[1](run[0], update)
            jax.block_until_ready(metrics)
            taken.append(time.perf_counter() - start)
    return [float(np.median(taken[1:])) for taken in times]


def members_of(flags: list[str], count: int) -> list[Resolved]:
    seeds = ["--seed", str(list(range(count)))]
    return [resolve(config) for config in configs.load_members(None, [*flags, *seeds]).values()]


def measure_adapters(count: int, flags: list[str]) -> dict[str, Any]:
    """A population of LoRA adapters on one base, beside a single run."""
    members = members_of(flags, count)
    runs = [compiled(members[:1]), compiled(members)]
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(runs[0][0]))
    one, many = in_turns(runs, 4)
    show(f"update of one adapter and of {count}", f"{one:.2f} s, {many:.2f} s")
    ratio = many / count / one
    show("time per update and member / a single run's", f"{ratio:.2f}", "<= 0.85")
    show("bytes per member: adapter, value head, optimiser", f"{state / 2**20:.1f} MiB")
    return {"members": count, "one": one, "many": many, "member_bytes": state}


def measure_tables(flags: list[str]) -> dict[str, Any]:
    """A thousand tabular members beside one, exact and sampled; seconds of an update."""
    found = {}
    for estimator in ("exact", "sampled"):
        extra = [*TABULAR, "--ppo.estimator", estimator, *flags]
        runs = [compiled(members_of(extra, 1)), compiled(members_of(extra, 1000))]
        one, many = in_turns(runs, 9)
        show(
            f"tabular update of 1 and of 1,000 members, {estimator}",
            f"{one * 1e3:.2f} ms, {many * 1e3:.2f} ms: {many / one:.1f}x",
            "<= 3x",
        )
        found[estimator] = {"one": one, "many": many}
    return found


def optimum(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The histories after which one move earns more in the round, and the better move of each.

    Of a game of two with one remembered round against a machine that knows the last round too.
    """
    arena = environment(config)
    opponent = arena.opponent
    assert opponent is not None
    moves = np.asarray(opponent.moves)[np.asarray(opponent.next_state)[int(opponent.start)].T]
    values = np.einsum("cob,cb->co", np.asarray(arena.rewards)[0, :4, :2], moves.reshape(4, 2))
    return np.flatnonzero(values[:, 0] != values[:, 1]), values.argmax(-1)


def measure_exact() -> dict[str, float]:
    """Seconds from a uniform table to each reward's one-step optimum, without compilation."""
    found = {}
    for reward in ("game", "deontological", "utilitarian", "game+deontological"):
        flags = ["--ppo.estimator", "exact", "--reward.name", reward, "--updates", "1000"]
        (config,) = members_of([*TABULAR, *flags, "--ppo.entropy_coef", "0.3"], 1)
        state, step = compiled([config])
        judged, best = optimum(config)
        state, _ = step(state, 0)
        start, update = time.perf_counter(), 1
        while update < 1000:
            state, _ = step(state, update)
            update += 1
            table = np.asarray(jax.nn.softmax(state.players.trainable["logits"][0])).reshape(
                4, 4, 3
            )
            if (table.mean(1)[judged, best[judged]] > 0.95).all():
                break
        taken = time.perf_counter() - start
        show(f"exact, {reward}: to its optimum", f"{taken:.2f} s, {update} updates", "<= 1 s")
        found[reward] = taken
    return found


def measure_rollouts() -> dict[str, Any]:
    """A batch of opponents x games, each agent's answers from a table; rounds a second."""
    games = choose_games(["all"])
    pairs = list(itertools.product(OPPONENTS, games))
    machines = stack([get_opponent(name, game) for name, game in pairs])
    reward = get_reward("game")
    tables = np.stack([reward_table(game, reward, 3.0, -6.0)[None] for _, game in pairs])
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (16, 3)))
    memory, episodes, rounds = make_memory(), 1000, 200

    @jax.jit
    def play(key, log_probs, machines, tables):
        def one(key, machine, table):
            arena = Environment(machine, table)
            played = rollout(
                key,
                log_probs[None],
                arena,
                memory=memory,
                num_episodes=episodes,
                num_rounds=rounds,
            )
            return played.reward.mean()

        keys = jax.random.split(key, len(pairs))
        return jax.lax.map(lambda xs: one(*xs), (keys, machines, tables))

    arguments = jax.device_put((log_probs, machines, tables))
    jax.block_until_ready(play(jax.random.key(0), *arguments))
    times = []
    for seed in range(5):
        start = time.perf_counter()
        jax.block_until_ready(play(jax.random.key(seed), *arguments))
        times.append(time.perf_counter() - start)
    total = len(pairs) * episodes * rounds
    rate = total / float(np.median(times))
    show(
        f"{len(pairs)} opponents x games, {total / 1e6:.0f} M rounds",
        f"{rate / 1e6:.0f} million rounds/s",
        ">= 30 million",
    )
    import axelrod as axl

    taken = []
    for seed in range(3):
        players = (axl.TitForTat(), axl.MemoryOnePlayer((0.3, 0.6, 0.4, 0.2)))
        start = time.perf_counter()
        for index in range(50):
            axl.Match(players, turns=200, seed=seed * 50 + index).play()
        taken.append(time.perf_counter() - start)
    theirs = 50 * 200 / min(taken)
    show("Axelrod's matches of 200 rounds", f"{theirs / 1e3:.0f} thousand rounds/s")
    show("ratio", f"{rate / theirs:.0f}x", ">= 300x")
    return {"pairs": len(pairs), "rate": rate, "axelrod": theirs}


def measure_tournament() -> dict[str, Any]:
    """A hundred agents in six games: classics, random memory-one machines, tabular policies."""
    games = choose_games(["all"])
    random = np.random.default_rng(0)
    entrants = []
    for name in OPPONENTS:
        players = {
            (game.name, side): machine_player(get_opponent(name, game))
            for game in games
            for side in (False, True)
        }
        entrants.append(Entrant(name, players))
    while len(entrants) < 60:
        player = machine_player(memory_one(*random.random(5)))
        players = {(game.name, side): player for game in games for side in (False, True)}
        entrants.append(Entrant(f"memory-one {len(entrants)}", players))
    while len(entrants) < 100:
        player = agent_player(make_memory(), random.dirichlet([1, 1, 0.1], 4))
        players = {(game.name, side): player for game in games for side in (False, True)}
        entrants.append(Entrant(f"agent {len(entrants)}", players))
    start = time.perf_counter()
    hold(entrants, games, ["deontological", "utilitarian"], 100, 3.0, -6.0)
    taken = time.perf_counter() - start
    show(f"tournament of 100 agents x {len(games)} games", f"{taken:.1f} s", "<= 10 s")
    return {"games": len(games), "seconds": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=8)
    arguments, flags = parser.parse_known_args()
    print(f"jaxmoral on {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    use_compilation_cache()
    results = {
        "tables": measure_tables(flags),
        "exact": measure_exact(),
        "rollouts": measure_rollouts(),
        "tournament": measure_tournament(),
        "adapters": measure_adapters(arguments.members, flags),
    }
    if not flags:  # else it is not what the page tells of
        write("population", results | {"versions": {"jax": jax.__version__}})


if __name__ == "__main__":
    main()
