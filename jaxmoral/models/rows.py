"""A matrix of which only some rows are ever needed; it stays on the disk, mapped into memory."""

import jax
import numpy as np


class RowTable:
    """Rows by their numbers; two tables are equal if they are one.

    Attributes:
      rows: `[num_rows, size]`.
    """

    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def read(self, numbers: np.ndarray | jax.Array) -> np.ndarray:
        """Rows `[..., size]` of numbers `[...]`."""
        return np.asarray(self.rows[np.asarray(numbers)])

    def __call__(self, numbers: np.ndarray | jax.Array) -> jax.Array:
        """The same within a compiled program, which waits for them."""
        shape = jax.ShapeDtypeStruct((*numbers.shape, self.rows.shape[1]), self.rows.dtype)
        return jax.pure_callback(self.read, shape, numbers, vmap_method="expand_dims")
