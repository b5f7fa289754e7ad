"""Each client's own validation and test images, against divisions counted by hand."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.data import Dataset, divide_held_out, partition_clients
from fedsim.data.dataset import Indices
from fedsim.errors import UserError
from tests.helpers import IMAGE_SIZE, load_set, make_config


def make_dataset(labels: list[int], splits: str, sites: list[int] | None = None) -> Dataset:
    """``splits``: a letter per image, t for training, v for validation, e for the test."""
    where = {letter: np.flatnonzero(np.array(list(splits)) == letter) for letter in "tve"}
    return Dataset(
        name="made",
        images=torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8),
        labels=torch.tensor(labels),
        class_names=("a", "b", "c"),
        train=where["t"],
        val=where["v"],
        test=where["e"],
        groups=None,
        sites=None if sites is None else np.array(sites),
        site_names=() if sites is None else ("north", "south"),
    )


def clients(name: str, count: int = 2) -> Any:
    return SimpleNamespace(count=count, partition=SimpleNamespace(name=name))


def classes(dataset: Dataset, places: Indices) -> list[int]:
    return np.bincount(dataset.labels.numpy()[places], minlength=3).tolist()  # type: ignore[no-any-return]  # numpy


def test_every_class_is_divided_as_the_training_images_are() -> None:
    # Training: 8 of class a, 4 of b. Validation: 8 of a, 4 of b. Test: 4 of a, and 3 of c that nobody trains on.
    dataset = make_dataset([0] * 8 + [1] * 4 + [0] * 8 + [1] * 4 + [0] * 4 + [2] * 3, "t" * 12 + "v" * 12 + "e" * 7)
    parts = [np.array([0, 1, 2, 3, 4, 5]), np.array([6, 7, 8, 9, 10, 11]), np.array([], np.int64)]
    found = divide_held_out(dataset, clients("dirichlet", 3), parts, 0)
    assert [classes(dataset, own) for own in found["val"]] == [[6, 0, 0], [2, 4, 0], [0, 0, 0]]
    assert [classes(dataset, own) for own in found["test"]] == [[3, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_sizes_that_do_not_divide_add_up() -> None:
    dataset = make_dataset([0] * 9 + [0] * 10 + [0], "t" * 9 + "v" * 10 + "e")
    parts = np.split(np.arange(9), 3)
    found = divide_held_out(dataset, clients("iid", 3), parts, 0)
    assert sorted(map(len, found["val"])) == [3, 3, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate(found["val"])), dataset.val)
    assert sum(map(len, found["test"])) == 1


def test_a_site_keeps_its_own_images_even_of_classes_it_does_not_train_on() -> None:
    sites = [0] * 6 + [1] * 6 + [0, 0, 0, 1] + [1, 1]
    dataset = make_dataset([0] * 12 + [0, 1, 2, 0] + [1, 1], "t" * 12 + "v" * 4 + "e" * 2, sites)
    parts = partition_clients(dataset, clients("sites"), 0)
    found = divide_held_out(dataset, clients("sites"), parts, 0)
    assert [own.tolist() for own in found["val"]] == [[12, 13, 14], [15]]
    assert [own.tolist() for own in found["test"]] == [[], [16, 17]]


def test_clients_of_one_site_share_its_images() -> None:
    sites = [0] * 8 + [1] * 8
    dataset = make_dataset([0] * 16, "ttttvvee" * 2, sites)
    parts = partition_clients(dataset, clients("sites", 4), 0)
    found = divide_held_out(dataset, clients("sites", 4), parts, 0)
    assert dataset.sites is not None
    for name in ("val", "test"):
        assert [dataset.sites[own].tolist() for own in found[name]] == [[0], [0], [1], [1]]


def test_a_partition_that_is_brought_says_whose_the_held_out_images_are(tmp_path: Path) -> None:
    """Both hospitals have the same class; each is measured on its own images, not on a share of all."""
    dataset = make_dataset([0] * 12, "tttt" + "vvvv" + "eeee")
    content = {"clients": [[0, 1], [3]], "val": [[7, 4], [5]], "test": [[], [11, 8, 9]]}
    file = tmp_path / "p.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    config: Any = SimpleNamespace(count=2, partition=SimpleNamespace(name="file", path=str(file)))
    parts = partition_clients(dataset, config, 0)
    found = divide_held_out(dataset, config, parts, 0)
    assert {name: [own.tolist() for own in split] for name, split in found.items()} == {
        "val": [[4, 7], [5]],
        "test": [[], [8, 9, 11]],
    }
    file.write_text(json.dumps({"clients": content["clients"]}), encoding="utf-8")
    assert divide_held_out(dataset, config, parts, 0) == {}


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_with_a_drawn_partition_they_are_of_the_sites_that_a_client_trains_on(name: str) -> None:
    rng = np.random.default_rng(0)
    sites = (np.arange(200) % 2).tolist()
    dataset = make_dataset(rng.integers(3, size=200).tolist(), "tttve" * 40, sites)
    assert dataset.sites is not None
    north, south = (dataset.train[dataset.sites[dataset.train] == site] for site in (0, 1))
    parts = [north[:10], north[10:], south[:30], np.concatenate([south[30:], north[:0]])]
    for own in divide_held_out(dataset, clients(name, 4), parts, 0).values():
        assert [set(dataset.sites[part].tolist()) for part in own] == [{0}, {0}, {1}, {1}]
        everyone = np.concatenate(own)
        assert len(everyone) == len(set(everyone.tolist())) == 40


def test_a_file_of_a_set_with_sites_may_leave_them_out(tmp_path: Path) -> None:
    dataset = make_dataset([0, 1] * 20, "ttve" * 10, [0] * 20 + [1] * 20)
    assert dataset.sites is not None
    parts = [dataset.train[:10], dataset.train[10:]]
    (tmp_path / "p.json").write_text(json.dumps({"clients": [part.tolist() for part in parts]}))
    words: Any = SimpleNamespace(count=2, partition=SimpleNamespace(name="file", path=str(tmp_path / "p.json")))
    for own in divide_held_out(dataset, words, parts, 0).values():
        assert [set(dataset.sites[part].tolist()) for part in own] == [{0}, {1}]
        assert [len(part) for part in own] == [5, 5]


def test_the_seed_decides_who_gets_which() -> None:
    dataset = make_dataset([0] * 40 + [0] * 40 + [0], "t" * 40 + "v" * 40 + "e")
    parts = np.split(np.arange(40), 2)
    first, again, other = (divide_held_out(dataset, clients("iid"), parts, seed)["val"] for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert all(np.all(np.diff(own) > 0) for own in first)


MEASURED = {
    "evaluate.clients": {"evaluate": {"clients": True}},
    "decide_on": {"algorithm": {"name": "prrfl"}, "train": {"epochs": 2}},
}


@pytest.mark.parametrize(
    ("sections", "brought", "missing"),
    [
        (MEASURED["evaluate.clients"], (), "val"),
        (MEASURED["evaluate.clients"], ("val",), "test"),
        (MEASURED["evaluate.clients"], ("val", "test"), None),
        (MEASURED["decide_on"], ("test",), "val"),
        (MEASURED["decide_on"], ("val",), None),
        ({}, (), None),
    ],
)
def test_a_file_without_the_images_that_are_measured_is_refused(
    sections: dict[str, Any], brought: tuple[str, ...], missing: str | None, tmp_path: Path
) -> None:
    dataset = load_set("digits", image_size=IMAGE_SIZE)
    content = {"clients": dataset.train, "val": dataset.val, "test": dataset.test}
    halves = {name: [half.tolist() for half in np.array_split(places, 2)] for name, places in content.items()}
    file = tmp_path / "p.json"
    file.write_text(json.dumps({name: halves[name] for name in ("clients", *brought)}), encoding="utf-8")
    config = make_config(clients={"count": 2, "partition": {"name": "file", "path": str(file)}}, **sections)
    if missing is None:
        build_simulation(config, open_group())
        return
    message = f'{file}: found no "{missing}"; expected "{missing}": [[index, ...], ...], since clients are measured'
    with pytest.raises(UserError, match=re.escape(message)):
        build_simulation(config, open_group())


def test_a_file_may_name_what_max_val_leaves_out(tmp_path: Path) -> None:
    """Clients are measured on what is left of their own, as with other partitions."""
    dataset = load_set("digits", image_size=IMAGE_SIZE)
    content = {"clients": dataset.train, "val": dataset.val, "test": dataset.test}
    halves = {name: [half.tolist() for half in np.array_split(places, 2)] for name, places in content.items()}
    file = tmp_path / "p.json"
    file.write_text(json.dumps(halves), encoding="utf-8")
    partition = {"count": 2, "partition": {"name": "file", "path": str(file)}}
    sim = build_simulation(make_config(clients=partition, evaluate={"clients": True, "max_val": 20}), open_group())
    assert len(sim.dataset.val) == 20
    held_out = divide_held_out(sim.dataset, sim.config.clients, sim.parts, 0)
    assert [set(part.tolist()) for part in held_out["val"]] == [
        set(half) & set(sim.dataset.val.tolist()) for half in halves["val"]
    ]
    assert [part.tolist() for part in held_out["test"]] == halves["test"]
    halves["val"][0].append(halves["test"][0][0])
    file.write_text(json.dumps(halves), encoding="utf-8")
    with pytest.raises(UserError, match="expected indices of validation images"):
        build_simulation(sim.config, open_group())
