"""Which rank each client has."""

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from fedsim.config.words import LoraConfig
from fedsim.errors import UserError
from fedsim.schedule.client_ranks import client_ranks
from tests.helpers import LORA, TINY_VIT, simulate


def ranks_for(ranks: Any, sizes: list[int], seed: int = 0) -> tuple[int, ...] | None:
    return client_ranks(LoraConfig.model_validate({"ranks": ranks}), sizes, seed)


def test_a_list_goes_round() -> None:
    assert ranks_for([2, 4, 8], [1] * 7) == (2, 4, 8, 2, 4, 8, 2)
    assert ranks_for([3, 1], [5, 9]) == (3, 1)
    assert ranks_for(None, [1, 2]) is None
    assert client_ranks(None, [1, 2], 0) is None


def test_a_list_that_is_too_long_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.lora\.ranks: found 3 ranks; expected at most one for each of 2"):
        ranks_for([1, 2, 3], [1, 1])


def test_drawn_ranks_have_their_shares_and_follow_from_the_seed() -> None:
    words = {"values": [2, 4, 16], "weights": [1, 2, 1]}
    drawn = ranks_for(words, [1] * 4000)
    assert drawn is not None
    counts = Counter(drawn)
    assert counts.keys() == {2, 4, 16}
    for rank, share in ((2, 0.25), (4, 0.5), (16, 0.25)):
        # Five standard deviations.
        assert abs(counts[rank] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    assert ranks_for(words, [1] * 4000) == drawn
    assert ranks_for(words, [1] * 4000, seed=1) != drawn
    # A client's rank does not depend on how many others there are.
    assert ranks_for(words, [1] * 10) == drawn[:10]


def test_ranks_by_the_number_of_images() -> None:
    assert ranks_for({"values": [2, 8], "by": "images"}, [30, 10, 20, 40]) == (8, 2, 2, 8)
    assert ranks_for({"values": [2, 8], "weights": [3, 1], "by": "images"}, [30, 10, 20, 40]) == (2, 2, 2, 8)
    assert ranks_for({"values": [1, 2, 3], "by": "images"}, [5, 5, 5]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"r": 4, "ranks": [2, 8]}, "r: found 4 with ranks; expected 8"),
        ({"ranks": {"values": [2, 4], "weights": [1]}}, "weights: found 1 for 2 values"),
        ({"ranks": []}, "at least 1"),
        ({"ranks": [0]}, "greater than or equal to 1"),
        ({"ranks": {"values": [2], "by": "size"}}, "'seed' or 'images'"),
        ({"r": 3, "init_lora_weights": "orthogonal"}, "orthogonal with r: 3; expected an even r"),
        ({"ranks": [2, 4], "init_lora_weights": "pissa"}, "pissa with ranks"),
        ({"init_lora_weights": "loftq"}, "'gaussian', 'orthogonal', 'pissa' or 'olora'"),
    ],
)
def test_what_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LoraConfig.model_validate(words)


def test_r_is_the_largest() -> None:
    assert LoraConfig.model_validate({}).r == 8
    assert LoraConfig.model_validate({"ranks": [2, 16, 4]}).r == 16
    assert LoraConfig.model_validate({"ranks": {"values": [2, 3]}}).r == 3


def test_methods_are_told() -> None:
    lora = {**LORA, "r": 4, "ranks": [1, 4]}
    assert simulate([4, 4, 4], 3, model={**TINY_VIT, "lora": lora}).algorithm.facts.ranks == (1, 4, 1)
    assert simulate([4, 4, 4], 3).algorithm.facts.ranks is None


@pytest.mark.parametrize("method", ["hetlora", "raflora"])
def test_methods_that_are_about_ranks_want_them(method: str) -> None:
    with pytest.raises(UserError, match=rf"model\.lora\.ranks: found null with algorithm\.name: {method}"):
        simulate([4, 4], 2, algorithm={"name": method})
