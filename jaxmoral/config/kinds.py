"""Kinds of values that keys of a configuration have."""

from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "input should be a number")
    return value


Number = Annotated[float, BeforeValidator(_no_truth_value)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
PositiveFloat = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[Number, Field(gt=0, le=1e6)]
Bool = Annotated[bool, Field(strict=True)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[Number, Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
closed = pydantic.with_config(pydantic.ConfigDict(extra="forbid"))  # no unknown keys
