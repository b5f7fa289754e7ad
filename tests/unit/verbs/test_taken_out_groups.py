"""LoRA on convolutions of groups is taken out unmerged; what would not have the run's scores is refused."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fedsim
from fedsim import launch, server
from fedsim.configure import load_config
from fedsim.models.outside import network
from fedsim.runfolder.saved import open_saved
from fedsim.verbs.predict import answers, find_images
from fedsim.verbs.taken_out import compared
from tests.distributed.runs import TINY

CONVNEXT = {
    "name": "timm:convnext_atto",
    "weights": "random",
    "options": {"dims": [8] * 4, "depths": [1] * 4},
    "lora": {"r": 8, "target": ["all-conv", "fc1"]},
}
GROUPED = "stages.0.blocks.0.conv_dw, a convolution of groups"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with LoRA on depthwise convolutions."""
    folder = tmp_path_factory.mktemp("groups")
    words = yaml.safe_load(TINY) | {"rounds": 1, "algorithm": {"name": "fedavg"}, "model": CONVNEXT}
    words["clients"] = {"count": 2, "partition": {"name": "iid"}}
    words["data"] = {"name": "digits", "image_size": 32, "max_train": 40}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(words))
    server.run(load_config(folder / "tiny.yaml", []), folder / "run", False)
    return folder / "run"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(2).integers(256, size=(20, 26, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "new.png")
    return tmp_path / "new.png"


def run_scores(run: Path, file: Path) -> np.ndarray:
    with open_saved(run, "best") as saved:
        (answer,) = answers(saved, find_images([file]))
    return answer.scores.numpy()


def take_out(run: Path, form: str, out: Path) -> Any:
    return CliRunner().invoke(launch.app, ["export", str(run), "--format", form, "--out", str(out)])


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")  # the card's own lines are warned
@pytest.mark.parametrize("form", ["adapter", "onnx"])
def test_a_program_without_fedsim_has_the_same_scores(
    form: str, run: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is missing, which torch.onnx works with")
    result = take_out(run, form, tmp_path / "out")
    assert result.exit_code == 0, result.output
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL)
    expected = run_scores(run, file)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "fedsim", None)
        space: dict[str, Any] = {"FOLDER": str(tmp_path / "out"), "FILE": str(file)}
        exec(code, space)
    np.testing.assert_allclose(np.asarray(space["scores"])[0], expected, rtol=1e-4, atol=1e-4)


def test_a_loaded_model_has_the_runs_scores(run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's about groups
        model = fedsim.load(run).model
    with open_saved(run, "best") as saved, torch.no_grad():
        places = saved.sim.dataset.test[:3]
        images = saved.sim.dataset.images[torch.from_numpy(places)].float() / 255
        expected = saved.sim.model.forward(saved.params, saved.sim.images.evaluation_batch(places), training=False)[0]
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["weights", "monai"])
def test_weights_alone_cannot_hold_it(form: str, run: Path, tmp_path: Path) -> None:
    result = take_out(run, form, tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: --format: found {form} with LoRA on {GROUPED}")
    assert result.stderr.endswith("; expected --format adapter or onnx\n")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "is_refused"), [(0.1, True), (float("nan"), True), (1e-5, False)])
def test_other_scores_than_the_runs_are_refused(
    change: float, is_refused: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = network.trained_network

    def changed(*given: Any) -> nn.Module:
        net = trained(*given)
        with torch.no_grad():
            net.get_submodule("base_model.model.head.norm").bias.add_(change)  # type: ignore[operator]  # a parameter
        return net

    monkeypatch.setattr(compared, "trained_network", changed)
    result = take_out(run, "adapter", tmp_path / "out")
    if not is_refused:
        assert result.exit_code == 0, result.output
        assert fedsim.load(run).model.class_names
        return
    with pytest.raises(fedsim.UserError, match=r"run: found a model with scores up to \S+ off the run's"):
        _ = fedsim.load(run).model
    assert result.exit_code == 2, result.output
    found = r"error: --format: found adapter with scores up to \S+ off the run's; expected at most 0.001, .*\n"
    assert re.fullmatch(found, result.stderr)
    assert not list(tmp_path.iterdir())
