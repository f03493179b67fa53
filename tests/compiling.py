"""How tests compile: with few optimisations and plain emitters, in a fifth of a user's time.

Importing it changes nothing where `jax_disable_most_optimizations` is off. Where it is on, XLA's
emitters of fused operations, which take most of the time that is left, give way to its older ones.
"""

import jax
from jax._src import compiler

PLAIN: dict[str, bool | int] = {"xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__[:2] == (0, 10):  # later versions have but one kind of emitters
    PLAIN["xla_cpu_use_fusion_emitters"] = False
_get_compile_options = compiler.get_compile_options


def compiles_quickly() -> bool:
    """Whether this process compiles as tests do."""
    return jax.config.read("jax_disable_most_optimizations")


def compile_quickly(on: bool) -> None:
    """Compiles as tests do from here on, or as users do."""
    jax.config.update("jax_disable_most_optimizations", on)


def _options(*sizes, env_options_overrides=None, **named):
    if compiles_quickly():
        env_options_overrides = PLAIN | (env_options_overrides or {})
    return _get_compile_options(*sizes, env_options_overrides=env_options_overrides, **named)


compiler.get_compile_options = _options
