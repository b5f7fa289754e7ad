"""Numbers are told apart as NumPy does, counted or sorted."""

import numpy as np
import pytest

from fedsim.data.numbering import SPREAD, counted, places_among

STREAM = np.random.default_rng(0)
VALUES = {
    "small": STREAM.integers(0, 20, 50),
    "one value": np.full(5, 3),
    "as large as counted": np.array([SPREAD * 3 - 1, 0, 5]),
    "larger": np.array([SPREAD * 3, 0, 5]),
    "huge": STREAM.integers(0, 2**60, 50),
    "below 0": np.array([-4, 2, -4, 7]),
    "none": np.empty(0, np.int64),
}


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_as_numpy_tells(kind: str) -> None:
    values = VALUES[kind]
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    found = counted(values)
    assert found[0].tolist() == distinct.tolist()
    assert found[1].tolist() == counts.tolist()
    places = places_among(values)
    assert places.tolist() == inverse.tolist()
    assert places.dtype == np.int64
