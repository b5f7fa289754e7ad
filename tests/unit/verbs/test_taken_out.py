"""``predict`` and ``export`` on finished runs: a program without fedsim comes to the same scores."""

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import launch
from fedsim import server
from fedsim.configure import load_config
from fedsim.runfolder.saved import open_saved
from fedsim.verbs.predict import answers, find_images
from tests.distributed.runs import write_config, write_masked_config

KINDS = ("lora", "whole", "masked", "decoded")
DECODED = (
    "model={name: 'timm:vit_tiny_patch16_224', weights: random, decoder: {name: linear}, lora: {r: 2}, "
    "options: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}"
)
WHOLE = "model={name: 'timm:test_resnet', weights: random, train: all}"
UNET = "model={name: 'monai:unet', weights: random, options: {channels: [4, 8], strides: [2], norm: batch}}"
FORMATS = [
    *(("lora", form) for form in ("adapter", "weights", "onnx", "monai")),
    *(("decoded", form) for form in ("adapter", "weights", "onnx")),
    *((kind, form) for kind in ("whole", "masked") for form in ("weights", "onnx", "monai")),
]

# Of vmap, under which some layers are not batched.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs: LoRA, a whole network, and for masks a whole network and LoRA with a decoder."""
    folder = tmp_path_factory.mktemp("runs")
    file = write_config(folder)
    changes = {
        "lora": ["algorithm={name: fedavg}", "train.lr=0.5"],
        "whole": ["algorithm={name: fedavg}", WHOLE, "data.image_size=32", "clients.partition.alpha=10"],
    }
    for kind, words in changes.items():
        server.run(load_config(file, ["rounds=2", *words]), folder / kind, False)
    masked = tmp_path_factory.mktemp("data")
    file = write_masked_config(masked)
    for kind, model in (("masked", UNET), ("decoded", DECODED)):
        server.run(load_config(file, ["algorithm={name: fedavg}", model]), folder / kind, False)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes and modes, in a folder and one below it."""
    folder = tmp_path_factory.mktemp("pictures")
    stream = np.random.default_rng(3)
    (folder / "more").mkdir()
    for name, shape in {"a.png": (40, 30, 3), "more/b.png": (16, 50), "more/c.jpg": (33, 33, 3)}.items():
        Image.fromarray(stream.integers(256, size=shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(launch.app, list(map(str, arguments)))


def run_scores(run: Path, file: Path) -> np.ndarray:
    with open_saved(run, "best") as saved:
        (answer,) = answers(saved, find_images([file]))
    return answer.scores.numpy()


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(("kind", "form"), FORMATS)
def test_a_program_without_fedsim_has_the_same_scores(
    kind: str, form: str, runs: dict[str, Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is missing, which torch.onnx works with")
    result = invoke("export", runs[kind], "--format", form, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["largest_difference"] < 1e-4
    page = (tmp_path / "out/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 10
    for file in sorted(pictures.rglob("*.png")):
        expected = run_scores(runs[kind], file)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "fedsim", None)
            space: dict[str, Any] = {"FOLDER": str(tmp_path / "out"), "FILE": str(file)}
            exec(code, space)
        np.testing.assert_allclose(np.asarray(space["scores"])[0], expected, rtol=1e-4, atol=1e-4)
    assert all(name in page for name in card["class_names"])
    assert card["round"] in (1, 2)
    assert all(f"{name} {version}" in page for name, version in card["libraries"].items())
    assert card["test"].keys() == card["val"].keys()


def test_predictions_of_classes(runs: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    result = invoke("predict", runs["lora"], pictures)
    assert result.exit_code == 0, result.output
    rows = read(result.stdout)
    assert [row["file"] for row in rows] == [str(pictures / name) for name in ("a.png", "more/b.png", "more/c.jpg")]
    for row in rows:
        scores = torch.from_numpy(run_scores(runs["lora"], Path(row["file"])))
        shares = [float(value) for name, value in row.items() if name not in ("file", "class")]
        np.testing.assert_allclose(shares, scores.softmax(0), atol=2e-6)
        assert row["class"] == [name for name in row if name not in ("file", "class")][int(scores.argmax())]
    table = tmp_path / "new" / "table.csv"
    assert invoke("predict", runs["lora"], pictures / "a.png", pictures / "more", "--out", table).exit_code == 0
    assert read(table.read_text()) == rows
    for place, found in ((tmp_path, "a folder"), (table / "more.csv", "Not a directory|File exists")):
        result = invoke("predict", runs["lora"], pictures, "--out", place)
        assert result.exit_code == 2
        assert re.fullmatch(rf"error: --out: found {place}[:,] ({found}); expected .*\n", result.stderr)


def test_the_images_of_a_run_are_predicted_as_in_the_run(runs: dict[str, Path], tmp_path: Path) -> None:
    with open_saved(runs["masked"], "best") as saved:
        sim = saved.sim
        place = sim.dataset.test[:1]
        Image.fromarray(sim.dataset.images[place[0]].movedim(0, -1).numpy()).save(tmp_path / "one.png")
        with torch.no_grad():
            expected = sim.model.forward(saved.params, sim.images.evaluation_batch(place), training=False)[0, 0]
    np.testing.assert_allclose(run_scores(runs["masked"], tmp_path / "one.png"), expected, atol=1e-6)


def test_predictions_of_masks(runs: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    result = invoke("predict", runs["masked"], pictures, "--out", tmp_path / "masks")
    assert result.exit_code == 0, result.output
    rows = read((tmp_path / "masks/masks.csv").read_text())
    assert [row["mask"] for row in rows] == [str(tmp_path / f"masks/{name}.png") for name in ("a", "more/b", "more/c")]
    for row in rows:
        with Image.open(row["file"]) as picture, Image.open(row["mask"]) as mask:
            assert mask.size == picture.size
            pixels = np.asarray(mask)
        shares = [float(value) for name, value in row.items() if name not in ("file", "mask")]
        np.testing.assert_allclose(shares, [(pixels == number).mean() for number in range(len(shares))], atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("predict", "{lora}", "{tmp}/none.png"), "no such file"),
        (("predict", "{lora}", "{tmp}"), "no image; expected files that end in"),
        (("predict", "{lora}", "{pictures}", "{pictures}/more", "{pictures}/more/b.png"), None),
        (("predict", "{lora}", "{pictures}/notes.txt"), "unreadable image"),
        (("predict", "{masked}", "{pictures}"), "--out: found nothing; expected a folder for the masks"),
        (("predict", "{tmp}", "{pictures}"), "config.yaml"),
        (("export", "{whole}", "--format", "adapter"), "adapter of a run with train: all; expected weights"),
        (("export", "{lora}", "--format", "weights", "--out", "{pictures}"), "something that is there already"),
        (("export", "{lora}", "--format", "torchscript"), "torchscript"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], found: str | None, runs: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    result = invoke(*(word.format(**runs, tmp=tmp_path, pictures=pictures) for word in arguments))
    if found is None:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 2
    assert found in result.stderr
    assert "torchscript" in found or result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_onnx_needs_onnxscript(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: find(name) if name != "onnxscript" else None)
    result = invoke("export", runs["whole"], "--format", "onnx", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.endswith("found onnx without the package onnxscript; expected an environment with it\n")
    assert not list(tmp_path.iterdir())


def test_what_torch_onnx_has_no_form_for_is_one_line(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is missing, which torch.onnx works with")

    def fail(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("no decomposition\nfor this")

    monkeypatch.setattr(torch.onnx, "export", fail)
    result = invoke("export", runs["whole"], "--format", "onnx", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "found onnx of timm:test_resnet, for which torch.onnx has no form; expected weights" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_two_images_of_one_name_are_told(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "same.png")
    assert len(find_images([tmp_path])) == 2
    with pytest.raises(ValueError, match=r"two/same\.png: found the name of .*one/same\.png"):
        find_images([tmp_path / "one", tmp_path / "two"])
