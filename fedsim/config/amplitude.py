"""The section of a config that normalises the images' amplitudes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Words
from fedsim.config.mistakes import KeyedError


class AmplitudeNormConfig(Words):
    """HarmoFL's normalisation of the images' amplitudes to a running target, in front of the encoder."""

    form: Literal["paper", "released"] = Field(
        default="paper",
        description="released: as the published code, the mean alone, and momentum cut to a whole number.",
    )
    momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        default_factory=lambda seen: 0.0 if seen.get("form") == "released" else 0.1,
        description="Share of a batch's mean amplitude in the new target. Default: 0.1; released: 0, the other is 1.",
    )
    low_freq_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        description="Frequencies up to this share of the image's side are replaced; 1: all, 0: the mean alone.",
    )

    @model_validator(mode="after")
    def _released_has_no_window(self) -> Self:
        if self.form == "released" and self.momentum not in (0, 1):
            raise KeyedError("momentum", f"{self.momentum:g} with form: released", "0 or 1: the code cuts it to these")
        if self.form == "released" and self.low_freq_fraction != 1:
            raise KeyedError("low_freq_fraction", f"{self.low_freq_fraction:g} with form: released", "no such key")
        return self
