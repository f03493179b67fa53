"""Products in whole float32; accelerators round the factors unless they are asked not to."""

from functools import partial

import jax
import jax.numpy as jnp

einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
