"""The sections of a config that say how the training images are divided among the clients."""

from typing import Annotated, Literal

from pydantic import Field

from fedsim.config.base import Count, Text, Whole, Words


class IidPartition(Words):
    """Training images dealt out at random, in equal numbers."""

    name: Literal["iid"] = Field(description="Images dealt out at random.")


class DirichletPartition(Words):
    """Each class divided by a Dirichlet draw: the smaller alpha, the more the clients differ."""

    name: Literal["dirichlet"] = Field(description="Each class divided by a Dirichlet draw.")
    alpha: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        description="Concentration; 0.1 is strongly uneven, 100 nearly iid."
    )
    form: Literal["paper", "released"] = Field(
        default="paper",
        description="How shares become counts. paper: a count's mean is its share; released: as DEeR's code, every "
        "count rounded by itself, the rest to the last client.",
    )
    min_size: Whole = Field(default=0, description="Fewest images a client may have; drawn again until it holds.")


class ShardsPartition(Words):
    """Images sorted by label, cut into shards; each client gets some."""

    name: Literal["shards"] = Field(description="Label-sorted shards.")
    per_client: Count = Field(description="Shards of each client.")


class DiversityPartition(Words):
    """Each client has images of so many classes, every class dealt out evenly among the clients that have it."""

    name: Literal["diversity"] = Field(description="A share of the classes for each client.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        description="Classes of a client / all classes, rounded down, one at least; 1: all classes for everybody."
    )


class SitesPartition(Words):
    """The data set's natural sites are the clients."""

    name: Literal["sites"] = Field(description="Natural sites of the data set.")


class ColumnPartition(Words):
    """A column of the table says whose each row is."""

    name: Literal["column"] = Field(description="One client per value of data.columns.client.")


class FilePartition(Words):
    """A JSON file says which images each client has."""

    name: Literal["file"] = Field(description="Read from a JSON file.")
    path: Text = Field(
        description='JSON file {"clients": [[index, ...], ...]}: each client\'s training images, by their index in '
        'images.csv. Beside it "val" and "test" of the same form: its own images of these splits.'
    )


PartitionConfig = Annotated[
    IidPartition
    | DirichletPartition
    | ShardsPartition
    | DiversityPartition
    | SitesPartition
    | ColumnPartition
    | FilePartition,
    Field(discriminator="name"),
]
