"""The Dirichlet partition against numbers made by running DEeR's released code (7dd430e)."""

import numpy as np
import pytest

from fedsim.data.partition import dirichlet
from tests.golden.clip import below, load, tags

GOLDEN = load("deer_dirichlet")


@pytest.mark.parametrize("case", tags(GOLDEN, r"(case\d+)/"))
def test_same_indices_in_the_same_order_and_the_same_stream_afterwards(case: str) -> None:
    want = {key: value.numpy() for key, value in below(GOLDEN, f"{case}/").items()}
    stream = np.random.RandomState(int(want["randomstate_seed"]))
    parts = dirichlet(want["labels"], float(want["alpha"]), int(want["num_classes"]), int(want["n_workers"]), stream)
    assert [len(part) for part in parts] == want["sizes"].tolist()
    np.testing.assert_array_equal(np.concatenate(parts), want["indices_concat"])
    after = want["next_uniform_of_the_stream"]
    np.testing.assert_array_equal(stream.uniform(size=len(after)), after)
