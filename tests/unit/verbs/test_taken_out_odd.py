"""What a model card has to say of odd things: amplitudes, volumes, and networks that no library makes as they are."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from fedsim import launch, server
from fedsim.configure import load_config
from fedsim.runfolder.saved import open_saved
from fedsim.verbs.predict import answers, find_images
from tests.distributed.runs import TINY, write_masked_config
from tests.submodels import write_submodel
from tests.unit.data.datasets.test_data_medmnist import write_medmnist
from tests.unit.models.models_hugging_folders import write_hugging

OWN = "tests.unit.verbs.test_taken_out_odd.own_network"
VIT = yaml.safe_load(TINY)["model"]
#: What is changed of a tiny run, and in which forms it is taken out.
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "amplitudes, lora": ({**VIT, "amplitude_norm": {}}, ("adapter", "weights", "onnx")),
    "harmofl": (
        {"name": "fedsim:harmofl_unet", "weights": "random", "options": {"num_features": 2}, "amplitude_norm": {}},
        ("weights", "onnx"),
    ),
    "whole volumes": (
        {"name": "monai:resnet18_3d", "weights": "random", "options": {"widen_factor": 0.0625}},
        ("weights", "onnx"),
    ),
    "volumes": ({**VIT, "lora": {"r": 2, "target": ["q", "v"]}}, ("adapter", "weights", "onnx")),
    "hugging": ({"name": "hf:{hugging}", "lora": {"r": 2, "target": ["q", "k", "v", "proj"]}}, ("adapter", "weights")),
    "own": ({"name": OWN, "lora": {"r": 2, "target": ["all-linear"]}}, ("adapter", "weights")),
    "slim": ({"name": "fedsim:vgg16_slim", "weights": "random", "train": "all"}, ("weights",)),
}
CASES = [(kind, form) for kind, (_, forms) in MODELS.items() for form in forms]
SIZES = {"hugging": 16, "slim": 32}

# Of vmap, under which some layers are not batched; of copies for different clients.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def own_network(_config: object, _image_size: int) -> nn.Module:
    """The user's own."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(1), nn.Linear(144, 8), nn.Tanh())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of every kind."""
    folder = tmp_path_factory.mktemp("odd")
    write_hugging(folder / "hugging", "vit")
    write_medmnist(folder / "nodulemnist3d.npz", 28, channels=28)
    (folder / "masked").mkdir()
    found = {}
    for kind, (model, _) in MODELS.items():
        words = yaml.safe_load(write_masked_config(folder / "masked").read_text() if kind == "harmofl" else TINY)
        model = {**model, "name": model["name"].format(hugging=folder / "hugging")}
        words |= {"rounds": 1, "model": model}
        if kind == "harmofl":
            words["data"]["image_size"] = 32
        else:
            words |= {"algorithm": {"name": "fedavg"}, "clients": {"count": 2, "partition": {"name": "iid"}}}
            words["data"] = {"name": "digits", "image_size": SIZES.get(kind, 14), "max_train": 40}
        if "volumes" in kind:
            words["data"] = {"name": "medmnist:nodulemnist3d", "root": str(folder), "image_size": 14, "slices": 3}
        file = folder / f"{kind}.yaml"
        file.write_text(yaml.safe_dump(words))
        found[kind] = folder / f"run {kind}"
        server.run(load_config(file, []), found[kind], False)
    return found


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An image, or for a run on volumes the first of its test volumes."""
    if "volumes" in request.node.callspec.params["kind"]:
        with np.load(request.getfixturevalue("runs")["volumes"].parent / "nodulemnist3d.npz") as arrays:
            np.save(tmp_path / "volume.npy", arrays["test_images"][0])
        return tmp_path / "volume.npy"
    pixels = np.random.default_rng(2).integers(256, size=(20, 26, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "new.png")
    return tmp_path / "new.png"


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_a_program_without_fedsim_has_the_same_scores(
    kind: str, form: str, runs: dict[str, Path], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is missing, which torch.onnx works with")
    trust = ["--trust"] if kind == "own" else []
    result = CliRunner().invoke(
        launch.app, ["export", str(runs[kind]), "--format", form, "--out", str(tmp_path / "out"), *trust]
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out/card.json").read_text())["largest_difference"] < 1e-4
    page = (tmp_path / "out/README.md").read_text()
    assert ("Other versions of transformers" in page) == (kind == "hugging")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 10
    with open_saved(runs[kind], "best", trust=kind == "own") as saved:
        if "volumes" in kind:
            batch = saved.sim.images.evaluation_batch(saved.sim.dataset.test[:1])
            with torch.no_grad():
                expected = saved.sim.model.forward(saved.params, batch, training=False)[0, 0]
        else:
            expected = next(iter(answers(saved, find_images([file])))).scores
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "fedsim", None)
        space: dict[str, Any] = {"FOLDER": str(tmp_path / "out"), "FILE": str(file), "own": own_network}
        exec(code.replace("model = ...", "model = own(None, 14)"), space)
    np.testing.assert_allclose(np.asarray(space["scores"])[0], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_of_a_run_with_a_sub_model_the_whole_one_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = write_submodel(tmp_path / "half", VIT, 14, layers_retained=[0], intermediate_rank=8)
    words = yaml.safe_load(TINY) | {"seed": 0, "rounds": 1, "algorithm": {"name": "fedpft"}}
    words |= {"model": {**VIT, "submodel": {"folder": half}}, "data": {"name": "digits", "image_size": 14}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(words))
    server.run(load_config(tmp_path / "tiny.yaml", ["data.max_train=60"]), tmp_path / "run", False)
    Image.fromarray(np.random.default_rng(2).integers(256, size=(20, 26), dtype=np.uint8)).save(tmp_path / "new.png")
    with open_saved(tmp_path / "run", "best") as saved:
        assert any(name.startswith("submodel.") for name in saved.params)
        expected = next(iter(answers(saved, find_images([tmp_path / "new.png"])))).scores
    for form in ("adapter", "weights"):
        result = CliRunner().invoke(launch.app, ["export", str(tmp_path / "run"), "--format", form])
        assert result.exit_code == 0, result.output
        page = (tmp_path / "run/export" / form / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "fedsim", None)
            space: dict[str, Any] = {
                "FOLDER": str(tmp_path / "run/export" / form),
                "FILE": str(tmp_path / "new.png"),
            }
            exec(code, space)
        np.testing.assert_allclose(np.asarray(space["scores"])[0], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_scores_that_depend_on_the_batch_are_told(tmp_path: Path) -> None:
    words = yaml.safe_load(write_masked_config(tmp_path).read_text())
    options = {"num_features": 2, "form": "released"}
    words |= {"rounds": 1, "model": {"name": "fedsim:harmofl_unet", "weights": "random", "options": options}}
    words |= {"algorithm": {"name": "fedavg"}, "data": {**words["data"], "image_size": 32}}
    (tmp_path / "released.yaml").write_text(yaml.safe_dump(words))
    server.run(load_config(tmp_path / "released.yaml", []), tmp_path / "run", False)
    images = str(tmp_path / "nuclei/a/images")
    result = CliRunner().invoke(launch.app, ["predict", str(tmp_path / "run"), images, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "the network normalises over 5 files at once: what it says depends on them" in result.stderr
    result = CliRunner().invoke(launch.app, ["export", str(tmp_path / "run"), "--format", "weights"])
    assert result.exit_code == 0, result.output
    assert "depend on the other images of a batch" in (tmp_path / "run/export/weights/README.md").read_text()
