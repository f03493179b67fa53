"""The shape of a Gemma text model: one description for Gemma 1, 2 and 3."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a Gemma text model; embeddings are always tied.

    Attributes:
      family: "gemma", "gemma2" or "gemma3".
      global_layers: for each layer whether it attends to everything; the others see a window of
        `sliding_window` tokens.
      rope_scale, rope_scale_local: positions are divided by it in global layers, and in the others.
      query_scale: what queries are multiplied by before the dot product with the keys.
      attention_softcap, final_softcap: scores or logits x become cap * tanh(x / cap); None for no
        cap.
      post_norms: whether a norm follows the attention and the MLP too.
      qk_norm: whether queries and keys are normalised.
      quantisation: of the matrices, one of `jaxmoral.models.quantise.KINDS`, or None.
    """

    family: str
    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    sliding_window: int
    global_layers: tuple[bool, ...]
    query_scale: float
    rope_base_global: float = 10_000.0
    rope_base_local: float = 10_000.0
    rope_scale: float = 1.0
    rope_scale_local: float = 1.0
    rms_eps: float = 1e-6
    attention_softcap: float | None = None
    final_softcap: float | None = None
    post_norms: bool = True
    qk_norm: bool = True
    quantisation: str | None = None

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

    @property
    def norm_sizes(self) -> dict[str, int]:
        """The size of each norm of a block."""
        sizes = {"attention_in": self.embed_dim, "mlp_in": self.embed_dim}
        if self.post_norms:
            sizes |= {"attention_out": self.embed_dim, "mlp_out": self.embed_dim}
        if self.qk_norm:
            sizes |= {"q_norm": self.head_dim, "k_norm": self.head_dim}
        return sizes
