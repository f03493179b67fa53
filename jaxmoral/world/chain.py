"""The Markov chain of an episode: exact visits, advantages and expectations without playing it.

(what the agent remembers, the opponent's state) is a Markov chain, so all that a policy does over
an episode is known from its table. `against` sets the chain up for a machine, `between` for two
agents; the rest does not know which it has.

Axes: h histories the agent can be in, s the machine's states, o the agent's outcome as chosen, e
its move as it counts, b the other's outcome, f that as it counts.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.world.machines import Opponent, side_by_side
from jaxmoral.world.memory import ILLEGAL, NUM_ORDERS, Memory
from jaxmoral.world.products import einsum, matmul


class Chain(NamedTuple):
    """An agent's episodes but for its own policy.

    Attributes:
      start: `[h, s]` probabilities at the first round.
      moves: `[h, s, b]` probabilities of the other's outcomes.
      own_effect: `[h, o, e]`, what the agent's outcome counts as: noise, and a last legal move.
      other_effect: `[h, b, f]`, likewise.
      machine: `[s, f, e, s']`, 1 where the machine's state goes.
      arrive: `[h, e, f, h']`, 1 for the history that follows.
      kind: `[h, num_previous]`, 1 for the round before.
    """

    start: jax.Array
    moves: jax.Array
    own_effect: jax.Array
    other_effect: jax.Array
    machine: jax.Array
    arrive: np.ndarray
    kind: np.ndarray


def _one_hot(index: np.ndarray, size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)[index]


def _trembling(effect: chex.Array, noise: chex.Array | None) -> jax.Array:
    """`[h, 3, 2]` with the legal outcomes' effects blurred."""
    effect = jnp.asarray(effect)
    if noise is None:
        return effect
    blurred = (1 - noise) * effect[:, :ILLEGAL] + noise * effect[:, :ILLEGAL, ::-1]
    return effect.at[:, :ILLEGAL].set(blurred)


def _follows(memory: Memory) -> np.ndarray:
    """`[num_states, e, f, num_states]`, 1 for the state that follows."""
    return _one_hot(memory.next_state, len(memory.previous))


def _kind(memory: Memory) -> np.ndarray:
    return _one_hot(memory.previous[: memory.num_playable], memory.num_previous)


def against(
    memory: Memory,
    opponent: Opponent,
    *,
    noise: chex.Array | None = None,
    chances: chex.Array | None = None,
) -> Chain:
    """The chain of an agent that meets a machine, or one of several that it cannot tell apart.

    Args:
      memory: of the agent.
      opponent: who is played; with chances a stack.
      noise, chances: see `rollout.Environment`.
    """
    size, follows = memory.num_playable, _follows(memory)
    if chances is None:
        first = jax.nn.one_hot(opponent.start, len(opponent.moves))
        opening = jnp.broadcast_to(opponent.opening, opponent.moves.shape)
    else:  # one machine of all their states, which begins in one of several
        num_states = opponent.moves.shape[1]
        opponent = side_by_side(opponent)
        first = matmul(chances, jax.nn.one_hot(opponent.start, len(opponent.moves)))
        opening = jnp.repeat(opponent.opening, num_states, axis=0)
    moves = jnp.asarray(opponent.moves)
    chex.assert_shape(moves, (None, memory.num_moves))
    machine = jax.nn.one_hot(opponent.next_state, len(moves))
    here = jax.nn.one_hot(memory.start, len(memory.previous))
    distribution = here[:, None] * first
    for index in range(memory.opening):
        played = moves if index else opening
        rounds = 0.5 * einsum("hs,sf->hfs", distribution, played)
        distribution = einsum("hfs,sfet,hefg->gt", rounds, machine, follows)
    return Chain(
        start=distribution[:size],
        moves=jnp.broadcast_to(moves, (size, *moves.shape)),
        own_effect=_trembling(_one_hot(memory.effective[:size], 2), noise),
        other_effect=jnp.broadcast_to(jnp.eye(memory.num_moves), (size, *[memory.num_moves] * 2)),
        machine=machine,
        arrive=follows[:size, ..., :size],
        kind=_kind(memory),
    )


def between(memory: Memory, others_policy: jax.Array, *, noise: chex.Array | None = None) -> Chain:
    """The chain of an agent that meets another one.

    Args:
      memory: of both.
      others_policy: `[num_histories, 3]` of the other, by what it remembers itself.
      noise: of both.
    """
    size, follows = memory.num_playable, _follows(memory)
    mirrored = _mirror(memory)[:size]
    effect = _one_hot(memory.effective, 2)
    policy = others_policy[memory.shown[mirrored]]
    if noise is not None:
        flipped = policy.at[:, :ILLEGAL].set(policy[:, ILLEGAL - 1 :: -1])
        policy = (1 - noise) * policy + noise * flipped
    return Chain(
        start=_opening(memory)[:, None],
        moves=policy[:, None],
        own_effect=_trembling(effect[:size], noise),
        other_effect=jnp.asarray(effect[mirrored]),
        machine=jnp.ones((1, 2, 2, 1)),
        arrive=follows[:size, ..., :size],
        kind=_kind(memory),
    )


def _opening(memory: Memory) -> jax.Array:
    """Where two agents' first round finds them, `[h]` probabilities: all rounds before by coins."""
    distribution = jax.nn.one_hot(memory.start, len(memory.previous))
    for _ in range(memory.opening):
        distribution = 0.25 * einsum("h,hefg->g", distribution, _follows(memory))
    return distribution[: memory.num_playable]


def best_response(
    memory: Memory,
    policy: jax.Array,
    points: chex.Array,
    *,
    num_rounds: int,
    noise: chex.Array | None = None,
) -> jax.Array:
    """The most points a round that another can take from an agent in an episode, `[]`.

    The other knows what the agent remembers, and answers by dynamic programming. It is a maximum of
    smooth functions of the policy, so its gradient is that of the best answer as it is.

    Args:
      memory: of the agent, in a game of two players.
      policy: `[h, 3]`, see `by_state`.
      points: `[2 (agent's move), 2 (other's)]` of the other.
      num_rounds: length of an episode.
      noise: of the agent.
    """
    size = memory.num_playable
    chex.assert_shape(policy, (size, 3))
    moves = einsum("ho,hoe->he", policy, _trembling(_one_hot(memory.effective[:size], 2), noise))
    arrive = _follows(memory)[:size, ..., :size]

    def back(value, _):
        later = points + einsum("hefg,g->hef", arrive, value)
        return einsum("he,hef->hf", moves, later).max(-1), None

    value = jax.lax.scan(back, jnp.zeros(size), None, num_rounds)[0]
    return matmul(_opening(memory), value) / num_rounds


def _mirror(memory: Memory) -> np.ndarray:
    """The state the other is in, by the agent's, in a game of two players."""
    mirrored = np.full(len(memory.previous), -1, np.int32)
    mirrored[memory.start] = memory.start
    waiting = [memory.start]
    while waiting:
        state = waiting.pop()
        for own, other in np.ndindex(2, 2):
            after = memory.next_state[state, own, other]
            if mirrored[after] < 0:
                mirrored[after] = memory.next_state[mirrored[state], other, own]
                waiting.append(after)
    return mirrored


def memory_policy(log_probs: jax.Array) -> jax.Array:
    """Outcome probabilities per remembered history, averaged over the label orders.

    Args:
      log_probs: `[num_histories * NUM_ORDERS, 3]`.

    Returns:
      `[num_histories, 3]`.
    """
    return jnp.exp(log_probs).reshape(-1, NUM_ORDERS, 3).mean(1)


def by_state(memory: Memory, values: jax.Array) -> jax.Array:
    """`[num_histories, ...]` by what the prompt shows to `[h, ...]` by the agent's history."""
    if len(values) == memory.num_playable:  # it shows all there is
        return values
    return values[jnp.asarray(memory.shown)[: memory.num_playable]]


def by_shown(memory: Memory, values: jax.Array) -> jax.Array:
    """Sums of `[h, ...]` over the histories that look alike, `[num_histories, ...]`."""
    if len(values) == len(memory.histories):
        return values
    shown = jnp.asarray(memory.shown)[: len(values)]
    return jnp.zeros((len(memory.histories), *values.shape[1:])).at[shown].add(values)


def distributions(chain: Chain, policy: jax.Array, *, num_rounds: int) -> jax.Array:
    """Where episodes are before each round, `[num_rounds, h, s]`, given `[h, o]` probabilities."""

    def step(distribution, _):
        rounds = einsum("hs,ho,hsb->hsob", distribution, policy, chain.moves)
        counted = einsum("hsob,hoe,hbf->hefs", rounds, chain.own_effect, chain.other_effect)
        following = einsum("hefs,sfet,hefg->gt", counted, chain.machine, chain.arrive)
        return following, distribution

    return jax.lax.scan(step, chain.start, None, num_rounds)[1]


def visits(chain: Chain, policy: jax.Array, *, num_rounds: int) -> jax.Array:
    """How often each kind of round happens in an episode, as shares that add up to 1.

    Args:
      chain: from `against` or `between`.
      policy: `[h, 3]`, see `by_state`.
      num_rounds: length of an episode.

    Returns:
      `[num_previous, 3 (outcome), num_moves or 3 (other's outcome)]`, shaped like
      `rewards.reward_table`, so a mean reward is the sum of their product.
    """
    chex.assert_shape(policy, (len(chain.start), 3))
    before = distributions(chain, policy, num_rounds=num_rounds).mean(0)
    return einsum("hs,ho,hsb,hp->pob", before, policy, chain.moves, chain.kind)


def noisy_rewards(rewards: chex.Array, noise: chex.Array | None) -> jax.Array:
    """Expected rewards of outcomes as chosen, `[..., 3, num_moves]`."""
    rewards = jnp.asarray(rewards)
    if noise is None:
        return rewards
    swapped = jnp.concatenate([rewards[..., 1::-1, :], rewards[..., ILLEGAL:, :]], axis=-2)
    return (1 - noise) * rewards + noise * swapped


def expected_advantages(
    chain: Chain,
    policy: jax.Array,
    *,
    rewards: jax.Array,
    values: jax.Array,
    num_rounds: int,
    gamma: float,
    lam: float,
) -> tuple[jax.Array, jax.Array]:
    """What generalised advantage estimates are on average (`batches.gae`, bootstrapped at the end).

    Args:
      chain: from `against` or `between`.
      policy: `[h, NUM_ORDERS, 3]` probabilities.
      rewards: `[num_previous, 3, b]`, of outcomes as chosen.
      values: `[h, NUM_ORDERS]` of the value head.
      num_rounds: length of an episode.
      gamma, lam: of the estimates.

    Returns:
      `[h]` visit probabilities (mean over the rounds), and `[h, NUM_ORDERS, 3]` expected advantages
      of an outcome after a history and label order, over all visits; 0 where there are none.
    """
    mean_policy, mean_value = policy.mean(1), values.mean(1)
    immediate = einsum("hp,pob,hsb->hso", chain.kind, rewards, chain.moves)
    before = distributions(chain, mean_policy, num_rounds=num_rounds)

    def back(later, distribution):
        # `later` is [h', s']: the mean advantage of the round after.
        ahead = gamma * (mean_value[:, None] + lam * later)
        ahead = einsum("sfet,hefg,gt->hefs", chain.machine, chain.arrive, ahead)
        ahead = einsum(
            "hsb,hoe,hbf,hefs->hso", chain.moves, chain.own_effect, chain.other_effect, ahead
        )
        returns = immediate + ahead  # reward and what follows, before the baseline
        mean = einsum("hso,hro->hsr", returns, policy).mean(-1) - mean_value[:, None]
        return mean, einsum("hs,hso->ho", distribution, returns)

    nothing = jnp.zeros_like(chain.start)
    weighted = jax.lax.scan(back, nothing, before, reverse=True)[1].mean(0)
    visited = before.sum(-1).mean(0)
    returns = weighted / jnp.maximum(visited, 1e-20)[:, None]
    seen = (visited > 0)[:, None, None]
    return visited, jnp.where(seen, returns[:, None] - values[..., None], 0.0)
