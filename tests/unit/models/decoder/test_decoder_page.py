"""A run as docs/segmentation.md has it, and its script, which must need nothing of fedsim."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.configure import load_config
from fedsim.measure.global_model import global_model
from fedsim.storage.checkpoint import Checkpoints
from launch import app
from tests.docs.pages import ROOT, blocks


@pytest.mark.usefixtures("cache")
def test_the_page_s_script_gives_the_masks_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _, write, _, script, *_ = (block.text for block in blocks((ROOT / "docs" / "segmentation.md").read_text()))
    Path("decoder.yaml").write_text(config)
    exec(write, {})
    done = CliRunner().invoke(app, ["run", "decoder.yaml", "train.epochs=4", "train.lr=0.02"])
    assert done.exit_code == 0, done.stderr or done.exception
    # In its isolated mode Python looks neither into the current folder nor where PYTHONPATH points.
    guard = "assert not {name.partition('.')[0] for name in sys.modules} & {'fedsim', 'algorithms'}"
    command = [sys.executable, "-I", "-c", f"{script}\nimport sys\n{guard}"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr

    sim = build_simulation(load_config("runs/decoder/config.yaml"), open_group())
    saved = Checkpoints(Path("runs/decoder/checkpoints"), sim.config, sim.group).load("best")
    assert saved is not None
    pixels = torch.from_numpy(np.array(Image.open("sites/a/images/0.png").convert("RGB"))).movedim(2, 0)[None] / 255
    params = global_model(sim, saved.state).params
    expected = sim.model.forward(params, sim.model.prefix(pixels)[None], training=False)[0]
    np.testing.assert_allclose(np.load("scores.npy"), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert np.array_equal(np.array(Image.open("mask.png")), 255 * expected[0].argmax(0).numpy())
    assert len(np.unique(expected[0].argmax(0))) == 2
    # Each site's own figures, and what the folder has beside them.
    rows = Path("runs/decoder/clients.jsonl").read_text()
    assert rows.count('"dice/nucleus"') > 0
    assert Path("runs/decoder/predictions.png").is_file()
