"""Compile time of an update by depth: layers in Gemma 4's pattern, one period of them and ten.

    python scripts/benchmarks/depth.py [--repeats 3]

Widths are tiny, which changes no program's size; nothing is read from a compilation cache.
"""

import argparse
import runpy
import tempfile
from pathlib import Path

import jax
import numpy as np
from update import show
from workers import ROOT, count_compilation

from jaxmoral import config as configs
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.resolve import resolve

PERIOD = 6  # five layers with a window, one without
PERIODS = {"one period": 1, "60 layers": 10}
WRITER = runpy.run_path(str(ROOT / "scripts" / "tiny_model.py"))


def like_31b(periods: int) -> dict:
    """Sizes of a tiny model with the layers of Gemma 4 31B: two head sizes, keys as values."""
    sharing = ("num_shared", "mlp_dim_shared", "per_layer_dim")
    sizes = {name: value for name, value in WRITER["SHARING"].items() if name not in sharing}
    pattern = (*[False] * (PERIOD - 1), True)
    return sizes | {
        "num_layers": PERIOD * periods,
        "global_layers": pattern * periods,
        "num_kv_heads": 2,
        "keys_are_values": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    spent = count_compilation()
    taken: dict[str, list[float]] = {name: [] for name in PERIODS}
    with tempfile.TemporaryDirectory() as scratch:
        agents = {}
        for name, periods in PERIODS.items():
            folder = Path(scratch) / name
            WRITER["write"](folder, **like_31b(periods))
            flags = ["--model.source", str(folder), "--prompt.labels", "[X,Y]"]
            config = resolve(configs.load(None, flags))
            agents[name] = config, make_agent(config)
        for _ in range(asked.repeats):
            for name, (config, agent) in agents.items():
                jax.clear_caches()
                before = spent()
                compile_update([(config, agent)])
                taken[name].append(spent() - before)
    one, many = (float(np.median(times)) for times in taken.values())
    names = " and ".join(PERIODS)
    show(
        f"compiling an update, {names}", f"{one:.1f} s, {many:.1f} s: {many / one:.2f}x", "<= 1.5x"
    )


if __name__ == "__main__":
    main()
