"""What is measured, by name; imports nothing, so that no device is taken."""

from typing import NamedTuple

_THINKING = ("--thinking.tokens", "32", "--thinking.thoughts", "4", "--model.max_nodes", "8192")
_MIXTURE = ("--mixture.labels", "words(20)", "--mixture.conditions", "2")
_NF4 = ("--model.quantisation", "nf4")


class Case(NamedTuple):
    """An update: of a model in `size_table.MODELS`, how many members, and flags."""

    model: str
    members: int = 1
    flags: tuple[str, ...] = ()


CASES = {
    "Gemma 3 270M": Case("Gemma 3 270M"),
    "Gemma 2 2B": Case("Gemma 2 2B"),
    "Gemma 2 2B, 20 members": Case("Gemma 2 2B", 20),
    "Gemma 2 2B, thinking": Case("Gemma 2 2B", flags=_THINKING),
    "Gemma 2 2B, mixture": Case("Gemma 2 2B", flags=_MIXTURE),
    "Gemma 2 2B, NF4": Case("Gemma 2 2B", flags=_NF4),
    "Gemma 3 4B": Case("Gemma 3 4B"),
    "Gemma 3 4B, thinking": Case("Gemma 3 4B", flags=_THINKING),
}
# The largest difference of a log-probability, and of a gradient relative to its norm; in bfloat16
# of what a device adds to the rounding that a CPU has too.
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (3e-2, 1e-1)}
UNJUDGED = ("gemma4-experts", "bfloat16")  # rounding changes which experts a token goes to
H100_FLOPS = 989e12  # published, bfloat16
EFFICIENCY = 0.5  # of a peak that updates are predicted to reach, as in scaling_model.py
ENOUGH = 0.95  # of the better move, and of legal answers, at the optimum
