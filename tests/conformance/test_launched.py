"""Whole runs through launch.py: a method from outside the repository, and DEeR on an open_clip model."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.distributed.runs import TINY, launch, results
from tests.unit.models_clip_folders import write_biomed, write_clip

METHOD = '''
from algorithms.base import Algorithm


class Slow(Algorithm):
    """The server takes only a share of the mean change."""

    summary = "a part of a step"

    class Config(Algorithm.Config):
        share: float = 0.5

    def post_aggregate(self, state, aggregate):
        mean = {name: self.config.share * value for name, value in aggregate.mean.items()}
        return super().post_aggregate(state, type(aggregate)(aggregate.clients, mean, aggregate.total))
'''


def write_run(folder: Path, algorithm: str) -> Path:
    data = yaml.safe_load(TINY) | {"rounds": 1, "algorithm": yaml.safe_load(algorithm)}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.slow
def test_a_method_from_outside(tmp_path: Path) -> None:
    """Found on PYTHONPATH or beside the config; at its neutral setting it gives FedAvg's bits."""
    code, configs, empty = (tmp_path / name for name in ("code", "configs", "empty"))
    for folder in (code, configs, empty):
        folder.mkdir()
    for folder in (code, configs):
        (folder / "my_method.py").write_text(METHOD)
    digests = []
    for number, (folder, algorithm, path) in enumerate(
        [
            (configs, "{name: my_method.Slow, share: 1.0}", {}),
            (empty, "{name: my_method.Slow}", {"PYTHONPATH": str(code)}),
            (empty, "{name: fedavg}", {}),
        ]
    ):
        out = tmp_path / str(number)
        done = launch(0, "run", write_run(folder, algorithm), "--out", out, **path)
        assert done.returncode == 0, done.stderr
        digests.append(results(out)["state_sha256"])
    neutral, default, fedavg = digests
    assert neutral == fedavg != default
    recorded = yaml.safe_load((tmp_path / "1" / "config.yaml").read_text())
    assert recorded["algorithm"] == {"name": "my_method.Slow", "share": 0.5}


def test_its_own_keys_are_checked(tmp_path: Path) -> None:
    (tmp_path / "my_method.py").write_text(METHOD)
    done = launch(0, "run", write_run(tmp_path, "{name: my_method.Slow, shre: 1.0}"), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "algorithm.shre" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def write_images(folder: Path) -> None:
    stream = np.random.default_rng(0)
    for number, name in enumerate(("benign", "scan")):
        (folder / name).mkdir(parents=True)
        for image in range(20):
            pixels = stream.integers(0, 100, (32, 32, 3), dtype=np.uint8)
            pixels[..., number] += 120
            Image.fromarray(pixels).save(folder / name / f"{image}.png")


@pytest.mark.slow
@pytest.mark.parametrize("write_model", [write_clip, write_biomed])
def test_deer_on_an_open_clip_model(write_model: object, tmp_path: Path) -> None:
    """The path that BiomedCLIP takes: both towers from a folder, class prompts as the classifier."""
    model = tmp_path / "model"
    model.mkdir()
    write_model(model)
    write_images(tmp_path / "images")
    size = 32 if write_model is write_clip else 160
    config = {
        "name": "clip",
        "rounds": 2,
        "algorithm": {"name": "deer"},
        "model": {"name": f"open_clip:local-dir:{model}", "lora": {"r": 2}, "train_logit_scale": True},
        "data": {"name": "image_folder", "root": str(tmp_path / "images"), "image_size": size},
        "clients": {"count": 3, "partition": {"name": "iid"}},
        "train": {"lr": 0.05, "momentum": 0.9, "batch_size": 8},
    }
    path = tmp_path / "clip.yaml"
    path.write_text(yaml.safe_dump(config))
    cache = {"FEDSIM_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = launch(0, "run", path, "--out", tmp_path / "run", **cache)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "run")
    assert (found["status"], found["rounds"]) == ("finished", 2)
    assert math.isfinite(found["test"]["loss"])
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
