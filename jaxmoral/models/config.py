"""The shape of a decoder of text: one description for all families."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

from jaxmoral.errors import UserError
from jaxmoral.models.foreign import shown

_POSITIVE = (
    *("query_scale", "rope_base_global", "rope_base_local", "rope_scale", "rope_scale_local"),
    "rms_eps",
)
MAX_LAYERS = 1000


class Ramp(NamedTuple):
    """Which rotary frequencies a scaling of type `llama3` leaves as they are.

    A frequency that turns `high` times or more within `length` positions is kept, one that turns
    `low` times or less is divided by the scale, and between them the two are mixed.
    """

    low: float
    high: float
    length: float

    def divisors(self, frequencies: Any, scale: Any) -> Any:
        """What frequencies `[..., head_dim / 2]` (radians a position) are divided by."""
        turns = frequencies * (self.length / (2 * math.pi))
        kept = ((turns - self.low) / (self.high - self.low)).clip(0, 1)
        return 1 / (kept + (1 - kept) / scale)


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


def from_json(sizes: dict[str, Any]) -> DecoderConfig:
    """A configuration from its fields, of which JSON has turned tuples into lists.

    Those that an earlier version did not write have their defaults.
    """
    ramp = sizes.get("rope_ramp")
    return DecoderConfig(
        **sizes
        | {
            "global_layers": tuple(sizes["global_layers"]),
            "biases": tuple(sizes.get("biases", ())),
            "rope_ramp": None if ramp is None else Ramp(*ramp),
        }
    )


def biased_layers(family: str, attention: bool, mlp: bool) -> tuple[str, ...]:
    """The linear layers with a bias, if those of the attention or the MLP may have one."""
    if family == "qwen2":
        return "q", "k", "v"
    return (("q", "k", "v", "o") if attention else ()) + (("gate", "up", "down") if mlp else ())


def check_config(config: DecoderConfig, path: Path) -> DecoderConfig:
    """The configuration; raises UserError if no model can have its sizes and constants."""

    def check(fine: bool, name: str) -> None:
        if not fine:
            value = shown(getattr(config, name))
            raise UserError(f"model: {path} is damaged ({name} cannot be {value})")

    sizes = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    for name in (*sizes, "mlp_dim", "sliding_window"):
        value = getattr(config, name)
        check(type(value) is int and 0 < value < 2**31, name)
    check(config.num_layers <= MAX_LAYERS, "num_layers")
    check(config.num_heads % config.num_kv_heads == 0, "num_kv_heads")
    check(config.head_dim % 2 == 0, "head_dim")
    check(len(config.global_layers) == config.num_layers, "global_layers")
    if config.rope_ramp is not None:
        low, high, length = config.rope_ramp
        check(0 < low < high < math.inf and 0 < length < math.inf, "rope_ramp")
    for name in _POSITIVE:
        check(_is_positive(getattr(config, name)), name)
    for name in ("attention_softcap", "final_softcap"):
        value = getattr(config, name)
        check(value is None or _is_positive(value), name)
    return config


def _is_positive(value: Any) -> bool:
    return type(value) is float and 0 < value < math.inf
