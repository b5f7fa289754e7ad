"""A model of pictures of 16 bits, taken out: predict and the card's lines lay the run's window over new files."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from fedsim.errors import UserError
from fedsim.runfolder.saved import open_saved
from fedsim.verbs.predict import answers, find_images
from fedsim.verbs.taken_out.card_lines import picture_lines
from fedsim.verbs.taken_out.export import export_run
from tests.unit.verbs.test_taken_out_fits import run_on

WINDOW = "2%-98%"


def deep(seed: int, width: int = 31) -> np.ndarray:
    return np.random.default_rng(seed).integers(500, 60000, (20, width)).astype(np.uint16)


@pytest.mark.usefixtures("cache")
def test_the_cards_lines_lay_the_runs_window_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(deep(20 * place + number)).save(tmp_path / "images" / name / f"{number}.png")
    words = {"name": "image_folder", "root": str(tmp_path / "images"), "window": WINDOW, "fit": "crop"}
    run = run_on(tmp_path, "windowed", words)
    Image.fromarray(deep(99)).save(tmp_path / "new.png")
    tifffile.imwrite(tmp_path / "white.tif", deep(98), photometric="miniswhite")
    colours = np.random.default_rng(1).integers(256, size=(20, 31, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "plain.png")
    files = [tmp_path / name for name in ("new.png", "white.tif", "plain.png")]
    with open_saved(run, "best") as saved:
        expected = [answer.scores.numpy() for answer in answers(saved, find_images(files))]
    export_run(run, "weights", "best", tmp_path / "out")
    assert json.loads((tmp_path / "out/card.json").read_text())["inputs"]["window"] == WINDOW
    text = (tmp_path / "out/README.md").read_text()
    assert f"by the window {WINDOW}" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for file, scores in zip(files, expected, strict=True):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "fedsim", None)
            space: dict[str, Any] = {"FOLDER": str(tmp_path / "out"), "FILE": str(file)}
            exec(code, space)
        # A level may be rounded the other way, as these lines count in other bits.
        np.testing.assert_allclose(np.asarray(space["scores"])[0], scores, atol=2e-3)
    with pytest.raises(UserError, match=r"monai of a run on volumes, or with model.amplitude_norm or data.window"):
        export_run(run, "monai", "best", tmp_path / "bundle")


def test_both_kinds_of_windows_are_lines() -> None:
    values = np.arange(0, 4001, 1000, dtype=np.float64)
    for window, ends in (("2000/2000", (1000, 3000)), ("-24.5/1", (-25, -24)), ("25%-75%", (1000, 3000))):
        assert ends_of(window, values) == ends
    assert ends_of("1234567.5/3", values) == (1234566, 1234569)


def test_a_picture_of_one_value_is_grey_as_in_a_run() -> None:
    assert ends_of(WINDOW, np.full(9, 700.0)) == (699.5, 700.5)


def ends_of(window: str, values: np.ndarray) -> tuple[float, float]:
    """Return what the card's lines take for black and white."""
    lines = [one for one in picture_lines({"fit": "crop", "window": window, "size": 8}) if "low, high =" in one]
    space: dict[str, Any] = {"numpy": np, "values": values}
    exec("\n".join(line.strip() for line in lines), space)
    return float(space["low"]), float(space["high"])
