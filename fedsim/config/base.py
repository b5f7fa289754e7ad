"""The base of all config sections, and the values that their keys take.

All sections are frozen and refuse unknown keys. Types are strict: "5" is no number, true is no integer, 1 is a
float, nan and inf are nothing. What single fields cannot say (two keys that exclude each other) is checked by
the validators below them, so that a ``Config`` that exists can be run.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]
# A library that makes its network from random weights takes no more bits of a seed.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
# Also a folder's, which neither "." nor ".." can be.
Name = Annotated[str, Field(pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]
Scalar = bool | int | float | str
Ranks = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
Layers = Annotated[tuple[Whole, ...], Field(strict=False, min_length=1)]


class Words(BaseModel):
    """Base of every section: immutable, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
