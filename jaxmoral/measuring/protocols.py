"""The measuring program: what policies do in many conditions against many opponents, in one jit.

It computes every policy's table in every condition, and how often every kind of round happens: by
`chain.visits`, exactly, and where asked for in sampled episodes or by the paper's own protocol.
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.devices.mesh import Layout, constrain, map_spread
from jaxmoral.learning.policy import Policy
from jaxmoral.learning.thinking import mean_answers, means_of_others
from jaxmoral.learning.thinking_policy import ThinkingPolicy
from jaxmoral.world.chain import against, by_state, memory_policy, visits
from jaxmoral.world.machines import Opponent
from jaxmoral.world.memory import Memory, make_memory
from jaxmoral.world.opponents import get_opponent
from jaxmoral.world.rollout import Draws, Environment, Trajectories, rollout
from jaxmoral.world.streams import Streams

PyTree = Any
_THOUGHTS = 2**31  # folded into a condition's key, which is split for the episodes
PAPER_SEED, PAPER_EPISODES, PAPER_ROUNDS = 100, 10, 5


class Protocols(NamedTuple):
    """How is measured; static.

    Attributes:
      remembers: arguments of `memory.make_memory`.
      rounds: of an episode.
      episodes: that are sampled; None for none.
    """

    remembers: tuple[int, int, bool]
    rounds: int
    episodes: int | None


class Tested(NamedTuple):
    """What is measured.

    Attributes:
      inputs: the conditions' prompts, stacked on a leading `[num_conditions]` axis.
      opponents: `[num_conditions, num_opponents]` of them, stacked.
      frozen: the policy's frozen arrays.
      trainables: parameters, stacked on a leading `[num_policies]` axis.
      key: PRNG key of the sampled episodes.
      paper_draws: from `draw_paper`; none if its protocol is not asked for.
    """

    inputs: PyTree
    opponents: Opponent
    frozen: PyTree
    trainables: PyTree
    key: jax.Array
    paper_draws: tuple[Draws, ...] = ()


class LeftOut(NamedTuple):
    """What would be measured without one of an agent's thoughts, for each.

    Attributes:
      policies: `[num_conditions, num_policies, num_thoughts, num_histories, 3]`.
      exact: `[num_conditions, num_policies, num_thoughts, num_opponents, num_previous, 3,
        num_moves]`.
    """

    policies: Any
    exact: Any


class Measured(NamedTuple):
    """The program's output; what was not asked for is None.

    Attributes:
      policies: `[num_conditions, num_policies, num_histories, 3]` of outcomes per history.
      exact, sampled: `[num_conditions, num_policies, num_opponents, num_previous, 3, num_moves]`
        shares of rounds.
      paper: `[num_conditions, num_policies, 2 (memory is carried on, drawn anew), num_previous, 3,
        num_moves]`.
      left_out: of agents that think more than one thought a prompt.
    """

    policies: Any
    exact: Any
    sampled: Any
    paper: Any
    left_out: LeftOut | None = None


@partial(jax.jit, static_argnames=("policy", "protocols", "layout"))
def measure(
    policy: Policy, tested: Tested, *, protocols: Protocols, layout: Layout | None = None
) -> Measured:
    """Measures policies in conditions against opponents.

    Args:
      policy: static.
      tested: parameters, conditions and opponents.
      protocols: static; sizes and what is measured.
      layout: static; what spreads the conditions.
    """
    num_conditions = len(jax.tree.leaves(tested.inputs)[0])
    opponents = jax.tree.map(jnp.asarray, tested.opponents)
    xs = (jax.random.split(tested.key, num_conditions), tested.inputs, opponents)
    each = partial(_measure_condition, policy=policy, tested=tested, protocols=protocols)
    return jax.tree.map(lambda x: constrain(x, layout), map_spread(each, xs, layout))


def _measure_condition(
    condition: tuple[jax.Array, PyTree, Opponent],
    *,
    policy: Policy,
    tested: Tested,
    protocols: Protocols,
) -> Measured:
    """Every policy against every opponent in one condition: its key, inputs and opponents."""
    key, inputs, opponents = condition
    memory = make_memory(*protocols.remembers)
    num_policies = len(jax.tree.leaves(tested.trainables)[0])
    num_opponents = len(opponents.moves)
    pairs = list(itertools.product(range(num_policies), range(num_opponents)))
    players, others = np.array(pairs).T

    def log_probs_of(trainable: PyTree) -> jax.Array:
        return policy.bind(tested.frozen, inputs).table(trainable).log_probs

    def by_pair(shares: jax.Array) -> jax.Array:
        return shares.reshape(num_policies, num_opponents, *shares.shape[1:])

    answers = None
    if isinstance(policy, ThinkingPolicy):
        answers = think(policy, tested, inputs, jax.random.fold_in(key, _THOUGHTS))
        log_probs = jax.vmap(mean_answers)(answers)
    else:
        log_probs = jax.lax.map(log_probs_of, tested.trainables)
    tables = jax.vmap(memory_policy)(log_probs)
    machines = jax.tree.map(lambda leaf: leaf[others], opponents)
    in_chain = jax.vmap(partial(exact_visits, memory=memory, num_rounds=protocols.rounds))
    exact = by_pair(in_chain(tables[players], machines))
    sampled = paper = None
    if protocols.episodes is not None:
        keys = jax.random.split(key, len(pairs))
        play = partial(
            _play, memory=memory, num_episodes=protocols.episodes, num_rounds=protocols.rounds
        )
        sampled = by_pair(jax.lax.map(play, (keys, log_probs[players], machines)))
    if tested.paper_draws:
        paper = jnp.stack([paper_visits(log_probs, d) for d in tested.paper_draws], axis=1)
    left_out = None
    if answers is not None and answers.shape[2] > 1:
        others = jnp.moveaxis(jax.vmap(means_of_others)(answers), 2, 0)
        without = jax.vmap(jax.vmap(memory_policy))(others)
        shares = jax.lax.map(lambda own: by_pair(in_chain(own[players], machines)), without)
        left_out = LeftOut(jnp.moveaxis(without, 0, 1), jnp.moveaxis(shares, 0, 1))
    return Measured(tables, exact, sampled, paper, left_out)


def think(policy: ThinkingPolicy, tested: Tested, inputs: PyTree, key: jax.Array) -> jax.Array:
    """Every policy's answers after its own thoughts, `[num_policies, num_prompts, num_thoughts, 3]`

    Args:
      policy: static.
      tested: frozen arrays and parameters.
      inputs: the prompts of one condition.
      key: PRNG key.
    """
    model = policy.bind(tested.frozen, inputs)

    def answers_of(own):
        trainable, key = own
        return model.read(trainable, model.think(trainable, key)).answers

    num_policies = len(jax.tree.leaves(tested.trainables)[0])
    return jax.lax.map(answers_of, (tested.trainables, jax.random.split(key, num_policies)))


def exact_visits(
    table: jax.Array, opponent: Opponent, *, memory: Memory, num_rounds: int
) -> jax.Array:
    """Expected shares of each kind of round of a policy against a machine; see `chain.visits`."""
    policy = by_state(memory, table)
    return visits(against(memory, opponent), policy, num_rounds=num_rounds)


def _play(
    pair: tuple[jax.Array, jax.Array, Opponent],
    *,
    memory: Memory,
    num_episodes: int,
    num_rounds: int,
) -> jax.Array:
    """The same shares in sampled episodes: of a key, a policy's log-probabilities, a machine."""
    key, log_probs, opponent = pair
    no_rewards = jnp.zeros((1, memory.num_previous, 3, memory.num_moves))
    arena = Environment(opponent, no_rewards)
    played = rollout(
        key,
        log_probs[None],
        arena,
        memory=memory,
        num_episodes=num_episodes,
        num_rounds=num_rounds,
    )
    return sampled_visits(played, memory)


def sampled_visits(trajectories: Trajectories, memory: Memory) -> jax.Array:
    """Shares of each kind of round in a rollout, shaped like `chain.visits`."""
    shape = (memory.num_previous, 3, memory.num_moves)
    cell = trajectories.previous.astype(jnp.int32) * 3 + trajectories.outcome
    cell = cell * memory.num_moves + trajectories.other_action
    share = lambda index: jnp.mean(cell == index)
    return jax.lax.map(share, jnp.arange(np.prod(shape))).reshape(shape)


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
    played = rollout(
        key,
        log_probs[-1:],
        arena,
        memory=memory,
        num_episodes=num_episodes,
        num_rounds=num_rounds,
        draws=draws,
    )
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
