"""The section of a config about differential privacy and secure aggregation."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Positive, Share, Words
from fedsim.config.mistakes import KeyedError

Multiplier = Annotated[float, Field(ge=0, le=1e6)]


class QuantileClipping(Words):
    """A bound that follows a quantile of the clients' norms (Andrew et al., NeurIPS 2021)."""

    name: Literal["quantile"] = Field(description="The bound follows a quantile of the clients' norms.")
    quantile: Share = Field(default=0.5, description="Share of clients that the bound is to leave unclipped.")
    rate: Positive = Field(default=0.2, description="Step of the bound's logarithm per phase.")
    count_noise: Positive = Field(
        description="Standard deviation of the noise on the number of unclipped clients; it is charged, too."
    )


class FlatClipping(Words):
    """One norm over all tensors of an update."""

    name: Literal["flat"] = Field(default="flat", description="The norm over the whole update.")


class TensorClipping(Words):
    """Every tensor by itself."""

    name: Literal["per_tensor"] = Field(
        description="Every one of T tensors to bound / sqrt(T), so that the whole update stays within the bound."
    )


Clipping = Annotated[FlatClipping | TensorClipping | QuantileClipping, Field(discriminator="name")]


class ClientLevel(Words):
    """A client's whole update is protected (McMahan et al., ICLR 2018)."""

    name: Literal["client"] = Field(description="Protects a client's whole update.")
    bound: Positive = Field(description="Largest norm of an update; quantile starts here.")
    clipping: Clipping = Field(default=FlatClipping(), description="What is held within the bound.")
    noise: Literal["central", "distributed", "local"] = Field(
        default="central",
        description="Who adds noise: the server; every client a share, so that the sum has it all; every client all.",
    )

    @model_validator(mode="after")
    def _one_drawer(self) -> Self:
        if isinstance(self.clipping, QuantileClipping) and self.noise != "central":
            raise KeyedError("clipping.name", f"quantile with noise: {self.noise}", "flat, or central noise")
        return self


class NoiseRegulator(Words):
    """DEeR's noise for one LoRA factor, shaped by the other (Zhu et al., IEEE TMI 2024)."""

    name: Literal["noise_regulator"] = Field(description="DEeR's noise on one LoRA factor, shaped by the other.")
    bound: Positive = Field(description="Largest norm of an update; of every matrix of it in the released form.")
    form: Literal["whitened", "released"] = Field(
        default="whitened",
        description="whitened: clips in the geometry of the noise, so that the sensitivity is the bound; released: "
        "clips every matrix as it is, as the paper's code does, whose sensitivity depends on the factors.",
    )
    regulated: bool = Field(
        default=True, description="false: plain noise on every matrix, the released form without its regulator."
    )

    @model_validator(mode="after")
    def _plain_as_released(self) -> Self:
        if not self.regulated and self.form == "whitened":
            raise KeyedError("regulated", "false with form: whitened", "true, or the mechanism client")
        return self


class RecordLevel(Words):
    """Single images are protected: DP-SGD inside every client (Abadi et al., CCS 2016)."""

    name: Literal["record"] = Field(description="Protects single images: DP-SGD inside every client.")
    bound: Positive = Field(description="Largest norm of an image's gradient.")


Mechanism = Annotated[ClientLevel | NoiseRegulator | RecordLevel, Field(discriminator="name")]


class SecureAggregationConfig(Words):
    """Pairwise masks over what clients send (Bonawitz et al., CCS 2017)."""

    threshold: Annotated[float, Field(gt=0.5, le=1)] = Field(
        default=2 / 3, description="Share of a round's clients that must stay for the sum to be unmasked."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Probability that a client is lost after it has masked its update."
    )

    def fewest(self, num_clients: int) -> int:
        """Return how many of a round's clients must stay."""
        # Not one more where the product is a whole number but for rounding.
        return math.ceil(self.threshold * num_clients - 1e-9)


class PrivacyConfig(Words):
    """What protects the clients. The statement is about ``delta``, ``adjacency`` and all rounds together."""

    mechanism: Mechanism | None = Field(default=None, description="What is protected and how; null: nothing.")
    noise_multiplier: Multiplier | None = Field(
        default=None, description="Standard deviation of the noise over the sensitivity to one more client or image."
    )
    epsilon: Positive | None = Field(
        default=None,
        description="Most that epsilon may be after the last round; from it the noise multiplier is solved if null.",
    )
    delta: Share | None = Field(default=None, description="Delta of the statement; below one over the clients.")
    adjacency: Literal["add_remove", "replace_one"] = Field(
        default="add_remove", description="Which data sets are neighbours: one more or less, or one replaced."
    )
    accountant: Literal["pld", "rdp"] = Field(
        default="pld", description="Privacy loss distributions, or Rényi divergences to compare."
    )
    budget: Positive | None = Field(default=None, description="The run ends before a round that would exceed it.")
    observe: bool = Field(
        default=True,
        description="Whether the log has what only a simulation can see: losses, norms and scores of single clients, "
        "and who takes part in a round.",
    )
    secure_aggregation: SecureAggregationConfig | None = Field(
        default=None, description="Masks that cancel in the sum; null: the server sees every client's message."
    )

    @property
    def sums_alone(self) -> bool:
        """Whether the server may read sums over clients, and no single client's message."""
        return self.secure_aggregation is not None or isinstance(self.mechanism, ClientLevel | NoiseRegulator)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        mechanism = self.mechanism
        if mechanism is None:
            for key in ("noise_multiplier", "epsilon", "delta", "budget"):
                if getattr(self, key) is not None:
                    raise KeyedError(key, f"{getattr(self, key):g} without a mechanism", "privacy.mechanism, or null")
            if self.secure_aggregation is None:
                raise KeyedError("mechanism", "null without secure_aggregation", "one of them, or privacy: null")
            return self
        if self.noise_multiplier is None and self.epsilon is None:
            raise KeyedError("epsilon", "neither noise_multiplier nor epsilon", "one of them")
        if self.delta is None:
            raise KeyedError("delta", "null", "a number below one over the number of clients, such as 1e-5")
        if isinstance(mechanism, ClientLevel) and mechanism.noise == "distributed" and self.secure_aggregation is None:
            found = "distributed without secure_aggregation: the server would see each client's share of noise alone"
            raise KeyedError("mechanism.noise", found, "secure_aggregation: {}, central or local")
        if isinstance(mechanism, RecordLevel) and self.adjacency == "replace_one":
            raise KeyedError("adjacency", "replace_one with record", "add_remove: batches are Poisson samples")
        return self
