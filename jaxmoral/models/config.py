"""The shape of a decoder of text: one description for all families."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

from jaxmoral.errors import UserError
from jaxmoral.models.foreign import shown
from jaxmoral.models.layers import Section, Stack, sections, stack_names

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
      family: what transformers calls it: "gemma", "gemma2", "gemma3", "gemma4", "llama", "mistral",
        "qwen2" or "qwen3".
      global_layers: for each layer whether it attends to everything; the others see a window of
        `sliding_window` tokens.
      rope_scale, rope_scale_local: positions are divided by it in global layers, and in the others.
      rope_ramp: which frequencies are not divided; None if all are.
      query_scale: what queries are multiplied by before the dot product with the keys.
      attention_softcap, final_softcap: scores or logits x become cap * tanh(x / cap); None for no
        cap.
      post_norms: whether a norm follows the attention and the MLP too.
      qk_norm: whether queries and keys are normalised.
      activation: of the MLP's gate, a name in `jaxmoral.models.block.ACTIVATIONS`.
      scaled_embedding: whether embeddings are multiplied by the root of their size.
      tied: whether the output head is the embedding.
      biases: the linear layers that have one, names in `linear_names`.
      quantisation: of the matrices, one of `jaxmoral.models.quantise.KINDS`, or None.
      head_dim_global, num_kv_heads_global: of the layers that attend to everything, where they have
        others.
      keys_are_values: whether those layers' values are their keys, before these are normalised.
      value_norm: whether values are normalised, without a scale.
      rope_share: of the rotary frequencies of those layers, the fastest that are not 0.
      layer_scalars: whether each layer's result is multiplied by a number of its own.
      num_shared: how many of the last layers take keys and values from the last layer of their kind
        that makes its own.
      mlp_dim_shared: of the layers that do.
      per_layer_dim: size of what each layer reads of each token beside the stream; 0 for nothing.
      num_experts, experts_per_token, expert_dim: of a mixture beside the MLP; 0 for none.
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
    head_dim_global: int | None = None
    num_kv_heads_global: int | None = None
    keys_are_values: bool = False
    value_norm: bool = False
    rope_share: float = 1.0
    layer_scalars: bool = False
    num_shared: int = 0
    mlp_dim_shared: int | None = None
    per_layer_dim: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_dim: int = 0

    @property
    def norm_offset(self) -> int:
        """What files leave out of the norms' scales."""
        return 1 if self.family in ("gemma", "gemma2", "gemma3") else 0

    @property
    def needs_bos(self) -> bool:
        """Whether every text begins with a BOS, whatever its tokenizer does."""
        return self.family.startswith("gemma")

    @functools.cached_property
    def stacks(self) -> dict[str, Stack]:
        """The layers by their shapes; one stack, named "", if all are alike."""
        shapes = [self._shapes(layer) for layer in range(self.num_layers)]
        shared = [not each.own_keys for each in shapes]
        names = stack_names(self.global_layers, shared, alike=len({*map(repr, shapes)}) == 1)
        return {
            name: shapes[names.index(name)]._replace(
                layers=tuple(layer for layer, other in enumerate(names) if other == name)
            )
            for name in dict.fromkeys(names)
        }

    @functools.cached_property
    def sections(self) -> tuple[Section, ...]:
        """The order in which the stacks' layers follow each other."""
        names = dict[int, str]()
        for name, stack in self.stacks.items():
            names |= dict.fromkeys(stack.layers, name)
        own = self.num_layers - self.num_shared
        order = [names[layer] for layer in range(self.num_layers)]
        return tuple(section for part in (order[:own], order[own:]) for section in sections(part))

    @property
    def linear_names(self) -> tuple[str, ...]:
        """The linear layers that some block has; LoRA can adapt any of them."""
        return tuple(
            dict.fromkeys(name for stack in self.stacks.values() for name in stack.linear_shapes)
        )

    @property
    def every_linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear layer of every block."""
        return [
            shape
            for stack in self.stacks.values()
            for shape in stack.linear_shapes.values()
            for _ in stack.layers
        ]

    @property
    def every_width(self) -> list[int]:
        """Size of each layer's queries, of all heads together."""
        return [
            self.num_heads * stack.head_dim for stack in self.stacks.values() for _ in stack.layers
        ]

    def _shapes(self, layer: int) -> Stack:
        """The shapes of one layer."""
        is_global, shared = self.global_layers[layer], layer >= self.num_layers - self.num_shared
        head_dim = self.head_dim_global if is_global else None
        kv_heads = self.num_kv_heads_global if is_global else None
        head_dim, kv_heads = head_dim or self.head_dim, kv_heads or self.num_kv_heads
        mlp_dim = (self.mlp_dim_shared if shared else None) or self.mlp_dim
        width, queries, keys = self.embed_dim, self.num_heads * head_dim, kv_heads * head_dim
        linear = {"q": (width, queries)}
        if not shared:
            linear["k"] = width, keys
            if not (is_global and self.keys_are_values):
                linear["v"] = width, keys
        linear |= {"o": (queries, width)}
        linear |= {"gate": (width, mlp_dim), "up": (width, mlp_dim), "down": (mlp_dim, width)}
        norms = {"attention_in": width, "mlp_in": width}
        if self.post_norms:
            norms |= {"attention_out": width, "mlp_out": width}
        if self.qk_norm:
            norms |= {"q_norm": head_dim} | ({} if shared else {"k_norm": head_dim})
        vectors = {f"{name}_bias": linear[name][1] for name in self.biases if name in linear}
        vectors |= {"layer_scalar": 1} if self.layer_scalars else {}
        experts: dict[str, tuple[int, int, int]] = {}
        if self.num_experts:
            count, size = self.num_experts, self.expert_dim
            linear["router"] = width, count
            norms |= dict.fromkeys(("router_in", "experts_in", "dense_out", "experts_out"), width)
            vectors["expert_scale"] = count
            experts = {"expand": (count, width, 2 * size), "shrink": (count, size, width)}
        if self.per_layer_dim:
            linear["layer_gate"] = width, self.per_layer_dim
            linear["layer_out"] = self.per_layer_dim, width
            norms["layer_norm"] = width
        return Stack(
            layers=(),
            head_dim=head_dim,
            num_kv_heads=kv_heads,
            own_keys=not shared,
            linear_shapes=linear,
            norm_sizes=norms,
            vector_sizes=vectors,
            expert_shapes=experts,
        )


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
    for name in ("head_dim_global", "num_kv_heads_global", "mlp_dim_shared"):
        value = getattr(config, name)
        check(value is None or (type(value) is int and 0 < value < 2**31), name)
    for name in ("num_shared", "per_layer_dim", "num_experts", "experts_per_token", "expert_dim"):
        value = getattr(config, name)
        check(type(value) is int and 0 <= value < 2**31, name)
    check(config.num_heads % config.num_kv_heads == 0, "num_kv_heads")
    check(config.num_heads % (config.num_kv_heads_global or 1) == 0, "num_kv_heads_global")
    check(config.head_dim % 2 == 0, "head_dim")
    check((config.head_dim_global or 0) % 2 == 0, "head_dim_global")
    own = config.global_layers[: config.num_layers - config.num_shared]
    shares = config.num_shared < config.num_layers and {*own} == {*config.global_layers}
    check(shares, "num_shared")
    check(0 <= config.rope_share <= 1, "rope_share")
    if config.num_experts:
        check(0 < config.experts_per_token <= config.num_experts, "experts_per_token")
        check(config.expert_dim > 0, "expert_dim")
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
