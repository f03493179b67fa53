"""How tests compile: with plain emitters, and with few optimisations where little is computed.

XLA's emitters of fused operations take more time than they save in a test, and give way to its
older ones. What computes little takes a fifth of a user's time then, the real model's updates a
fifth less of compiling and running together. Programs, of which there are thousands, are lowered in
one context, which takes 7 ms to make, and do not say which line an operation comes from.
"""

from functools import cache

import jax
from jax._src import compiler
from jax._src.interpreters import mlir

PLAIN: dict[str, bool | int] = {"xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__[:2] == (0, 10):  # later versions have but one kind of emitters
    PLAIN["xla_cpu_use_fusion_emitters"] = False
_get_compile_options = compiler.get_compile_options


def compiles_quickly() -> bool:
    """Whether this process compiles with few optimisations."""
    return jax.config.read("jax_disable_most_optimizations")


def compile_quickly(on: bool) -> None:
    """Compiles with few optimisations from here on, or with all."""
    jax.config.update("jax_disable_most_optimizations", on)


def _options(*sizes, env_options_overrides=None, **named):
    overrides = PLAIN | (env_options_overrides or {})
    return _get_compile_options(*sizes, env_options_overrides=overrides, **named)


compiler.get_compile_options = _options
mlir.make_ir_context = cache(mlir.make_ir_context)
jax.config.update("jax_traceback_in_locations_limit", 0)
