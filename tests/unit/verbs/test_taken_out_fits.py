"""Models that are taken out of runs whose images or volumes are cropped or padded, or have findings."""

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from fedsim import launch, server
from fedsim.configure import load_config, load_data
from fedsim.data.images import placed
from fedsim.errors import UserError
from fedsim.runfolder.saved import open_saved
from fedsim.verbs.predict import answers, find_images
from tests.distributed.runs import TINY

FITS = ("crop", "pad")
FITTED = {"crop": "the square in the middle", "pad": "padded with black"}


def write_images(folder: Path) -> None:
    stream = np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = stream.integers(256, size=(20, 31, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{number}.png")


def run_on(folder: Path, name: str, data: dict[str, Any], more: dict[str, Any] | None = None) -> Path:
    words = yaml.safe_load(TINY) | {"data": {"image_size": 14, **data}, "rounds": 1, "algorithm": {"name": "fedavg"}}
    words |= more or {}
    words["clients"] = {"count": 2, "partition": {"name": "iid"}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(words))
    server.run(load_config(folder / f"{name}.yaml", []), folder / name, False)
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on the same files, by how these become square."""
    folder = tmp_path_factory.mktemp("fits")
    write_images(folder / "images")
    words = {"name": "image_folder", "root": str(folder / "images")}
    return {fit: run_on(folder, fit, {**words, "fit": fit}) for fit in FITS}


@pytest.mark.parametrize("fit", FITS)
def test_files_are_prepared_as_the_runs_own(fit: str, runs: dict[str, Path]) -> None:
    with open_saved(runs[fit], "best") as saved:
        dataset, places = saved.sim.dataset, saved.sim.dataset.test
        assert dataset.file_names is not None
        files = [runs[fit].parent / "images" / dataset.file_names[place] for place in places]
        found = torch.stack([answer.scores for answer in answers(saved, find_images(files))])
        with torch.no_grad():
            batch = saved.sim.images.evaluation_batch(places)
            expected = saved.sim.model.forward(saved.params, batch, training=False)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["adapter", "weights", "monai", "onnx"])
@pytest.mark.parametrize("fit", FITS)
def test_the_cards_lines_prepare_a_file_as_the_run_does(
    fit: str, form: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is missing, which torch.onnx works with")
    words = ["export", str(runs[fit]), "--format", form, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(launch.app, words)
    assert result.exit_code == 0, result.output
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL)
    # Turned by its tag, as cameras do.
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = np.random.default_rng(1).integers(256, size=(17, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "new.png", exif=turned)
    with open_saved(runs[fit], "best") as saved:
        (answer,) = answers(saved, find_images([tmp_path / "new.png"]))
    assert answer.size == (17, 40)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "fedsim", None)
        space: dict[str, Any] = {"FOLDER": str(tmp_path / "out"), "FILE": str(tmp_path / "new.png")}
        exec(code, space)
    np.testing.assert_allclose(np.asarray(space["scores"])[0], answer.scores.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("is_whole", [False, True])
def test_the_cards_lines_make_a_volumes_slices_square(
    is_whole: bool, fit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for number in range(10):
        np.save(tmp_path / f"set/{number}.npy", stream.integers(256, size=(5, 16, 26), dtype=np.uint8))
    rows = "".join(f"{number}.npy,{number % 2}\n" for number in range(10))
    (tmp_path / "set/labels.csv").write_text("path,label\n" + rows)
    words = {"name": "table", "root": str(tmp_path / "set"), "file": "labels.csv", "columns": {"label": "label"}}
    whole = {"model": {"name": "monai:resnet18_3d", "weights": "random", "options": {"widen_factor": 0.0625}}}
    run = run_on(tmp_path, "run", {**words, "slices": 3, "fit": fit}, whole if is_whole else {})
    export = ["export", str(run), "--format", "weights", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(launch.app, export).exit_code == 0
    page = (tmp_path / "out/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with open_saved(run, "best") as saved, torch.no_grad():
        place = saved.sim.dataset.test[:1]
        expected = saved.sim.model.forward(saved.params, saved.sim.images.evaluation_batch(place), training=False)[0, 0]
        assert saved.sim.dataset.file_names is not None
        file = tmp_path / "set" / saved.sim.dataset.file_names[place[0]]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "fedsim", None)
        space: dict[str, Any] = {"FOLDER": str(tmp_path / "out"), "FILE": str(file)}
        exec(code, space)
    np.testing.assert_allclose(np.asarray(space["scores"])[0], expected.numpy(), rtol=1e-4, atol=1e-4)
    assert FITTED[fit] in page


def test_a_set_from_outside_becomes_square_as_the_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    like = load_config(runs["crop"] / "config.yaml", []).data
    words = {"name": "image_folder", "root": str(runs["crop"].parent / "images")}
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({"data": words}))
    assert load_data(file, like).fit == "crop"
    file.write_text(yaml.safe_dump({"data": {**words, "fit": "pad"}}))
    with pytest.raises(UserError, match=r"data\.fit: found 'pad'; expected 'crop', as the run has it"):
        load_data(file, like)
    file.write_text(yaml.safe_dump({"data": {"name": "digits"}}))
    assert load_data(file, like).fit == "stretch"


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        ("stretch", [[1, 1, 2, 2], [3, 3, 4, 4]]),
        ("crop", [[0, 1, 2, 0], [0, 3, 4, 0]]),
        ("pad", [[1, 1, 2, 2], [3, 3, 4, 4]]),
    ],
)
def test_a_mask_lies_where_its_image_was(fit: str, expected: list[list[int]]) -> None:
    """Padded, the mask is 4 x 4 with a row above and a row below the image."""
    square = np.array([[1, 2], [3, 4]], np.uint8)
    assert np.asarray(placed(Image.fromarray(square), (4, 2), fit)).tolist() == expected
    assert placed(Image.fromarray(square), (5, 9), fit).size == (5, 9)


def test_findings_are_predicted_each_by_itself(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    files = sorted((tmp_path / "images").rglob("*.png"))
    rows = [{"path": file.name, "found": ("a|b", "a", "b")[place % 3]} for place, file in enumerate(files)]
    with (tmp_path / "images/labels.csv").open("w") as out:
        writer = csv.DictWriter(out, ["path", "found"])
        writer.writeheader()
        writer.writerows(rows)
    words = {"name": "table", "root": str(tmp_path / "images"), "file": "labels.csv", "columns": {"listed": "found"}}
    run = run_on(tmp_path, "listed", words)
    result = CliRunner().invoke(launch.app, ["predict", str(run), str(files[0])])
    assert result.exit_code == 0, result.output
    (row,) = csv.DictReader(result.stdout.splitlines())
    with open_saved(run, "best") as saved:
        (answer,) = answers(saved, find_images([files[0]]))
    assert row.pop("file") == str(files[0])
    assert list(row) == ["a", "b"]
    np.testing.assert_allclose([float(value) for value in row.values()], answer.scores.sigmoid(), atol=2e-6)
    assert CliRunner().invoke(launch.app, ["export", str(run), "--format", "weights"]).exit_code == 0
    assert "before the logistic function" in (run / "export/weights/README.md").read_text()


def test_a_network_is_compared_on_the_pictures_of_rows_that_share_files(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    files = sorted((tmp_path / "images").rglob("*.png"))
    rows = "".join(f"{file.name},{file.parent.name}\n" for file in files for _ in range(3))
    (tmp_path / "images/labels.csv").write_text("path,label\n" + rows)
    words = {"name": "table", "root": str(tmp_path / "images"), "file": "labels.csv", "columns": {"label": "label"}}
    run = run_on(tmp_path, "shared", words)
    result = CliRunner().invoke(launch.app, ["export", str(run), "--format", "weights"])
    assert result.exit_code == 0, result.output
    with open_saved(run, "best") as saved:
        assert saved.sim.dataset.val.max() >= len(saved.sim.dataset.images)
