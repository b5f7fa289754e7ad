"""Splits: whole groups, classes in proportion, the same seed the same split."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedsim.data.dataset import Indices, Source
from fedsim.data.splits import TEST, TRAIN, UNUSED, VAL, split, stratified_positions, with_external_sites
from fedsim.errors import UserError

SITES = np.repeat([0, 1, 2], [200, 40, 20])


def words(**changes: Any) -> Any:
    values = {
        "fractions": SimpleNamespace(val=0.15, test=0.2),
        "split": None,
        "split_seed": 0,
        "max_train": None,
        "truncate_to_smallest": False,
        "name": "made up",
    }
    return SimpleNamespace(**(values | changes))


def source(labels: Indices, groups: Indices | None = None, fixed: Indices | None = None) -> Source:
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    return Source(images, labels, ("a", "b"), groups=groups, fixed=fixed)


def clustered() -> Source:
    """600 images in groups of 1 to 6, each group of one class."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 7, 400)
    groups = np.repeat(np.arange(400), sizes)[:600]
    return source(rng.integers(0, 2, 400)[groups], groups * 7)


def test_single_images_are_split_exactly() -> None:
    data = source(np.repeat([0, 1], [100, 40]))
    train, val, test = split(data, words())
    counts = [np.bincount(data.labels[part]).tolist() for part in (train, val, test)]
    assert counts == [[65, 26], [15, 6], [20, 8]]
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val, test])), np.arange(140))
    assert all(np.all(np.diff(part) > 0) for part in (train, val, test))


def test_no_group_crosses_a_border_and_classes_keep_their_share() -> None:
    data = clustered()
    assert data.groups is not None
    parts = split(data, words())
    held = [set(data.groups[part].tolist()) for part in parts]
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]
    for part, share in zip(parts, (0.65, 0.15, 0.2), strict=True):
        per_class = np.bincount(data.labels[part]) / np.bincount(data.labels)
        np.testing.assert_allclose(per_class, share, atol=6 / 250)


def test_the_seed_decides() -> None:
    data = clustered()
    first, again, other = (split(data, words(split_seed=seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_split_that_the_set_brings_is_kept_and_only_the_missing_one_is_drawn() -> None:
    fixed = np.repeat([TRAIN, TEST], [80, 20])
    train, val, test = split(source(np.tile([0, 1], 50), fixed=fixed), words())
    np.testing.assert_array_equal(test, np.arange(80, 100))
    assert (len(train), len(val)) == (68, 12)


def test_max_train_keeps_whole_groups_below_the_limit_and_leaves_the_rest_alone() -> None:
    data = clustered()
    assert data.groups is not None
    whole, capped = split(data, words()), split(data, words(max_train=100))
    assert 95 <= len(capped[0]) <= 100
    assert set(capped[0]) <= set(whole[0])
    kept = set(data.groups[capped[0]].tolist())
    assert not kept & set(data.groups[np.setdiff1d(whole[0], capped[0])].tolist())
    assert abs(np.bincount(data.labels[capped[0]])[0] - 50) < 15
    for before, after in zip(whole[1:], capped[1:], strict=True):
        np.testing.assert_array_equal(before, after)


def test_max_train_of_single_images_is_met_exactly() -> None:
    data = source(np.repeat([0, 1], [100, 40]))
    assert len(split(data, words(max_train=37))[0]) == 37


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"no image left for test out of 4"):
        split(source(np.array([0, 0, 1, 1])), words())


@pytest.mark.parametrize(("per_site", "hint"), [(3, "fractions such as 0.33"), (4, "fractions such as 0.25")])
def test_few_whole_groups_at_each_site_are_told_as_the_cause(per_site: int, hint: str) -> None:
    groups = np.repeat(np.arange(3 * per_site), 20)
    sites = groups // per_site
    images = np.zeros((len(sites), 1, 1, 1), np.uint8)
    data = Source(images, np.ones_like(sites), ("a", "b"), groups, sites, ("x", "y", "z"), strata=sites)
    cause = rf"no image left for val out of {len(sites)}, since groups stay whole and no .* more than {per_site} of"
    with pytest.raises(UserError, match=rf"{cause} them; expected an image in each of train, val, test: {hint}, one"):
        split(data, words())
    fractions = SimpleNamespace(val=1 / per_site, test=1 / per_site)
    assert [len(part) for part in split(data, words(fractions=fractions))[1:]] == [60, 60], "as the line advises"


def test_two_groups_are_told_to_be_too_few() -> None:
    with pytest.raises(UserError, match=r"more than 2 of them; .* test: three groups in one, or more"):
        split(source(np.zeros(8, np.int64), groups=np.repeat([0, 1], 4)), words())


def test_positions_are_the_middles_of_the_groups_in_their_class() -> None:
    labels, groups = np.array([0, 0, 0, 1]), np.array([5, 5, 9, 7])
    positions = stratified_positions(labels, groups, np.random.default_rng(0))
    assert positions[0] == positions[1]
    assert {round(positions[0] * 6), round(positions[2] * 6)} in ({2, 5}, {4, 1})
    assert positions[3] == 0.5


def test_nobody_who_is_tested_at_an_external_site_is_trained_on_elsewhere() -> None:
    sites, groups = np.array([0, 0, 0, 0, 1, 1]), np.array([7, 7, 8, 9, 9, 5])
    images = np.zeros((len(sites), 1, 1, 1), np.uint8)
    data = Source(images, np.array([0, 1] * 3), ("a", "b"), groups, sites, ("x", "y"))
    found, numbers = with_external_sites(data, ["y"])
    assert numbers == (1,)
    assert found.fixed is not None
    assert found.fixed.tolist() == [TRAIN, TRAIN, TRAIN, UNUSED, TEST, TEST]
    assert found.remarks[0].endswith(
        "; 1 images of the other sites are in no split, since the test has some of their groups"
    )


def at_sites(fixed: Indices | None = None) -> Source:
    """260 images of one class at three sites of very unequal size."""
    images = np.zeros((len(SITES), 1, 1, 1), np.uint8)
    names = ("large", "middle", "small")
    return Source(images, np.ones_like(SITES), ("a", "b"), None, SITES, names, fixed, strata=SITES)


def test_a_drawn_split_and_max_train_keep_strata_in_proportion() -> None:
    parts = split(at_sites(), words())
    assert [np.bincount(SITES[part]).tolist() for part in parts] == [[130, 26, 13], [30, 6, 3], [40, 8, 4]]
    train = split(at_sites(), words(max_train=26))[0]
    assert np.bincount(SITES[train]).tolist() == [20, 4, 2]
    assert np.bincount(SITES[split(at_sites(), words(max_train=5))[0]]).tolist() == [3, 1, 1]


def test_truncation_leaves_every_site_what_the_smallest_has() -> None:
    whole, truncated = split(at_sites(), words()), split(at_sites(), words(truncate_to_smallest=True))
    assert np.bincount(SITES[truncated[0]]).tolist() == [13, 13, 13]
    assert set(truncated[0]) < set(whole[0])
    for before, after in zip(whole[1:], truncated[1:], strict=True):
        np.testing.assert_array_equal(before, after)
    again, other = (split(at_sites(), words(truncate_to_smallest=True, split_seed=seed))[0] for seed in (0, 1))
    np.testing.assert_array_equal(truncated[0], again)
    assert not np.array_equal(truncated[0], other)
    both = split(at_sites(), words(truncate_to_smallest=True, max_train=12))[0]
    assert np.bincount(SITES[both]).tolist() == [4, 4, 4]


def test_truncation_needs_sites_with_training_images() -> None:
    fixed = np.where(SITES == 2, TEST, np.where(np.arange(len(SITES)) % 2, VAL, TRAIN))
    with pytest.raises(UserError, match=r"data made up, site small: found no training image; expected at least one"):
        split(at_sites(fixed), words(truncate_to_smallest=True))
    with pytest.raises(UserError, match=r"data.truncate_to_smallest: found true with made up; expected .*sites"):
        split(clustered(), words(truncate_to_smallest=True))
