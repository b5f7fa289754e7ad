"""Partitions by the names that flwr-datasets has for its partitioners, as far as they are one of ours.

A config keeps our own words. What is not the same is refused: images that nobody gets, sizes by the client's number.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedsim.config.mistakes import KeyedError, nearest, show

ENDING = "Partitioner"


class Same(NamedTuple):
    """One of our partitions: its words, theirs by ours, what theirs has as a default, and words that it cannot have."""

    name: str
    keys: Mapping[str, str] = {}
    defaults: Mapping[str, Any] = {}
    instead: Mapping[str, str] = {}


#: Words of all partitioners that are said elsewhere here.
ELSEWHERE = {
    "num_partitions": "clients.count in its place",
    "partition_by": "no such key: it goes by the label",
    "seed": "the run's seed in its place",
    "shuffle": "train.shuffle in its place",
}
SAME = {
    "IidPartitioner": Same("iid"),
    "DirichletPartitioner": Same(
        "dirichlet",
        {"alpha": "alpha", "min_partition_size": "min_size"},
        {"min_partition_size": 10},
        {"self_balancing": "no such key: no client is passed over once it has its share"},
    ),
    "ShardPartitioner": Same(
        "shards",
        {"num_shards_per_partition": "per_client"},
        {},
        dict.fromkeys(
            ("shard_size", "keep_incomplete_shard"), "num_shards_per_partition alone: all images are dealt out"
        ),
    ),
    "NaturalIdPartitioner": Same("column", {}, {}, {"partition_by": "data.columns.client in its place"}),
}
OTHERS = {
    "PathologicalPartitioner": "diversity, in which a class may not be left to nobody",
    "GroupedNaturalIdPartitioner": "column, with one name for each group",
    "InnerDirichletPartitioner": "dirichlet, in which sizes follow from the shares",
    **dict.fromkeys(
        (f"{kind}{ENDING}" for kind in ("Size", "Linear", "Square", "Exponential", "IdToSizeFnc", "Distribution")),
        "file, which says what each client has",
    ),
    **dict.fromkeys(
        (f"{kind}{ENDING}" for kind in ("Continuous", "VerticalEven", "VerticalSize")), "another partition"
    ),
}


def ours(partition: object) -> object:
    """Return a section about a partition in our words, another as it is.

    KeyedError, with a key below ``partition``, for a partitioner that is none of ours, and for words that have no
    meaning here.
    """
    name = partition.get("name") if isinstance(partition, Mapping) else None
    if not isinstance(partition, Mapping) or not isinstance(name, str) or not name.endswith(ENDING):
        return partition
    if name not in SAME:
        raise KeyedError("partition.name", name, OTHERS.get(name) or nearest(name, [*SAME]))
    same = SAME[name]
    given = {key: value for key, value in partition.items() if key != "name"}
    for key, value in given.items():
        if key not in same.keys:
            expected = (ELSEWHERE | dict(same.instead)).get(key) or nearest(key, same.keys)
            raise KeyedError(f"partition.{key}", f"{show(value)} with name: {name}", expected)
    return {"name": same.name} | {same.keys[key]: value for key, value in (dict(same.defaults) | given).items()}


def with_their_names(schema: dict[str, Any]) -> None:
    """Let a schema of partitions take theirs too, whose words it does not look at."""
    theirs = {
        "type": "object",
        "properties": {"name": {"description": "A partitioner of flwr-datasets.", "enum": list(SAME)}},
        "required": ["name"],
    }
    whole = {key: schema.pop(key) for key in ("oneOf", "discriminator")}
    schema["anyOf"] = [whole, theirs]
