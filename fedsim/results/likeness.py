"""Which runs may be compared: those that share data, splits, clients and cohorts, seed by seed."""

import json
import math
from collections.abc import Sequence

import pandas as pd

from fedsim.results.reading import DIGESTS

WORDS = {
    "data": "other data",
    "validation": "another split of validation",
    "test": "another split of test",
    "clients": "other images at the clients",
    "cohorts": "other clients in the rounds",
}
SEED = "config.seed"


def unlike(runs: pd.DataFrame, per: Sequence[str] = ()) -> list[str]:
    """Return a line for each run that does not share what the first one with its seed, and values of ``per``, has.

    ``per``: keys of the config. A run without digests is named as well; runs that have not got so far are not.
    """
    if runs.empty:
        return []
    begun, found = runs[runs["rounds"] > 0], []
    for _, group in begun.groupby([SEED, *map(text_of, (begun[f"config.{key}"] for key in per))], sort=False):
        first = group.iloc[0]
        for _, run in group.iterrows():
            for key in DIGESTS:
                mine, other = run[f"sha256.{key}"], first[f"sha256.{key}"]
                if key == "cohorts" and (pd.isna(mine) or pd.isna(other)):
                    break  # of a run with a clock, or that hides them
                if pd.isna(mine):
                    found.append(f"{run['run']} has no digests of its data in partition.json")
                    break
                if mine != other:
                    found.append(f"{run['run']} has {WORDS[key]} than {first['run']} (seed {run[SEED]})")
                    break
    return found


def text_of(values: pd.Series) -> pd.Series:
    """Return a column of the config as texts, by which runs can be grouped; lists have no order or hash.

    A run without the key, since a section above it is null, has null.
    """
    return values.map(lambda value: json.dumps(None if is_missing(value) else value, default=str))


def is_missing(value: object) -> bool:
    """Whether pandas has filled a run's place in a column."""
    return isinstance(value, float) and math.isnan(value)
