"""Dirichlet partitions: every client's mean count is its share, whatever alpha, clients and sizes of classes.

Bounds are standard deviations of the count's own distribution: with p from Dir(alpha, ..., alpha) over K clients
Var p = (K - 1) / (K^2 (K alpha + 1)), and rounding n p up or down adds at most 1/4.
"""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chi2_contingency

from fedsim.config.data import ClientsConfig
from fedsim.data.dataset import Indices
from fedsim.data.partition import DIRICHLET_FORMS, dirichlet, partition_clients
from fedsim.errors import UserError
from tests.unit.data.test_data_partition import clients, make_dataset

FORMS = ("paper", "released")


def counts(num_clients: int, alpha: float, num_classes: int, per_class: int, form: str = "paper") -> Indices:
    """Return every client's images of every class, (K, C)."""
    sizes = np.full(num_classes, per_class)
    cuts = DIRICHLET_FORMS[form](sizes, alpha, num_clients, np.random.RandomState(3))
    return np.diff(np.minimum(cuts, per_class), prepend=0, append=per_class).T


@pytest.mark.parametrize(
    ("num_clients", "alpha", "num_classes", "per_class"),
    [
        (12, 1e-4, 1200, 50),
        (2, 1e-3, 1200, 50),
        (12, 1e-6, 1200, 50),
        (500, 1e-6, 1200, 50),
        (500, 100.0, 10, 200),
        (500, 100.0, 400, 200),
        (12, 1.0, 2000, 4),
        (12, 1e6, 2000, 4),
        (3000, 0.1, 100, 7),
    ],
)
def test_every_client_gets_its_share_and_the_last_no_more(
    num_clients: int, alpha: float, num_classes: int, per_class: int
) -> None:
    found_K = counts(num_clients, alpha, num_classes, per_class).sum(1)
    share_variance = (num_clients - 1) / (num_clients**2 * (num_clients * alpha + 1))
    deviation = (num_classes * (per_class**2 * share_variance + 0.25)) ** 0.5
    off_K = np.abs(found_K - num_classes * per_class / num_clients) / deviation
    assert off_K[-1] < 4
    assert off_K.max() < 5


def test_nearly_equal_shares_give_counts_that_differ_by_one_in_a_class() -> None:
    """500 clients at alpha 100: no share of 200 images reaches 1; each class gives 200 clients one image."""
    found_KC = counts(500, 100.0, 10, 200)
    assert found_KC.max() == 1
    # Binomial(10, 0.4): more than 25 of 500 clients without an image has a chance below 1e-12.
    assert (found_KC.sum(1) == 0).sum() <= 25


@pytest.mark.parametrize(
    ("num_clients", "alpha"), [(2, 1e-6), (2, 1e-3), (5, 1e-2), (5, 0.1), (3, 0.5), (5, 1.0), (4, 5.0)]
)
def test_counts_are_distributed_as_multinomial_ones(num_clients: int, alpha: float) -> None:
    """With many images of a class rounding is small beside the spread of the shares."""
    draws, per_class = 4000, 5000
    found_KC = counts(num_clients, alpha, draws, per_class)
    stream = np.random.default_rng(8)
    want_KC = stream.multinomial(per_class, stream.dirichlet(np.full(num_clients, alpha), draws)).T
    edges = np.unique([per_class // 50, *np.quantile(want_KC, np.arange(1, 8) / 8), per_class - per_class // 50])
    edges = edges[edges >= per_class // 50]
    for found, want in [*zip(found_KC, want_KC, strict=True), (found_KC.max(0), want_KC.max(0))]:
        table = np.stack([np.bincount(np.digitize(row, edges), minlength=len(edges) + 1) for row in (found, want)])
        table = table[:, table.sum(0) > 0]
        assert table.shape[1] == 1 or chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(
    ("num_clients", "alpha", "num_classes", "per_class"),
    [(12, 1e-4, 50, 40), (2, 1e-3, 50, 40), (500, 100.0, 10, 200), (12, 1.0, 100, 4), (3, 0.5, 2, 1)],
)
def test_no_image_is_lost_or_doubled(num_clients: int, alpha: float, num_classes: int, per_class: int) -> None:
    labels = np.repeat(np.arange(num_classes), per_class)
    parts = dirichlet(labels, alpha, num_classes, num_clients, np.random.RandomState(3), "paper")
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


@pytest.mark.parametrize(("num_clients", "alpha"), [(12, 1e-4), (2, 1e-3)])
def test_a_released_draw_without_shares_is_refused(num_clients: int, alpha: float) -> None:
    message = rf"clients.partition.alpha: found {alpha:g}, whose draw with form: released is no number"
    with pytest.raises(UserError, match=message):
        counts(num_clients, alpha, 100, 50, "released")


def test_the_released_rounding_stays_under_its_name() -> None:
    """500 clients, 10 classes of 200, alpha 100: shares round to zero and the last client has 98 %."""
    found_K = counts(500, 100.0, 10, 200, "released").sum(1)
    assert found_K[-1] > 0.9 * 2000


@pytest.mark.parametrize("form", FORMS)
def test_the_form_decides(form: str) -> None:
    dataset = make_dataset()
    words: dict[str, Any] = {"name": "dirichlet", "alpha": 0.3, "min_size": 2}
    config = ClientsConfig.model_validate({"count": 7, "partition": {**words, "form": form}})
    one, other = (partition_clients(dataset, clients(7, form=name, **words), 1) for name in FORMS)
    found = partition_clients(dataset, config, 1)
    same = [all(map(np.array_equal, found, parts)) for parts in (one, other)]
    assert same == [form == "paper", form == "released"]


def test_alpha_has_a_lower_bound() -> None:
    words = {"count": 2, "partition": {"name": "dirichlet", "alpha": 9e-7}}
    with pytest.raises(ValidationError, match="greater than or equal to"):
        ClientsConfig.model_validate(words)
