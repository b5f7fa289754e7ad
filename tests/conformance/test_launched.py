"""Whole runs through launch.py: a method from outside the repository, and DEeR on an open_clip model."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from launch import app
from tests.distributed.runs import TINY, launch, results
from tests.unit.models.models_clip_folders import write_biomed, write_clip

METHOD = '''
from fedsim.algorithms.base import Algorithm


class Slow(Algorithm):
    """The server takes only a share of the mean change."""

    summary = "a part of a step"

    class Config(Algorithm.Config):
        share: float = 0.5

    def post_aggregate(self, state, aggregate):
        mean = {name: self.config.share * value for name, value in aggregate.mean["params"].items()}
        return super().post_aggregate(state, type(aggregate)(aggregate.clients, {"params": mean}))
'''


def run_here(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``launch.py run`` in this process, which has everything imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def write_run(folder: Path, algorithm: str) -> Path:
    data = yaml.safe_load(TINY) | {"rounds": 1, "algorithm": yaml.safe_load(algorithm)}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.slow
def test_a_method_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found on PYTHONPATH or beside the config; at its neutral setting it gives FedAvg's bits."""
    code, configs, empty = (tmp_path / name for name in ("code", "configs", "empty"))
    for folder in (code, configs, empty):
        folder.mkdir()
    for folder in (code, configs):
        (folder / "my_method.py").write_text(METHOD)
    neutral = write_run(configs, "{name: my_method.Slow, share: 1.0}")
    half = write_run(empty, "{name: my_method.Slow}")
    for done in (
        launch(0, "run", neutral, "--out", tmp_path / "neutral"),
        launch(0, "run", half, "--out", tmp_path / "half", PYTHONPATH=str(code)),
        run_here(half, "algorithm={name: fedavg}", "--out", tmp_path / "fedavg", monkeypatch=monkeypatch),
    ):
        assert getattr(done, "returncode", getattr(done, "exit_code", None)) == 0, done.stderr
    digests = {name: results(tmp_path / name)["state_sha256"] for name in ("neutral", "half", "fedavg")}
    assert digests["neutral"] == digests["fedavg"] != digests["half"]
    recorded = yaml.safe_load((tmp_path / "half" / "config.yaml").read_text())
    assert recorded["algorithm"] == {"name": "my_method.Slow", "share": 0.5}


def test_its_own_keys_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checked_method.py").write_text(METHOD)
    config = write_run(tmp_path, "{name: checked_method.Slow, shre: 1.0}")
    done = run_here(config, "--out", tmp_path / "out", monkeypatch=monkeypatch)
    assert done.exit_code == 2
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


@pytest.mark.parametrize("write_model", [write_clip, write_biomed])
def test_deer_on_an_open_clip_model(write_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    done = run_here(path, "--out", tmp_path / "run", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.stderr or done.exception
    found = results(tmp_path / "run")
    assert (found["status"], found["rounds"]) == ("finished", 2)
    assert math.isfinite(found["test"]["loss"])
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
