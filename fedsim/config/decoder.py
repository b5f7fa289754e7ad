"""The section of a config that puts a decoder for pixels on a vision transformer."""

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import Words


class LinearDecoderConfig(Words):
    """A linear layer over the tokens of the last block."""

    name: Literal["linear"] = Field(description="A linear layer over the last block's tokens.")


class UperNetLightConfig(Words):
    """A small pyramid over the tokens of four blocks."""

    name: Literal["upernet_light"] = Field(description="A small pyramid over the tokens of four blocks.")
    width: Annotated[int, Field(ge=1, le=1024)] = Field(default=64, description="Channels of each of its maps.")


DecoderConfig = Annotated[LinearDecoderConfig | UperNetLightConfig, Field(discriminator="name")]
