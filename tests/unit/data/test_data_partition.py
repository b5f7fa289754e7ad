"""Partitions of the training images, by hand and by their rules."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.data.dataset import Dataset, Indices
from fedsim.data.partition import PARTITIONS, partition_clients, partition_table, without_small
from fedsim.errors import UserError
from fedsim.runfolder.partition import draw_partition


def make_dataset(num_images: int = 200, num_classes: int = 4, site_names: tuple[str, ...] = ()) -> Dataset:
    """Every fifth image is for the test, every fifth for validation; sites go round."""
    everything = np.arange(num_images)
    return Dataset(
        name="made",
        images=torch.zeros(num_images, 3, 1, 1, dtype=torch.uint8),
        labels=torch.from_numpy(everything * 7 % 11 % num_classes),
        class_names=tuple("abcdefghijklmnop"[:num_classes]),
        train=everything[everything % 5 < 3],
        val=everything[everything % 5 == 3],
        test=everything[everything % 5 == 4],
        groups=None,
        sites=everything % len(site_names) if site_names else None,
        site_names=site_names,
    )


def clients(count: int, **partition: Any) -> Any:
    return SimpleNamespace(count=count, partition=SimpleNamespace(**partition))


def assert_divides(dataset: Dataset, parts: list[Indices]) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), dataset.train)


@pytest.mark.parametrize(
    ("count", "partition"),
    [
        (7, {"name": "iid"}),
        (7, {"name": "dirichlet", "alpha": 0.3, "min_size": 0, "form": "paper"}),
        (7, {"name": "dirichlet", "alpha": 0.3, "min_size": 5, "form": "paper"}),
        (7, {"name": "shards", "per_client": 2}),
        (7, {"name": "diversity", "share": 0.5}),
        (7, {"name": "diversity", "share": 1.0}),
        (6, {"name": "sites"}),
    ],
)
def test_each_training_image_goes_to_one_client_and_the_seed_decides(count: int, partition: dict[str, Any]) -> None:
    dataset = make_dataset(site_names=("north", "south", "west"))
    first, again, other = (partition_clients(dataset, clients(count, **partition), seed) for seed in (1, 1, 2))
    assert len(first) == count
    assert_divides(dataset, first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(part.dtype == np.int64 for part in first)


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = [len(part) for part in partition_clients(make_dataset(), clients(7, name="iid"), 0)]
    assert sorted(sizes) == [17] * 6 + [18]


def test_dirichlet_is_drawn_again_until_everyone_has_enough() -> None:
    dataset = make_dataset()
    free = partition_clients(dataset, clients(7, name="dirichlet", alpha=0.1, min_size=0, form="paper"), 1)
    assert min(map(len, free)) < 5
    enough = partition_clients(dataset, clients(7, name="dirichlet", alpha=0.1, min_size=5, form="paper"), 1)
    assert min(map(len, enough)) >= 5


def test_small_clients_are_left_out_and_the_others_keep_theirs() -> None:
    parts = [np.arange(3), np.arange(3, 4), np.arange(4, 4), np.arange(4, 9)]
    assert [part.tolist() for part in without_small(parts, 3)] == [[0, 1, 2], [], [], [4, 5, 6, 7, 8]]
    assert [len(part) for part in without_small(parts, None)] == [3, 1, 0, 5]
    with pytest.raises(UserError, match=r"clients.min_samples: found 6; expected at most 5, the images of the largest"):
        without_small(parts, 6)


def test_dirichlet_that_cannot_be_met_ends_in_one_line() -> None:
    with pytest.raises(UserError, match=r"min_size: found 17, which 1000 draws with alpha 0.01 did not meet"):
        partition_clients(make_dataset(), clients(7, name="dirichlet", alpha=0.01, min_size=17, form="paper"), 0)
    with pytest.raises(UserError, match=r"min_size: found 126; expected at most the 120 training images"):
        partition_clients(make_dataset(), clients(7, name="dirichlet", alpha=1.0, min_size=18, form="paper"), 0)


def test_shards_give_each_client_few_classes() -> None:
    dataset = make_dataset()
    parts = partition_clients(dataset, clients(10, name="shards", per_client=2), 0)
    assert [len(part) for part in parts] == [12] * 10
    by_label = dataset.train[np.argsort(dataset.labels.numpy()[dataset.train], kind="stable")]
    shards = {tuple(shard) for shard in by_label.reshape(20, 6)}
    assert {tuple(half) for part in parts for half in part.reshape(2, 6)} == shards


@pytest.mark.parametrize(("share", "per_client"), [(0.1, 1), (0.5, 2), (0.74, 2), (0.75, 3), (1.0, 4)])
def test_diversity_gives_each_client_its_number_of_classes(share: float, per_client: int) -> None:
    dataset = make_dataset()
    parts = partition_clients(dataset, clients(7, name="diversity", share=share), 0)
    table = np.array([row.per_class for row in partition_table(dataset, parts)])
    assert ((table > 0).sum(1) == per_client).all()
    holders = (table > 0).sum(0)
    assert holders.max() - holders.min() <= 1
    for column in table.T:  # a class is dealt out evenly among those that have it
        assert np.ptp(column[column > 0]) <= 1


def test_a_hundred_clients_with_a_third_of_ten_classes() -> None:
    dataset = make_dataset(num_images=5000, num_classes=10)
    parts = partition_clients(dataset, clients(100, name="diversity", share=0.3), 3)
    table = np.array([row.per_class for row in partition_table(dataset, parts)])
    assert ((table > 0).sum(1) == 3).all()
    assert ((table > 0).sum(0) == 30).all()
    assert len({tuple(np.flatnonzero(row)) for row in table}) > 20
    assert_divides(dataset, parts)


def test_29_percent_of_a_hundred_classes_are_29() -> None:
    """In binary numbers the product is a little below 29."""
    dataset = make_dataset(num_images=5000)
    names = tuple(f"class {label}" for label in range(100))
    dataset = replace(dataset, labels=torch.arange(5000) // 5 % 100, class_names=names)
    parts = partition_clients(dataset, clients(10, name="diversity", share=0.29), 0)
    assert {sum(n > 0 for n in row.per_class) for row in partition_table(dataset, parts)} == {29}


def test_sites_are_clients_in_the_order_of_their_names() -> None:
    dataset = make_dataset(site_names=("north", "south", "west"))
    assert dataset.sites is not None
    for per_site in (1, 2):
        parts = partition_clients(dataset, clients(3 * per_site, name="sites"), 0)
        for client, part in enumerate(parts):
            assert set(dataset.sites[part].tolist()) == {client // per_site}
            assert len(part) == 40 // per_site


@pytest.mark.parametrize(
    ("count", "partition", "message"),
    [
        (121, {"name": "iid"}, "clients.count: found 121; expected at most the 120 training images"),
        (61, {"name": "shards", "per_client": 2}, "found 122; expected at most the 120 training images"),
        (
            3,
            {"name": "diversity", "share": 0.25},
            r"share: found 3 clients with 1 of 4 classes each; expected at least one client for every class",
        ),
        (4, {"name": "sites"}, "clients.count: found 4; expected a multiple of the 3 natural sites"),
        (123, {"name": "sites"}, "found 41 clients at site north; expected at most its 40 images"),
    ],
)
def test_too_many_clients_are_refused(count: int, partition: dict[str, Any], message: str) -> None:
    dataset = make_dataset(site_names=("north", "south", "west"))
    with pytest.raises(UserError, match=message):
        partition_clients(dataset, clients(count, **partition), 0)


def test_sites_need_a_set_that_has_them() -> None:
    with pytest.raises(UserError, match="sites with made; expected a data set with natural sites"):
        partition_clients(make_dataset(), clients(3, name="sites"), 0)


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"clients": [[5, 0, 2], [], [11]]}', encoding="utf-8")
    parts = partition_clients(make_dataset(), clients(3, name="file", path=str(tmp_path / "p.json")), 0)
    assert [part.tolist() for part in parts] == [[5, 0, 2], [], [11]]
    assert all(part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"clients": [[0], [3]]}, "clients, client 1: found index 3; expected indices of training images"),
        ({"clients": [[0], [-1]]}, "client 1: found index -1"),
        (
            {"clients": [[0, 1], [2, 0]]},
            "client 1: found index 0, which client 0 has; expected each index once",
        ),
        ({"clients": [[0, 0], [1]]}, "client 0: found index 0, which client 0 has"),
        ({"clients": [[0]]}, "found 1 clients; expected clients.count = 2"),
        ({"clients": [[0], [1.5]]}, "found another content"),
        ({"clients": [[0], [True]]}, "found another content"),
        ([[0], [1]], r"found \[\[0\], \[1\]\]; expected {"),
        ({"val": [[3], []]}, "found the keys 'val'"),
        ({"clients": [[0], [1]], "tests": [[4], []]}, "found the keys 'clients', 'tests'"),
        ({"clients": [[0], [1]], "val": [[3], [4]]}, "val, client 1: found index 4; expected indices of validation"),
        ({"clients": [[0], [1]], "test": [[4], [0]]}, "test, client 1: found index 0; expected indices of test"),
        ({"clients": [[0], [1]], "test": [[4], [4]]}, "test, client 1: found index 4, which client 0 has"),
        ({"clients": [[0], [1]], "val": [[3]]}, "val: found 1 clients; expected clients.count = 2"),
        ({"clients": [[0], [1]], "val": {"0": [3]}}, "val: found another content"),
        ("{", "expected a JSON file"),
        ("[" * 5000 + "]" * 5000, "found maximum recursion depth exceeded.*; expected a JSON file"),
        (f'{{"clients": [[{"1" * 5000}], [1]]}}', "found Exceeds the limit .* digits.*; expected a JSON file"),
        (f'{{"clients": [[{"1" * 4000}], [1]]}}', "client 0: found index 111.{1,80}; expected indices of training"),
        ('{"clients": [[0], [1]], "clients": [[1], [0]]}', "found the key 'clients' twice; expected a JSON file"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        partition_clients(make_dataset(), clients(2, name="file", path=str(path)), 0)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json"):
        partition_clients(make_dataset(), clients(2, name="file", path=str(tmp_path / "absent.json")), 0)


def test_the_words_of_the_config_are_the_partitions() -> None:
    from fedsim.config.data import ClientsConfig

    needed: dict[str, dict[str, Any]] = {
        "dirichlet": {"alpha": 0.5},
        "shards": {"per_client": 1},
        "diversity": {"share": 0.5},
        "file": {"path": "p.json"},
    }
    for name in PARTITIONS:
        assert ClientsConfig.model_validate({"count": 2, "partition": {"name": name, **needed.get(name, {})}})


def test_the_table_counts_by_class() -> None:
    dataset = make_dataset(num_images=10, num_classes=2)
    assert dataset.labels.tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 1, 0]
    rows = partition_table(dataset, [np.array([0, 1, 2]), np.array([], np.int64), np.array([5])])
    assert [(row.client, row.n, row.per_class) for row in rows] == [
        (0, 3, (1, 2)),
        (1, 0, (0, 0)),
        (2, 1, (1, 0)),
    ]


@pytest.mark.parametrize(("count", "num_classes"), [(1, 2), (12, 11), (120, 4)])
def test_the_picture_is_a_png_of_reasonable_size(tmp_path: Path, count: int, num_classes: int) -> None:
    dataset = make_dataset(num_classes=num_classes)
    draw_partition(dataset, partition_clients(dataset, clients(count, name="iid"), 0), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1080
        assert 150 < picture.height <= 1920
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > num_classes
