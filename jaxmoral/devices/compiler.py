"""Options for the compiler that depend on what a program is for."""

from collections.abc import Callable
from typing import Any

import jax

from jaxmoral.devices.mesh import Layout

Options = dict[str, str | bool]

# On a CPU steps that take all cores are faster in turns than side by side, and what runs once and
# takes no time is not worth much compiling.
OFTEN: Options = {}
if jax.__version_info__[:2] == (0, 10):  # a version that does not know an option refuses it
    OFTEN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
ONCE: Options = {"xla_backend_optimization_level": "0"}


def on_cpu(options: Options) -> Options:
    """These options if the program is compiled for a CPU."""
    return options if jax.default_backend() == "cpu" else {}


def jit_often(function: Callable[..., Any], layout: Layout) -> Any:
    """The function compiled for many calls; every device of the layout gets its results."""
    return jax.jit(function, out_shardings=layout.sharding(), compiler_options=on_cpu(OFTEN))
