"""Whose code runs: what a run folder names, or what lies in it, is imported with --trust alone."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from typer.testing import CliRunner

import launch
from fedsim.config.experiment import dump_config
from fedsim.config.words import SubmodelConfig
from fedsim.configure import load_config, own_names
from fedsim.errors import UserError
from fedsim.inputs.public import load_public
from fedsim.runfolder.runlog import require_same_run
from fedsim.runfolder.trust import importing, load_own, load_own_distillation, load_recorded
from tests.distributed.runs import TINY

OWN = ("theirs", "mine", "beside", "current", "runs")
METHOD = """
from pathlib import Path
from fedsim.algorithms.base import Algorithm

(Path(__file__).parent / "ran").touch()

class Method(Algorithm):
    pass

def make(*given):
    return None
"""
KEYS = {"algorithm": "Method", "data": "make", "model": "make"}


@pytest.fixture(autouse=True)
def _fresh_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]


def write(folder: Path, name: str, module: str = "theirs", section: str = "algorithm") -> Path:
    """A folder with a module that leaves a mark where it runs, and a config that names a part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(METHOD)
    words = {**yaml.safe_load(TINY), "algorithm": {"name": "fedavg"}, section: {"name": name}}
    (folder / "config.yaml").write_text(yaml.safe_dump(words))
    return folder / "config.yaml"


def test_a_recorded_config_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "runs" / "theirs", "runs.theirs.theirs.Method")
    inside = write(tmp_path / "runs" / "inside", "theirs.Method")
    for place, file in ((tmp_path, config), (inside.parent, inside)):
        monkeypatch.chdir(place)
        monkeypatch.syspath_prepend(place)
        with pytest.raises(UserError, match=r"config.yaml: algorithm.name: found .*, code that .*; expected --trust"):
            load_recorded(file)
        result = CliRunner().invoke(launch.app, ["evaluate", str(file.parent)])
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert not (file.parent / "ran").exists()
        assert "--trust" in result.stderr
    assert load_recorded(inside, trust=True).algorithm.name == "theirs.Method"
    assert (inside.parent / "ran").exists()


def test_evaluate_puts_nothing_on_the_path_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    load_recorded(tmp_path / "config.yaml")
    load_recorded(tmp_path / "config.yaml", trust=True)
    assert sys.path == before


def test_going_on_compares_the_recorded_config_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write(tmp_path / "mine", "mine.Method", "mine")
    theirs = write(tmp_path / "runs" / "theirs", "theirs.Method")
    monkeypatch.syspath_prepend(theirs.parent)
    config = load_own(own, [], theirs.parent)
    with pytest.raises(UserError, match=r"--resume: algorithm.name: found 'mine.Method'; expected 'theirs.Method' as"):
        require_same_run(config, theirs)
    assert not (theirs.parent / "ran").exists()
    theirs.write_text(dump_config(config))
    assert require_same_run(config, theirs) == (2, None)


@pytest.mark.parametrize("layout", ["beside", "namespace", "package", "linked"])
def test_a_method_in_the_run_folder_needs_trust(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs" / "out"
    name = "theirs.Method" if layout in ("beside", "linked") else "runs.out.theirs.Method"
    config = write(out, name)
    if layout == "package":
        (out / "__init__.py").write_text((out / "theirs.py").read_text())
    if layout == "linked":
        (tmp_path / "elsewhere").mkdir()
        (out / "theirs.py").rename(tmp_path / "elsewhere" / "theirs.py")
        (out / "theirs.py").symlink_to(tmp_path / "elsewhere" / "theirs.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(out if layout in ("beside", "linked") else tmp_path)
    with pytest.raises(UserError, match=r"algorithm.name: found .*, in the run folder; expected --trust"):
        load_own(config, [], Path("runs/out"))
    assert not list(tmp_path.rglob("ran"))
    assert load_own(config, [], Path("runs/out"), trust=True).algorithm.name == name
    assert list(tmp_path.rglob("ran"))


def test_the_folder_that_run_takes_by_itself_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "runs" / "tiny", "theirs.Method")  # the config's name is tiny
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(launch.app, ["run", str(config), "--resume"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert not (config.parent / "ran").exists()


def test_the_user_s_own_method_is_found_beside_the_config_and_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = write(tmp_path / "a", "beside.Method", "beside")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "current.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path / "here")
    assert load_own(beside, [], tmp_path / "out").algorithm.name == "beside.Method"
    assert load_own(beside, ["algorithm.name=current.Method"]).algorithm.name == "current.Method"


def test_nothing_is_put_on_the_path_for_a_method_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TINY)
    before = [*sys.path]
    assert load_own(tmp_path / "config.yaml", ["rounds=1"]) == load_config(tmp_path / "config.yaml", ["rounds=1"])
    assert sys.path == before


def test_the_guard_goes_again(tmp_path: Path) -> None:
    before = [*sys.meta_path]
    with importing([], tmp_path):
        assert len(sys.meta_path) == len(before) + 1
    assert sys.meta_path == before


def test_the_path_does_not_grow_with_every_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "mine", "beside.Method", "beside")
    monkeypatch.chdir(tmp_path)
    load_own(config, [])
    before = [*sys.path]
    load_own(config, [])
    assert sys.path == before
    assert str(config.parent) in before


@pytest.mark.parametrize("section", KEYS)
def test_method_data_and_model_are_all_code(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"theirs.{KEYS[section]}"
    config = write(tmp_path / "runs" / "theirs", name, section=section)
    monkeypatch.chdir(config.parent)
    with pytest.raises(UserError, match=rf"config.yaml: {section}.name: found '{name}', code that .*--trust to import"):
        load_recorded(config)
    monkeypatch.syspath_prepend(config.parent)
    with pytest.raises(UserError, match=rf"{section}.name: found .*, in the run folder; expected --trust"):
        load_own(config, [], config.parent)
    assert not (config.parent / "ran").exists()
    assert own_names(load_recorded(config, trust=True)) == {f"{section}.name": name}
    assert (config.parent / "ran").exists()


@pytest.mark.parametrize("section", ["data", "model"])
def test_a_name_that_leads_nowhere_is_told_with_its_place(section: str, tmp_path: Path) -> None:
    config = write(tmp_path / "mine", "mine.absent", "mine", section)
    with pytest.raises(UserError, match=rf"config.yaml: {section}.name: found 'mine.absent' \(no absent in mine\)"):
        load_own(config, [])
    with pytest.raises(UserError, match=rf"^command line: {section}.name: found 'mine.Other'"):
        load_own(config, [f"{section}.name=mine.Other"])


def test_a_distillation_finds_code_as_a_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {key: value for key, value in yaml.safe_load(TINY).items() if key in ("name", "model")}
    words |= {"data": {"name": "mine.make"}, "submodel": {"intermediate_rank": 2}}
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(METHOD)
    (folder / "config.yaml").write_text(yaml.safe_dump(words))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data.name: found .*, in the run folder"):
        load_own_distillation(folder / "config.yaml", [], folder)
    assert not (folder / "ran").exists()
    assert load_own_distillation(folder / "config.yaml", []).data.name == "mine.make"
    # A run that is given the folder reads its data too, without being asked whose code that is.
    with pytest.raises(
        UserError, match=r"model.submodel.folder: data.name: found 'mine.make', code that the sub-model"
    ):
        load_public(SubmodelConfig(folder=str(folder)), cast(Any, None))
