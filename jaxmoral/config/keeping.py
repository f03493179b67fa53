"""Keys of what training keeps beside its reward, and of what takes a reward's place."""

import dataclasses

from jaxmoral.config.kinds import NonNegative, PositiveInt, closed


@closed
@dataclasses.dataclass(frozen=True)
class DistilConfig:
    """Self-distillation, if it is the `objective`; see `jaxmoral.learning.distil`.

    Attributes:
      persona: behind which the base is the teacher: a name in `jaxmoral/language/personas`, or the
        path of a text that goes first.
    """

    persona: str = "none"


@closed
@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """The base's own words, on which training keeps the agent; see `jaxmoral.learning.anchor`.

    Attributes:
      coef: weight of KL(base || policy) in reward units per nat a token; 0 for no anchor.
      tokens: about how many the base writes when a run starts, drawn from the seed.
      at_once: about how many of them an update reads, in turns; its cost grows with these.
    """

    coef: NonNegative = 0.0
    tokens: PositiveInt = 256
    at_once: PositiveInt = 64
