"""A mixture of experts: for each token a few of many small gated MLPs, chosen by a router."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def choose(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The experts of each token and their shares, which sum up to 1.

    Args:
      scores: `[num_tokens, num_experts]` of the router.
      count: how many are chosen.

    Returns:
      `[num_tokens, count]` int32, and float32.
    """
    shares, chosen = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), count)
    return chosen, shares / shares.sum(-1, keepdims=True)


def mix(
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    matrices: tuple[jax.Array, jax.Array],
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The sum of what the chosen experts say, each times its share, `[num_tokens, embed_dim]`.

    Tokens are ordered by experts, so that each expert's are multiplied at once.

    Args:
      x: `[num_tokens, embed_dim]`.
      chosen, shares: `[num_tokens, count]`.
      matrices: `[num_experts, embed_dim, 2 * expert_dim]`, of the gate and beside it of what it
        lets through, and `[num_experts, expert_dim, embed_dim]`.
      activation: of the gate.
    """
    expand, shrink = matrices
    chex.assert_equal_shape([chosen, shares])
    count = chosen.shape[1]
    order = jnp.argsort(chosen.ravel())
    tokens = jnp.bincount(chosen.ravel(), length=len(expand))  # of each expert
    gate, up = jnp.split(jax.lax.ragged_dot(x[order // count], expand, tokens), 2, axis=-1)
    said = jax.lax.ragged_dot(activation(gate) * up, shrink, tokens)
    weighed = said * shares.ravel()[order, None].astype(said.dtype)
    return jnp.zeros_like(x).at[order // count].add(weighed)
