"""Prints what each Gemma needs for an update of the quickstart's kind, from shapes alone.

    python scripts/size_table.py

Adapters have rank 64 on every linear layer, as the paper's, and are counted with gradients and
Adam. Activations are those of 570 tree nodes (16 prompts) in bfloat16. Sizes are in GiB.
"""

import dataclasses

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


def gemma(
    family: str, vocab: int, width: int, layers: int, heads: int, kv: int, head: int, mlp: int
) -> DecoderConfig:
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
        qk_norm=family == "gemma3",
    )


MODELS = {
    "Gemma 3 270M": gemma("gemma3", 262144, 640, 18, 4, 1, 256, 2048),
    "Gemma 3 1B": gemma("gemma3", 262144, 1152, 26, 4, 1, 256, 6912),
    "Gemma 2 2B": gemma("gemma2", 256000, 2304, 26, 8, 4, 256, 9216),
    "Gemma 3 4B": gemma("gemma3", 262208, 2560, 34, 8, 4, 256, 10240),
    "Gemma 2 9B": gemma("gemma2", 256000, 3584, 42, 16, 8, 256, 14336),
    "Gemma 3 12B": gemma("gemma3", 262208, 3840, 48, 16, 8, 256, 15360),
    "Gemma 2 27B": gemma("gemma2", 256000, 4608, 46, 32, 16, 128, 36864),
    "Gemma 3 27B": gemma("gemma3", 262208, 5376, 62, 32, 16, 128, 21504),
}


def main() -> None:
    print(
        "| model | parameters | LoRA, rank 64 | weights bf16 | int8 | NF4 | adapter, Adam |"
        " activations | total bf16 | total NF4 |"
    )
    print("|---" * 10 + "|")
    for name, config in MODELS.items():
        lora = Lora(64, 32.0, 0.0, tuple(config.linear_shapes))
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
