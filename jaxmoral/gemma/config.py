"""The shape of a Gemma 3 text model."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes and constants of a Gemma 3 text model.

    Attributes:
      global_every: every layer whose 1-based index is a multiple of it attends to everything; the
        others see a window of `sliding_window` tokens.
      query_scale: what queries are multiplied by before the dot product with the keys.
    """

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    sliding_window: int
    global_every: int = 6
    rope_base_global: float = 1_000_000.0
    rope_base_local: float = 10_000.0
    rms_eps: float = 1e-6

    @property
    def query_scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block; LoRA can adapt any of them."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q": (self.embed_dim, queries),
            "k": (self.embed_dim, keys),
            "v": (self.embed_dim, keys),
            "o": (queries, self.embed_dim),
            "gate": (self.embed_dim, self.mlp_dim),
            "up": (self.embed_dim, self.mlp_dim),
            "down": (self.mlp_dim, self.embed_dim),
        }
