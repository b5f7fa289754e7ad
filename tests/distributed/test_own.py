"""A data set, a network and a method out of a folder outside of the repository, from one YAML."""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, launch, results, same_log

pytestmark = pytest.mark.slow

MODULE = """
import numpy as np
from torch import nn

from fedsim.algorithms.fedavg import FedAvg
from fedsim.data import Source


def wards(config):
    stream = np.random.default_rng(SEED)
    labels = stream.integers(2, size=120)
    images = stream.integers(100, size=(120, 1, config.image_size, config.image_size), dtype=np.uint8)
    images[labels == 1, :, :4] += 120
    return Source(
        images=images,
        labels=labels,
        class_names=("healthy", "ill"),
        sites=np.arange(120) % 3,
        site_names=("north", "south", "west"),
    )


def encoder(config, image_size):
    width = config.options["width"]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Halved(FedAvg):
    def pre_aggregate(self, update):
        payload = super().pre_aggregate(update)
        for group in payload.mean.values():
            for name in group:
                group[name] = group[name] / 2
        return payload
"""
CONFIG = """
name: own
seed: 3
rounds: 2
algorithm: {name: mine.Halved}
model: {name: mine.encoder, options: {width: 6}, train: TRAIN}
data: {name: mine.wards, image_size: 12}
clients: {count: 3, per_block: 2, partition: {name: sites}}
train: {lr: 0.1, batch_size: 8}
"""


def write(folder: Path, *, train: str = "all", seed: str = "5") -> Path:
    assert not folder.is_relative_to(ROOT)
    (folder / "mine.py").write_text(MODULE.replace("SEED", seed))
    (folder / "mine.yaml").write_text(CONFIG.replace("TRAIN", train))
    return folder / "mine.yaml"


@pytest.mark.parametrize("train", ["all", "head"])
def test_own_data_network_and_method_on_any_number_of_ranks(train: str, tmp_path: Path) -> None:
    config = write(tmp_path, train=train)
    for ranks in (0, 2):
        done = launch(ranks, "run", config, "--out", tmp_path / str(ranks))
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "0", tmp_path / "2"
    assert results(one)["state_sha256"] == results(two)["state_sha256"]
    assert same_log(one, two)
    facts = [json.loads((run / "environment.json").read_text())["data_arrays"] for run in (one, two)]
    assert facts[0] == facts[1]
    assert facts[0]["each"].keys() == {"images", "labels", "class_names", "sites", "site_names"}

    # Another's folder names code, which is not run unasked.
    refused = launch(0, "evaluate", one)
    assert refused.returncode == 2
    assert "algorithm.name: found 'mine.Halved', code that the run folder names; expected --trust" in refused.stderr
    assert launch(0, "evaluate", one, "--trust", PYTHONPATH=str(tmp_path)).returncode == 0

    # Other data behind the same name is another run.
    write(tmp_path, train=train, seed="6")
    resumed = launch(0, "run", config, "--out", one, "--resume")
    assert resumed.returncode == 2
    assert "--resume: data mine.wards: found arrays, sha256 " in resumed.stderr


def test_lora_on_a_network_of_ones_own_has_the_same_bits_on_any_number_of_ranks(tmp_path: Path) -> None:
    config = write(tmp_path, train="lora, lora: {r: 2, target: [all-conv]}")
    for ranks in (0, 2):
        done = launch(ranks, "run", config, "--out", tmp_path / str(ranks))
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "0", tmp_path / "2"
    assert results(one)["state_sha256"] == results(two)["state_sha256"]
    assert same_log(one, two)
    assert (one / "adapter" / "adapter_model.safetensors").is_file()


def test_ranks_that_read_different_data_are_told(tmp_path: Path) -> None:
    config = write(tmp_path, seed="None")
    done = launch(2, "run", config, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "the data of mine.wards differs between ranks" in done.stderr


def test_ranks_that_build_different_networks_are_told(tmp_path: Path) -> None:
    config = write(tmp_path, train="head")
    seeded = (tmp_path / "mine.py").read_text()
    unseeded = seeded.replace(
        "def encoder(config, image_size):\n", "def encoder(config, image_size):\n    torch.seed()\n"
    )
    (tmp_path / "mine.py").write_text(f"import torch\n{unseeded}")
    done = launch(2, "run", config, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "the network of model.name differs between ranks" in done.stderr
