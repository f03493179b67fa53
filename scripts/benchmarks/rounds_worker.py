"""A worker: rounds of the iterated prisoner's dilemma, played by one program.

    python rounds_worker.py PROGRAM

A request is "EPISODES ROUNDS"; the answer has the rounds per second, the best of three after a
warm-up. Where the program lets us, a player who looks at the last round and tosses a coin meets
tit-for-tat; the others' environments are stepped with random moves.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from workers import serve, versions

COOPERATE = np.array([0.9, 0.4, 0.6, 0.2])  # of the player, by the last round's cell
PAYOFFS = np.array([[[3.0, 0.0], [4.0, 1.0]], [[3.0, 4.0], [0.0, 1.0]]])


def play_ours(episodes: int, rounds: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    from jaxmoral.world import games, opponents, rewards
    from jaxmoral.world.memory import make_memory
    from jaxmoral.world.rollout import Environment, rollout

    table = rewards.reward_table(games.get_game("ipd"), rewards.get_reward("game"), 3.0, -6.0)
    arena = jax.device_put(Environment(opponents.get_opponent("tit-for-tat"), table[None]))
    p = np.repeat(COOPERATE, 4)
    log_probs = jnp.log(jnp.array(np.stack([p, 1 - p, np.full_like(p, 1e-9)], -1)))[None]
    sized = partial(rollout, memory=make_memory(), num_episodes=episodes, num_rounds=rounds)
    play = jax.jit(sized)
    return lambda: jax.block_until_ready(play(jax.random.key(0), log_probs, arena))


def play_scan(episodes: int, rounds: int) -> Callable[[], Any]:
    """The least a round can be: both copy what the other did, points are added up."""
    import jax
    import jax.numpy as jnp

    payoffs = jnp.array(PAYOFFS[0])

    @jax.jit
    def play(own, other):
        def step(carry, _):
            own, other, total = carry
            row = jnp.where(own == 0, payoffs[0, 0], payoffs[1, 0])
            gain = jnp.where(own == 0, payoffs[0, 1], payoffs[1, 1])
            return (other, own, total + jnp.where(other == 0, row, gain)), None

        start = own, other, jnp.zeros(own.shape)
        return jax.lax.scan(step, start, length=rounds)[0]

    moves = np.random.default_rng(0).integers(0, 2, (2, episodes)).astype(np.int8)
    return lambda: jax.block_until_ready(play(*moves))


def play_numpy(episodes: int, rounds: int) -> Callable[[], Any]:
    def play():
        random = np.random.default_rng(0)
        own, other = random.integers(0, 2, (2, episodes))
        history = []
        for _ in range(rounds):
            chosen = (random.random(episodes) >= COOPERATE[own * 2 + other]).astype(np.int64)
            history.append((chosen, own, PAYOFFS[0, chosen, own]))
            own, other = chosen, own
        return history

    return play


def play_axelrod(episodes: int, rounds: int) -> Callable[[], Any]:
    import axelrod

    def play():
        for seed in range(episodes):
            players = axelrod.MemoryOnePlayer(tuple(COOPERATE)), axelrod.TitForTat()
            axelrod.Match(players, turns=rounds, seed=seed).play()

    return play


def play_jaxmarl(episodes: int, rounds: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    from flax import struct
    from jaxmarl.environments.multi_agent_env import MultiAgentEnv
    from jaxmarl.environments.spaces import Discrete

    payoffs = jnp.array(PAYOFFS)

    @struct.dataclass
    class State:
        moves: Any
        step: Any

    class Dilemma(MultiAgentEnv):
        """The game as JaxMARL's users would write it; JaxMARL has no matrix game."""

        def __init__(self):
            super().__init__(num_agents=2)
            self.agents = ["one", "two"]
            self.action_spaces = {name: Discrete(2) for name in self.agents}

        def reset(self, key):
            state = State(jnp.zeros(2, jnp.int32), jnp.int32(0))
            return self.get_obs(state), state

        def get_obs(self, state):
            return {"one": state.moves, "two": state.moves[::-1]}

        def step_env(self, key, state, actions):
            one, two = (actions[name] for name in self.agents)
            state = State(jnp.stack([one, two]), state.step + 1)
            gains = {name: payoffs[i, one, two] for i, name in enumerate(self.agents)}
            done = state.step >= rounds
            dones = dict.fromkeys([*self.agents, "__all__"], done)
            return self.get_obs(state), state, gains, dones, {}

    env = Dilemma()

    @jax.jit
    def play(key):
        _, states = jax.vmap(env.reset)(jax.random.split(key, episodes))

        def step(carry, key):
            def one(key, state):
                first, second, third = jax.random.split(key, 3)
                moves = {"one": jax.random.randint(first, (), 0, 2)}
                moves["two"] = jax.random.randint(second, (), 0, 2)
                _, state, gains, _, _ = env.step(third, state, moves)
                return state, gains

            return jax.vmap(one)(jax.random.split(key, episodes), carry)

        return jax.lax.scan(step, states, jax.random.split(key, rounds))

    return lambda: jax.block_until_ready(play(jax.random.key(0)))


def play_matrax(episodes: int, rounds: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    from matrax.env import MatrixGame

    env = MatrixGame(jnp.array(PAYOFFS), time_limit=rounds + 1)

    @jax.jit
    def play(key):
        states, _ = jax.vmap(env.reset)(jax.random.split(key, episodes))

        def step(states, key):
            moves = jax.random.randint(key, (episodes, 2), 0, 2)
            states, timestep = jax.vmap(env.step)(states, moves)
            return states, timestep.reward

        return jax.lax.scan(step, states, jax.random.split(key, rounds))

    return lambda: jax.block_until_ready(play(jax.random.PRNGKey(0)))


PROGRAMS = {
    "ours": (play_ours, ("jax",)),
    "scan": (play_scan, ("jax",)),
    "numpy": (play_numpy, ("numpy",)),
    "axelrod": (play_axelrod, ("axelrod",)),
    "jaxmarl": (play_jaxmarl, ("jaxmarl", "jax")),
    "matrax": (play_matrax, ("matrax", "jax")),
}


def main() -> None:
    make, packages = PROGRAMS[sys.argv[1]]

    def work(request: str) -> dict:
        episodes, rounds = map(int, request.split())
        play = make(episodes, rounds)
        play()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            play()
            times.append(time.perf_counter() - start)
        return {"rounds_per_second": episodes * rounds / min(times)}

    serve({"versions": versions(*packages)}, work)


if __name__ == "__main__":
    main()
