"""``fedsim.run`` and its company: what they pass on and give back. Ranks: tests/unit/comm/test_start.py."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedsim
from fedsim.verbs import api
from tests.unit.test_repository import ROOT

CONFIG = {"name": "mine", "rounds": 2, "train": {"lr": 1e-3}}


class Starter:
    """Stands in for ``run_ranks``: notes what it is given, and ends as told."""

    def __init__(self, code: int = 0, errors: str = "") -> None:
        self.end = (code, errors)
        self.words: Sequence[str] = ()
        self.config: Any = None

    def __call__(self, module: str, words: Sequence[str], ranks: int, tell: Callable[[str], object]) -> tuple[int, str]:
        self.words, self.ranks = words, ranks
        self.config = yaml.safe_load(Path(words[words.index("--") + 1]).read_text())
        tell("a line")
        assert module == "fedsim.launch"
        return self.end


@pytest.fixture
def starter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Starter:
    monkeypatch.chdir(tmp_path)
    made = Starter()
    monkeypatch.setattr(api, "run_ranks", made)
    return made


def test_a_dictionary_becomes_a_file(starter: Starter) -> None:
    shared = [1, 2]
    lines: list[str] = []
    run = fedsim.run({**CONFIG, "a": shared, "b": shared}, "train.lr=1", ranks=3, resume=True, show=lines.append)
    assert starter.config == {**CONFIG, "a": shared, "b": shared}
    assert (starter.ranks, lines, run.folder) == (3, ["a line"], Path("runs/mine"))
    file = starter.words[starter.words.index("--") + 1]
    assert list(starter.words) == ["run", "--out", "runs/mine", "--resume", "--", file, "train.lr=1"]
    assert not Path(file).exists()


def test_a_file_is_passed_on(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert fedsim.run("x.yaml", "name=y").folder == Path("runs/y")
    assert list(starter.words) == ["run", "--out", "runs/y", "--", "x.yaml", "name=y"]
    fedsim.run(tmp_path / "x.yaml", out="there", trust=True)
    assert list(starter.words) == ["run", "--out", "there", "--trust", "--", str(tmp_path / "x.yaml")]


def test_a_mistake_is_a_user_error_with_its_parts(starter: Starter) -> None:
    starter.end = (2, "a warning\nerror: train.lr: found 'x: y'; or so; expected a number\n")
    with pytest.raises(fedsim.UserError) as caught:
        fedsim.run(CONFIG)
    mistake = caught.value
    assert (mistake.where, mistake.found, mistake.expected) == ("train.lr", "'x: y'; or so", "a number")
    assert str(caught.value) == "train.lr: found 'x: y'; or so; expected a number"


def test_a_mistake_in_a_dictionary_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_module: str, words: Sequence[str], *_: Any) -> tuple[int, str]:
        return 2, f"error: {words[words.index('--') + 1]}: rounds: found 0; expected a whole number >= 1\n"

    monkeypatch.setattr(api, "run_ranks", refuse)
    with pytest.raises(fedsim.UserError, match=r"^config: rounds: found 0; expected a whole number >= 1$"):
        fedsim.run(CONFIG)


def test_a_failure_is_told_whole(starter: Starter) -> None:
    starter.end = (1, "rank 1 failed:\nZeroDivisionError\n")
    with pytest.raises(RuntimeError, match="rank 1 failed:\nZeroDivisionError"):
        fedsim.run(CONFIG)


@pytest.mark.usefixtures("starter")
@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: fedsim.run(CONFIG, ranks=0), "ranks: found 0; expected at least 1"),
        (lambda: fedsim.run("none.yaml"), "none.yaml"),
        (lambda: fedsim.run(CONFIG, "train.lr"), "key=value"),
        (lambda: fedsim.run(CONFIG, ["rounds=1"]), r"changes: found \['rounds=1'\]; expected texts"),  # type: ignore[arg-type]  # as users do
        (lambda: fedsim.evaluate("r", "Last"), "checkpoint: found 'Last'; expected 'best' or 'last'"),  # type: ignore[arg-type]  # as above
        (lambda: fedsim.run({**CONFIG, "seed": {1}}), "config: found Object of type set"),
        (lambda: fedsim.load("nowhere"), "nowhere: found no config.yaml; expected the folder of a run"),
    ],
)
def test_mistakes_before_a_rank_starts(call: Callable[[], object], found: str) -> None:
    with pytest.raises(fedsim.UserError, match=found):
        call()


def test_a_run_is_read_when_asked(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    run = fedsim.load(tmp_path)
    assert [path.name for path in (run.metrics, run.clients, run.timings)] == [
        *("metrics.jsonl", "clients.jsonl", "timings.jsonl"),
    ]
    with pytest.raises(fedsim.UserError, match="a run that has come to its end"):
        _ = run.results
    (tmp_path / "results.json").write_text(json.dumps({"rounds": 3}))
    assert run.results == {"rounds": 3}
    with pytest.raises(fedsim.UserError, match=r"config\.yaml"):
        _ = run.config
    assert repr(run) == f"fedsim.load({str(tmp_path)!r})"


def test_import_fedsim_is_light_and_its_names_are_there() -> None:
    program = (
        "import sys, fedsim; before = set(sys.modules); names = [getattr(fedsim, name) for name in fedsim.__all__]; "
        "heavy = {'torch', 'typer', 'pydantic', 'numpy'}; print(bool(heavy & before), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr
    assert set(fedsim.__all__) < set(dir(fedsim))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = fedsim.nothing_such
