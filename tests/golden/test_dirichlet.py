"""The Dirichlet partition against numbers made by running DEeR's released code (7dd430e)."""

from pathlib import Path

import numpy as np
import pytest

from fedsim.data.partition import dirichlet

GOLDEN = Path(__file__).parent / "deer_dirichlet.npz"


@pytest.mark.parametrize("case", range(4))
def test_same_indices_in_the_same_order_and_the_same_stream_afterwards(case: int) -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        want = {key.removeprefix(f"case{case}/"): golden[key] for key in golden.files if key.startswith(f"case{case}/")}
    stream = np.random.RandomState(int(want["randomstate_seed"]))
    parts = dirichlet(want["labels"], float(want["alpha"]), int(want["num_classes"]), int(want["n_workers"]), stream)
    assert [len(part) for part in parts] == want["sizes"].tolist()
    np.testing.assert_array_equal(np.concatenate(parts), want["indices_concat"])
    np.testing.assert_array_equal(stream.uniform(size=3), want["next_uniform_of_the_stream"])
