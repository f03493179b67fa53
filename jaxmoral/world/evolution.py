"""Which strategies spread in a population whose members meet: replicator dynamics, Moran process.

Both start from the payoffs every strategy gets from every other.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.world.products import matmul

_STEPS = 10_000


@jax.jit
def replicator(payoffs: jax.Array, start: jax.Array) -> jax.Array:
    """Shares over time: those with more than the average payoff grow (Taylor & Jonker 1978).

    Args:
      payoffs: `[num_strategies, num_strategies]` of the row against the column.
      start: `[num_strategies]` shares that add up to 1.

    Returns:
      `[101, num_strategies]` shares, the first row being the start, at equal intervals of a time
      that is long for these payoffs.
    """
    spread = jnp.maximum(payoffs.max() - payoffs.min(), 1e-9)
    scaled = (payoffs - payoffs.min()) / spread

    def step(shares, _):
        fitness = matmul(scaled, shares)
        # The exact flow of constant fitness over a short time: shares stay positive.
        grown = shares * jnp.exp(0.1 * (fitness - fitness.max()))
        return grown / grown.sum(), shares

    last, path = jax.lax.scan(step, start, None, _STEPS)
    return jnp.concatenate([path[:: _STEPS // 100], last[None]])


def fixation(payoffs: np.ndarray, population: int = 50, selection: float = 1.0) -> np.ndarray:
    """Chances that one mutant takes over a finite population of residents (Moran process).

    Fitness is exp(selection x mean payoff against everybody else), payoffs scaled to a span of 1.

    Args:
      payoffs: `[num_strategies, num_strategies]` of the row against the column.
      population: its size.
      selection: its strength.

    Returns:
      `[num_strategies (resident), num_strategies (mutant)]`; 1 / population on the diagonal.
    """
    return np.asarray(_fixation(jnp.asarray(payoffs, jnp.float32), population, selection))


@jax.jit(static_argnums=1)
def _fixation(payoffs: jax.Array, population: int, selection: jax.Array) -> jax.Array:
    scaled = payoffs / jnp.maximum(payoffs.max() - payoffs.min(), 1e-9)
    own = jnp.diagonal(scaled)
    mutants = jnp.arange(1, population)[:, None, None]
    others = population - 1
    resident, mutant = own[:, None], own[None, :]
    of_mutant = ((mutants - 1) * mutant + (population - mutants) * scaled.T) / others
    of_resident = (mutants * scaled + (others - mutants) * resident) / others
    # 1 / (1 + sum of products of death-to-birth ratios), in logarithms.
    ratios = jnp.cumsum(selection * (of_resident - of_mutant), axis=0)
    chances = jnp.exp(-jax.nn.logsumexp(jnp.pad(ratios, ((1, 0), (0, 0), (0, 0))), axis=0))
    return chances


def stationary(chances: np.ndarray) -> np.ndarray:
    """How long each strategy holds the population when mutants are rare (Fudenberg & Imhof 2006).

    Args:
      chances: from `fixation`.

    Returns:
      `[num_strategies]` shares of time.
    """
    size = len(chances)
    moves = np.asarray(chances, np.float64) / max(size - 1, 1)
    np.fill_diagonal(moves, 0)
    np.fill_diagonal(moves, 1 - moves.sum(1))
    goes_on = 1 - 1e-12
    system = np.eye(size) - goes_on * moves.T
    shares = np.linalg.solve(system, np.full(size, (1 - goes_on) / size))
    return shares / shares.sum()
