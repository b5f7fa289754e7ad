"""What ``check`` warns of, and that it says nothing where all is well."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsim.data.doubts import doubts
from fedsim.data.overlap import Overlap, overlaps
from tests.helpers import load_set, make_dataset


def test_clients_that_hold_little_are_named() -> None:
    data, _ = make_dataset([30])
    labels = data.labels.numpy()[data.train]
    parts = [data.train[labels == 0], data.train[labels != 0], data.train[:0]]
    assert doubts(data, parts, []) == [
        "1 of 3 clients has no training image: 2",
        "1 of 3 clients has training images of one class alone: 0",
    ]
    many = [data.train[:0]] * 12 + [data.train]
    assert doubts(data, many, []) == [
        "12 of 13 clients have no training image: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ...",
    ]
    assert doubts(data, [data.train], []) == []
    # A pixel has a class, not an image: with background and one structure all images count as that structure's.
    masks = torch.zeros(len(data.labels), 2, 2, dtype=torch.uint8)
    assert doubts(replace(data, masks=masks), [data.train[labels == 0], data.train[labels != 0]], []) == []


def test_images_in_two_splits_and_patients_at_two_clients_are_counted() -> None:
    data, _ = make_dataset([30])
    halves = [data.train[::2], data.train[1::2]]
    groups = np.arange(len(data.labels))
    groups[data.train[:4]] = 1000
    found = [Overlap("near-duplicates", "", 1234), Overlap("same pixels", "", 0)]
    assert doubts(replace(data, groups=groups), halves, found) == [
        "near-duplicates: 1,234 held-out images have one in another split",
        "same groups: 1 with training images at several clients",
    ]
    assert doubts(replace(data, groups=groups, divisible=True), halves, []) == []


@pytest.mark.parametrize("shared", [0, 3])
def test_patients_in_two_splits_are_found(shared: int) -> None:
    data, _ = make_dataset([30])
    groups = np.arange(len(data.labels))
    groups[data.test[:shared]] = groups[data.train[:shared]]
    data = replace(data, groups=groups)
    lines = doubts(data, [data.train], overlaps(data)[2:])
    assert lines == ([] if not shared else ["same groups: 3 held-out images have one in another split"])


def test_sentences_of_one_document_may_be_at_two_clients() -> None:
    data = load_set("rated_sentences")
    assert data.divisible
    assert doubts(data, list(np.array_split(data.train, 4)), []) == []
