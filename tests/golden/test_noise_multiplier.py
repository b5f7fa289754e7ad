"""DEeR's noise multiplier against numbers made by running its released code (7dd430e) with opacus 1.4.1."""

import pytest

from fedsim.privacy import deer_release
from tests.golden.clip import below, load, load_words, tags

GOLDEN = load("deer_noise_multiplier")
COLUMNS = load_words("deer_noise_multiplier")["args_columns"]


@pytest.mark.parametrize("case", tags(GOLDEN, r"(case\d+)/"))
def test_the_same_multiplier_to_the_last_bit(case: str) -> None:
    want = {key: value.tolist() for key, value in below(GOLDEN, f"{case}/").items()}
    named = dict(zip((name.split("=")[0].split()[-1] for name in COLUMNS), want["args"], strict=True))
    rounds, epochs, batch_size = named["T"], named["E"], named["batch_size"]
    sizes = want["client_data_sizes"]
    plan = deer_release.plan(rounds, epochs, batch_size, sizes)
    assert plan == (want["sample_rate"], want["steps"])
    epsilon, delta = named["target_epsilon"], named["target_delta"]
    found = deer_release.noise_multiplier(epsilon, delta, rounds, epochs, batch_size, sizes)
    assert found == want["noise_multiplier"]
    assert epsilon - 0.01 <= deer_release.claimed_epsilon(found, delta, *plan) < epsilon
