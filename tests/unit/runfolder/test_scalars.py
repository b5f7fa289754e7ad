"""Curves are on disk at once, no thread writes them, and a full disk is an error of the call."""

import resource
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedsim.runfolder.scalars import Scalars


def curve(folder: Path) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars("val/loss")]


def test_points_are_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    before = threading.active_count()
    scalars = Scalars(tmp_path / "tensorboard")
    for step in (1, 2):
        scalars.append(step, {"val/loss": step / 4})
        assert len(curve(tmp_path / "tensorboard")) == step
    assert curve(tmp_path / "tensorboard") == [(1, 0.25), (2, 0.5)]
    assert threading.active_count() == before


def test_a_full_disk_is_told_at_once(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path / "tensorboard")
    scalars.append(1, {"val/loss": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file may grow no further: the same error as of a full disk, but for its number.
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            scalars.append(2, {"val/loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(file)
    assert curve(tmp_path / "tensorboard") == [(1, 0.25)]
