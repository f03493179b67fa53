"""Keys of what there is before anything is learned: the model, its adapter, the devices."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from jaxmoral.config.kinds import Bool, PositiveFloat, PositiveInt, closed

LinearName = Literal["q", "k", "v", "o", "gate", "up", "down", "router", "layer_gate", "layer_out"]


@closed
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which policy is trained.

    Attributes:
      source: a packaged model's name, the path of a GGUF file or of a folder in Hugging Face
        layout, a hub id "owner/name" or "owner/name@revision", or "tabular" for free logits per
        prompt.
      sha256: the digest the model must have (see `jaxmoral.models.load.LoadedModel`); filled in
        when a run starts.
      dtype: of the frozen weights; "auto" is float32 on CPU and bfloat16 on accelerators.
      quantisation: of the frozen matrices: 8-bit integers or 4-bit NF4 instead of `dtype`.
      remat: what the backward pass recomputes instead of finding it in memory: nothing ("none"),
        what is cheap to make from the matrix products ("elementwise"), or whole blocks ("block").
      max_nodes: of one prompt tree; more prompts make several, one after the other. Activations of
        so many nodes are kept for the backward pass, those of more are made again.
      max_logits: how many logits are in memory at once, in millions; more are made in parts.
    """

    source: str = "gemma3-270m"
    sha256: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantisation: Literal["none", "int8", "nf4"] = "none"
    remat: Literal["none", "elementwise", "block"] = "elementwise"
    max_nodes: PositiveInt = 4096
    max_logits: PositiveInt = 128


@closed
@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapter; see `jaxmoral.models.lora.Lora`.

    Attributes:
      adapter: the folder of a PEFT adapter, or of a run on the same base (its newest checkpoint;
        FOLDER@40 or FOLDER@best another), to start from; it then decides rank, alpha, targets and
        rank_stabilised.
      rank: of the two matrices that are added to a linear layer.
      alpha: the product of the two is multiplied by alpha / rank.
      dropout: share of an adapter's inputs that are left out while gradients are taken; at the
        token level, as in the paper, only while answers are sampled (`ppo.sample_with_dropout`).
      targets: the linear layers that have an adapter.
      rank_stabilised: the product is multiplied by alpha / sqrt(rank) instead.
    """

    adapter: str | None = None
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[LinearName, ...], Field(min_length=1)] = (
        "q",
        "k",
        "v",
        "o",
        "gate",
        "up",
        "down",
    )
    rank_stabilised: Bool = False


@closed
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many parts the devices are used in; see `jaxmoral.devices.mesh`. What is null is chosen.

    Attributes:
      data: places that compute members, conditions or nodes of the tree side by side.
      fsdp: the same, and the frozen weights are split over them.
      tensor: parts of every layer.
    """

    data: PositiveInt | None = None
    fsdp: PositiveInt | None = None
    tensor: PositiveInt | None = None
