"""Prints what each model needs for an update of the quickstart's kind, from shapes alone.

    python scripts/size_table.py

Adapters have rank 64 on every linear layer, as the paper's, and are counted with gradients and
Adam. Activations are those of 570 tree nodes (16 prompts) in bfloat16. Sizes are in GiB. What is
only looked up, Gemma 4's per-layer embeddings, is among the parameters and in no memory.
"""

import dataclasses
from typing import Any

from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.lora import Lora
from jaxmoral.models.quantise import KINDS
from jaxmoral.models.sizes import (
    activation_bytes,
    adapter_bytes,
    num_adapter_parameters,
    num_parameters,
    weight_bytes,
)

NUM_NODES, NUM_KEYS, NUM_ROWS = 570, 192, 48
GIB = 2**30


def alike(
    family: str, vocab: int, width: int, layers: int, heads: int, kv: int, head: int, mlp: int
) -> DecoderConfig:
    """A model whose layers have one shape."""
    is_gemma = family.startswith("gemma")
    return DecoderConfig(
        family=family,
        vocab_size=vocab,
        embed_dim=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head,
        mlp_dim=mlp,
        sliding_window=4096,
        global_layers=(True,) * layers,
        query_scale=head**-0.5,
        post_norms=is_gemma,
        qk_norm=family in ("gemma3", "qwen3"),
        tied=is_gemma or width < 4096,
    )


def gemma4(width: int, layers: int, heads: int, kv: int, mlp: int, **more: Any) -> DecoderConfig:
    """A Gemma 4, by default with five layers with a window to one without."""
    period = more.pop("period", 6)
    return DecoderConfig(
        family="gemma4",
        vocab_size=262144,
        embed_dim=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=256,
        mlp_dim=mlp,
        sliding_window=1024,
        global_layers=tuple((layer + 1) % period == 0 for layer in range(layers)),
        query_scale=1.0,
        head_dim_global=512,
        value_norm=True,
        layer_scalars=True,
        **more,
    )


def keys_as_values(kv: int) -> dict[str, Any]:
    """What is different in the global layers of the larger Gemma 4."""
    return {"keys_are_values": True, "num_kv_heads_global": kv}


EXPERTS = {"num_experts": 128, "experts_per_token": 8, "expert_dim": 704}
MODELS = {
    "Gemma 3 270M": alike("gemma3", 262144, 640, 18, 4, 1, 256, 2048),
    "Gemma 3 1B": alike("gemma3", 262144, 1152, 26, 4, 1, 256, 6912),
    "Gemma 2 2B": alike("gemma2", 256000, 2304, 26, 8, 4, 256, 9216),
    "Gemma 3 4B": alike("gemma3", 262208, 2560, 34, 8, 4, 256, 10240),
    "Gemma 2 9B": alike("gemma2", 256000, 3584, 42, 16, 8, 256, 14336),
    "Gemma 3 12B": alike("gemma3", 262208, 3840, 48, 16, 8, 256, 15360),
    "Gemma 2 27B": alike("gemma2", 256000, 4608, 46, 32, 16, 128, 36864),
    "Gemma 3 27B": alike("gemma3", 262208, 5376, 62, 32, 16, 128, 21504),
    "Gemma 4 E2B": gemma4(
        *(1536, 35, 8, 1, 6144), period=5, num_shared=20, mlp_dim_shared=12288, per_layer_dim=256
    ),
    "Gemma 4 E4B": gemma4(2560, 42, 8, 2, 10240, num_shared=18, per_layer_dim=256),
    "Gemma 4 12B": gemma4(3840, 48, 16, 8, 15360, **keys_as_values(1)),
    "Gemma 4 26B-A4B": gemma4(2816, 30, 16, 8, 2112, **keys_as_values(2), **EXPERTS),
    "Gemma 4 31B": gemma4(5376, 60, 32, 16, 21504, **keys_as_values(4)),
    "Qwen3 0.6B": alike("qwen3", 151936, 1024, 28, 16, 8, 128, 3072),
    "Qwen3 1.7B": alike("qwen3", 151936, 2048, 28, 16, 8, 128, 6144),
    "Qwen3 4B": alike("qwen3", 151936, 2560, 36, 32, 8, 128, 9728),
    "Qwen3 8B": alike("qwen3", 151936, 4096, 36, 32, 8, 128, 12288),
    "Qwen3 14B": alike("qwen3", 151936, 5120, 40, 40, 8, 128, 17408),
    "Qwen3 32B": alike("qwen3", 151936, 5120, 64, 64, 8, 128, 25600),
    "Llama 3.1 8B": alike("llama", 128256, 4096, 32, 32, 8, 128, 14336),
    "Llama 3.1 70B": alike("llama", 128256, 8192, 80, 64, 8, 128, 28672),
}


def main() -> None:
    print(
        "| model | parameters | LoRA, rank 64 | weights bf16 | int8 | NF4 | adapter, Adam |"
        " activations | total bf16 | total NF4 |"
    )
    print("|---" * 10 + "|")
    for name, config in MODELS.items():
        lora = Lora(64, 32.0, 0.0, config.linear_names)
        parameters = num_parameters(config)
        adapter = num_adapter_parameters(config, lora)
        weights = [
            weight_bytes(dataclasses.replace(config, quantisation=kind), 2)
            for kind in (None, *KINDS)
        ]
        logits = NUM_ROWS * config.vocab_size
        rest = (
            sum(adapter_bytes(config, lora, False)),
            activation_bytes(config, lora, (NUM_NODES, NUM_KEYS), logits, 2, "elementwise"),
        )
        totals = (weights[0] + sum(rest), weights[-1] + sum(rest))
        cells = " | ".join(f"{part / GIB:.1f}" for part in (*weights, *rest, *totals))
        print(f"| {name} | {parameters / 1e6:,.0f} M | {adapter / 1e6:.1f} M | {cells} |")


if __name__ == "__main__":
    main()
