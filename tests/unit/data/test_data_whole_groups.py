"""Patients are never divided: not between drawn splits, and not between drawn clients, whatever the partition."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Dataset, Source
from fedsim.data.partition import BROUGHT, PARTITIONS, partition_clients
from fedsim.data.splits import majority, split
from fedsim.errors import UserError

NUM_IMAGES, NUM_PATIENTS, NUM_CLASSES = 600, 150, 4
DRAWN: dict[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.3, "min_size": 2, "form": "paper"},
    "shards": {"per_client": 2},
    "diversity": {"share": 0.5},
    "sites": {},
}


def make_source() -> Source:
    """Patients of one to many images, some with two classes, most at one of three sites."""
    rng = np.random.default_rng(3)
    groups = rng.choice(NUM_PATIENTS, NUM_IMAGES, p=rng.dirichlet(np.ones(NUM_PATIENTS)))
    labels = np.where(rng.random(NUM_IMAGES) < 0.8, groups % NUM_CLASSES, rng.integers(NUM_CLASSES, size=NUM_IMAGES))
    sites = np.where(rng.random(NUM_IMAGES) < 0.95, groups % 3, rng.integers(3, size=NUM_IMAGES))
    images = np.zeros((NUM_IMAGES, 1, 8, 8), np.uint8)
    return Source(images, labels, ("a", "b", "c", "d"), groups * 7 - 100, sites, ("x", "y", "z"))


def make_dataset(seed: int = 0, **words: Any) -> Dataset:
    source = make_source()
    train, val, test = split(source, DataConfig.model_validate({"name": "digits", "split_seed": seed, **words}))
    images, labels = torch.from_numpy(source.images), torch.from_numpy(source.labels)
    names = source.class_names
    return Dataset("made", images, labels, names, train, val, test, source.groups, source.sites, source.site_names)


def clients(name: str, count: int = 6) -> Any:
    return SimpleNamespace(count=count, partition=SimpleNamespace(name=name, **DRAWN[name]))


def test_every_partition_is_drawn_or_brought() -> None:
    assert PARTITIONS.keys() == {*DRAWN, *BROUGHT}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("words", [{}, {"max_train": 200}])
def test_no_patient_is_in_two_splits(seed: int, words: dict[str, Any]) -> None:
    data = make_dataset(seed, **words)
    assert data.groups is not None
    parts = [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]
    assert all(parts)
    assert parts[0].isdisjoint(parts[1] | parts[2])
    assert parts[1].isdisjoint(parts[2])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DRAWN)
def test_no_patient_is_at_two_clients(name: str, seed: int) -> None:
    data = make_dataset(seed)
    assert data.groups is not None
    assert data.sites is not None
    parts = partition_clients(data, clients(name), seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), data.train)
    assert len(parts) == 6
    owners = np.repeat(np.arange(6), [len(part) for part in parts])
    images = np.concatenate(parts)
    # Sites are clients of their own: a patient of two hospitals is at both, and at one client of each.
    places = data.sites[images] if name == "sites" else np.zeros(len(images), np.int64)
    pairs = np.unique(np.stack([places, data.groups[images], owners]), axis=1)[:2]
    assert np.unique(pairs, axis=1, return_counts=True)[1].max() == 1
    divided = partition_clients(replace(data, divisible=True), clients(name), seed)
    owners = np.repeat(np.arange(6), [len(part) for part in divided])
    pairs = np.unique(np.stack([data.groups[np.concatenate(divided)], owners]), axis=1)[0]
    assert np.unique(pairs, return_counts=True)[1].max() > 1, "it is the whole groups that keep patients together"


@pytest.mark.parametrize("name", DRAWN)
def test_groups_of_one_image_change_nothing_but_the_draw(name: str) -> None:
    data = replace(make_dataset(), groups=np.arange(NUM_IMAGES))
    found = partition_clients(data, clients(name), 1)
    plain = partition_clients(replace(data, groups=None), clients(name), 1)
    assert all(np.array_equal(one, other) for one, other in zip(found, plain, strict=True))


def test_equal_numbers_of_patients_are_dealt_out_and_the_seed_decides() -> None:
    data = make_dataset()
    assert data.groups is not None
    groups = data.groups
    first, again, other = (partition_clients(data, clients("iid"), seed) for seed in (1, 1, 2))
    sizes = [len(np.unique(groups[part])) for part in first]
    assert max(sizes) - min(sizes) <= 1
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_patient_counts_for_the_class_that_most_images_have() -> None:
    labels, groups = np.array([2, 0, 0, 1, 2, 1, 3]), np.array([1, 1, 1, 0, 0, 2, 3])
    assert majority(labels, groups).tolist() == [1, 0, 1, 3]


def test_more_clients_than_patients_are_one_line() -> None:
    data = make_dataset()
    assert data.groups is not None
    number = len(np.unique(data.groups[data.train]))
    message = rf"clients.count: found 400; expected at most the {number} training images, whole groups counted once"
    with pytest.raises(UserError, match=message):
        partition_clients(data, clients("iid", 400), 0)


def test_a_column_says_whose_each_image_is() -> None:
    owners = np.arange(NUM_IMAGES) % 5
    data = replace(make_dataset(), owners=owners, owner_names=tuple("vwxyz"))
    words: Any = SimpleNamespace(count=5, partition=SimpleNamespace(name="column"))
    parts = partition_clients(data, words, 0)
    assert [set(owners[part].tolist()) for part in parts] == [{0}, {1}, {2}, {3}, {4}]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), data.train)
    words.count = 4
    with pytest.raises(UserError, match=r"clients.count: found 4; expected the 5 values of data.columns.client"):
        partition_clients(data, words, 0)
    with pytest.raises(UserError, match=r"found column with made; expected a table, with data.columns.client"):
        partition_clients(make_dataset(), words, 0)
