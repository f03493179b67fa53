"""Kinds of values that keys of a configuration have."""

from typing import Annotated

import pydantic
from pydantic import Field

PositiveInt = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, le=1e6)]
Bool = Annotated[bool, Field(strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
closed = pydantic.with_config(pydantic.ConfigDict(extra="forbid"))  # no unknown keys
