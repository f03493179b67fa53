"""The shape of a decoder of text: one description for all families."""

import dataclasses
from typing import NamedTuple


class Ramp(NamedTuple):
    """Which rotary frequencies a scaling of type `llama3` leaves as they are.

    A frequency that turns `high` times or more within `length` positions is kept, one that turns
    `low` times or less is divided by the scale, and between them the two are mixed.
    """

    low: float
    high: float
    length: float


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder; what has a default has the value of Gemma's families.

    Attributes:
      family: what transformers calls it: "gemma", "gemma2", "gemma3", "llama", "mistral", "qwen2"
        or "qwen3".
      global_layers: for each layer whether it attends to everything; the others see a window of
        `sliding_window` tokens.
      rope_scale, rope_scale_local: positions are divided by it in global layers, and in the others.
      rope_ramp: which frequencies are not divided; None if all are.
      query_scale: what queries are multiplied by before the dot product with the keys.
      attention_softcap, final_softcap: scores or logits x become cap * tanh(x / cap); None for no
        cap.
      post_norms: whether a norm follows the attention and the MLP too.
      qk_norm: whether queries and keys are normalised.
      activation: of the MLP's gate, a name in `jaxmoral.models.model.ACTIVATIONS`.
      scaled_embedding: whether embeddings are multiplied by the root of their size.
      tied: whether the output head is the embedding.
      biases: the linear layers that have one, names in `linear_shapes`.
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
    rope_ramp: Ramp | None = None
    activation: str = "gelu_tanh"
    scaled_embedding: bool = True
    tied: bool = True
    biases: tuple[str, ...] = ()
    quantisation: str | None = None

    @property
    def norm_offset(self) -> int:
        """What files leave out of the norms' scales."""
        return 1 if self.family in ("gemma", "gemma2", "gemma3") else 0

    @property
    def needs_bos(self) -> bool:
        """Whether every text begins with a BOS, whatever its tokenizer does."""
        return self.family.startswith("gemma")

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
