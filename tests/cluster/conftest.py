"""One SLURM for all files of this folder that one process runs, and two hosts for each file that wants them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import two_hosts
from tests.cluster.slurm import Slurm, missing
from tests.distributed.runs import launch, write_config


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process without SLURM."""
    folder = tmp_path_factory.mktemp("alone")
    done = launch(0, "run", write_config(folder), "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, str]]:
    """The addresses of two hosts by name."""
    with two_hosts() as both:
        yield both
