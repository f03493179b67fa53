"""Measures the time and peak host memory of loading a checkpoint in Hugging Face layout.

    python scripts/benchmarks/load.py FOLDER [--dtype bfloat16] [--quantisation nf4]
    python scripts/benchmarks/load.py FOLDER --make gemma2-2b

With `--make` the folder is first filled with random bfloat16 weights of that model's shapes (the
tokenizer is not needed to measure). Peak memory counts what the process allocated, not pages of
the files, and is a multiple of the weights' final size.
"""

import argparse
import dataclasses
import json
import threading
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
import transformers

from jaxmoral.errors import UserError, run_command
from jaxmoral.models import hf_config, huggingface
from jaxmoral.models.load import assemble
from jaxmoral.models.tensor_names import block_tensors, other_tensors

# Sizes of google/gemma-2-2b and google/gemma-3-270m.
SHAPES = {
    "gemma2-2b": transformers.Gemma2Config(),
    "gemma3-270m": transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=2048,
    ),
}


def make(folder: Path, name: str) -> None:
    """Writes a random checkpoint, a shard a layer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[name].to_dict()))
    config = hf_config.read_config(folder)
    rng = np.random.default_rng(0)
    random = lambda *shape: rng.integers(0, 2**12, shape, np.uint16).view(ml_dtypes.bfloat16)
    index: dict[str, str] = {}

    def save(shard: str, tensors: dict[str, np.ndarray]) -> None:
        safetensors.numpy.save_file(tensors, folder / shard)
        index.update(dict.fromkeys(tensors, shard))

    embedding = random(config.vocab_size, config.embed_dim)
    others = {f"model.{stored}": shape for stored, shape in other_tensors(config).values()}
    top = {name: random(*shape) for name, shape in others.items()}
    save("top.safetensors", {"model.embed_tokens.weight": embedding} | top)
    for stack in config.stacks.values():
        shapes = dict(block_tensors(config, stack).values())
        for layer in stack.layers:
            prefix = f"model.layers.{layer}"
            parts = {f"{prefix}.{stored}": random(*shape) for stored, shape in shapes.items()}
            save(f"{layer}.safetensors", parts)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def allocated() -> int:
    """Bytes of anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise UserError("this system does not tell how much memory a process has allocated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--quantisation", choices=("int8", "nf4"))
    parser.add_argument("--make", choices=SHAPES)
    arguments = parser.parse_args()
    run_command(lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> None:
    if arguments.make:
        make(arguments.folder, arguments.make)
    config = hf_config.read_config(arguments.folder)
    config = dataclasses.replace(config, quantisation=arguments.quantisation)
    jax.block_until_ready(jax.numpy.zeros(1))
    before = peak = allocated()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, allocated())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    parts = huggingface.weights(arguments.folder, config)
    _, weights = assemble(config, parts, arguments.dtype)
    jax.block_until_ready(weights)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    final = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    print(
        f"{final / 2**30:.2f} GiB of weights in {seconds:.1f} s; peak host memory"
        f" {(peak - before) / final:.2f} x the final size"
    )


if __name__ == "__main__":
    main()
