"""The section of a config about the simulated clock: clients' devices, and who of the clients the server waits for."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Count, Name, Positive, Text, Whole, Words
from fedsim.config.mistakes import KeyedError

Seconds = Annotated[float, Field(ge=0, le=1e6)]
Chance = Annotated[float, Field(gt=0, le=1)]
Risk = Annotated[float, Field(ge=0, lt=1)]
#: What the devices of a class have, and what the columns of a trace file are called beside ``client``.
DEVICE_KEYS = ("speed", "down_mbps", "up_mbps", "availability", "dropout")


class DeviceClass(Words):
    """A kind of device that a share of the clients has."""

    name: Name = Field(description="The class's name, in messages.")
    share: Positive = Field(default=1.0, description="Clients of the class, relative to the other classes' shares.")
    speed: Positive = Field(default=1.0, description="Examples per second, relative to a device of speed 1.")
    down_mbps: Positive | None = Field(default=None, description="Megabits (10^6) per second down; null: no time.")
    up_mbps: Positive | None = Field(default=None, description="Megabits (10^6) per second up; null: no time.")
    availability: Chance = Field(default=1.0, description="Probability that a client can be chosen in a round.")
    dropout: Risk = Field(default=0.0, description="Probability that a chosen client's update never arrives.")


class Constant(Words):
    """Old updates count like new ones."""

    name: Literal["constant"] = Field(description="1, however stale.")


class Polynomial(Words):
    """(1 + staleness) ** -exponent."""

    name: Literal["polynomial"] = Field(default="polynomial", description="(1 + staleness) ** -exponent.")
    exponent: Positive = Field(default=0.5, description="The exponent a; 0.5 is FedBuff's.")


class Hinge(Words):
    """1 up to ``after``, then 1 / (1 + slope (staleness - after))."""

    name: Literal["hinge"] = Field(description="1 up to after, then 1 / (1 + slope (staleness - after)).")
    slope: Positive = Field(default=10.0, description="How fast the weight falls; a.")
    after: Whole = Field(default=4, description="Staleness up to which nothing falls; b.")


Staleness = Annotated[Constant | Polynomial | Hinge, Field(discriminator="name")]


class Synchronous(Words):
    """Rounds that wait for the clients that were chosen, or for the first of them."""

    name: Literal["synchronous"] = Field(default="synchronous", description="Rounds that wait for their clients.")
    deadline_seconds: Positive | None = Field(
        default=None, description="Simulated seconds after which a round waits for nobody any more; null: for all."
    )
    over_selection: Annotated[float, Field(ge=1, le=100)] = Field(
        default=1.0,
        description="Clients chosen / clients.per_round. The first per_round that arrive count, others are late.",
    )


class FedBuff(Words):
    """Buffered asynchronous aggregation (Nguyen et al., AISTATS 2022); clients.per_round train at any time."""

    name: Literal["fedbuff"] = Field(description="The mean of the updates in a buffer, when it is full.")
    buffer_size: Count = Field(description="Updates in a full buffer, each of another client; K.")
    server_lr: Positive = Field(default=1.0, description="What the mean is multiplied with; eta_g.")
    staleness: Staleness = Field(default=Polynomial(), description="Weight of an update by its staleness.")
    max_staleness: Whole | None = Field(default=None, description="Staler updates are late, and not used; null: none.")


class FedAsync(Words):
    """Every update at once (Xie et al., 2019); clients.per_round train at any time."""

    name: Literal["fedasync"] = Field(description="Every client's model is mixed into the server's as it arrives.")
    mixing: Annotated[float, Field(gt=0, le=1)] = Field(description="The client's share of the new model; alpha.")
    staleness: Staleness = Field(default=Polynomial(), description="What mixing is multiplied with, by staleness.")
    max_staleness: Whole | None = Field(default=None, description="Staler updates are late, and not used; null: none.")

    @property
    def buffer_size(self) -> int:
        """A buffer of one."""
        return 1


Aggregation = Annotated[Synchronous | FedBuff | FedAsync, Field(discriminator="name")]


class ClockConfig(Words):
    """A simulated clock. A client takes examples * example_seconds / speed, and bytes * 8 / rate down and up."""

    example_seconds: Seconds = Field(description="Simulated seconds per training example on a device of speed 1.")
    aggregation: Aggregation = Field(default=Synchronous(), description="When the server goes on.")
    devices: Annotated[tuple[DeviceClass, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="A list of classes, drawn by their shares; null: devices of speed 1, always there."
    )
    trace: Text | None = Field(
        default=None,
        description=f"CSV file in place of devices, a row per client: columns client, {', '.join(DEVICE_KEYS)}.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.devices is not None and self.trace is not None:
            raise KeyedError("trace", "devices and a trace", "one of them; the other null")
        names = [device.name for device in self.devices or ()]
        if len(set(names)) < len(names):
            raise KeyedError("devices", f"names {names}", "a name of its own for each class")
        return self
