"""More than 200 broken configs: each ends in one line that names file and key, exit code 2, no traceback."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import launch
from fedsim.configure import load_config

ROOT = Path(launch.__file__).parent
VALID: dict[str, Any] = {
    "name": "small",
    "seed": 1,
    "rounds": 3,
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "model": {"name": "packaged:vit_small_dino", "lora": {"r": 4, "lora_alpha": 8, "target": ["q", "v"]}},
    "data": {"name": "digits", "image_size": 28, "fractions": {"val": 0.1, "test": 0.1}, "split_seed": 0},
    "clients": {"count": 4, "per_round": 2, "partition": {"name": "dirichlet", "alpha": 0.1, "min_size": 1}},
    "train": {"lr": 0.01, "momentum": 0.9, "batch_size": 8, "epochs": 1, "schedule": {"name": "constant"}},
    "evaluate": {"every": 1, "batch_size": 64},
    "checkpoint": {"every": 1, "keep": 2},
}
LEAVE_OUT = object()
HUGE = 10**40
NAN, INFINITY = float("nan"), float("inf")
NO_COUNT = [0, -1, 1.5, "5", True, None, [1], {"a": 1}, HUGE, NAN]
NO_WHOLE = [-1, 0.5, "0", False, None, [], HUGE]
NO_POSITIVE = [0, -0.1, "0.1", True, None, [0.1], NAN, INFINITY]
NO_SECTION = [None, 3, "text", [], True]
NO_WORD = ["nonsense", "", 3, None, [], {}]
# What is wrong at a key; every value listed makes the config invalid.
WRONG: dict[str, list[Any]] = {
    "name": ["", "a b", "a/b", "..", "name\n", 5, None, ["small"], True, "x" * 300, LEAVE_OUT],
    "seed": [*NO_WHOLE, 1e3],
    "rounds": [*NO_COUNT, LEAVE_OUT],
    "algorithm": NO_SECTION,
    "algorithm.name": ["fedprx", "no.such.module.Class", "os.path.join", *NO_WORD[1:]],
    "algorithm.mu": [-1, "0.1", None, [], NAN, INFINITY, True],
    "model": [*NO_SECTION, LEAVE_OUT],
    "model.name": [
        "vit_small_dino",
        "packaged:vit_smal_dino",
        "timm:",
        "open_clip:hf-hub:",
        LEAVE_OUT,
        *NO_WORD,
    ],
    "model.weights": ["nowhere.safetensors", "weights.pt", "", 3, ["a"], "/dev/zero", "a\0.safetensors"],
    "model.options": [{"depth": 2}, {"depth": None}, [], None],
    "model.lora": [3, "yes", [], True],
    "model.lora.r": [*NO_COUNT],
    "model.lora.lora_alpha": [*NO_POSITIVE],
    "model.lora.target": ["q", [], ["q", "q"], [3], [""], None],
    "model.train": ["head", "all", *NO_WORD],
    "model.classifier": ["text", "nonsense", None],
    "model.prompt": ["a photo of a {}", "no place", "{} and {}", None],
    "model.train_logit_scale": [True, "true", 1, None],
    "model.precision": ["fp16", 32, None],
    "data": [*NO_SECTION, LEAVE_OUT],
    "data.name": ["digts", "medmnist", "medmnist:nothing", "image_folder", *NO_WORD, LEAVE_OUT],
    "data.root": ["no/such/folder", "", 3],
    "data.image_size": [0, 7, 5000, "28", 28.5, None],
    "data.augment": ["flip", ["flp"], ["flip", "flip"], None],
    "data.fractions.val": [0, 1, 0.95, -0.1, "0.1", None],
    "data.max_train": [0, -5, "all", 2.5],
    "clients": [*NO_SECTION, LEAVE_OUT],
    "clients.count": [*NO_COUNT, LEAVE_OUT],
    "clients.per_round": [0, 5, -1, 0.0, 1.0, 1.5, "some", None, [], True, NAN],
    "clients.sampling": ["volumes", None],
    "clients.weighting": ["sample", 1],
    "clients.min_samples": [0, 1, "2", 2.5, True],
    "clients.per_block": [0, "all", 1.5, None],
    "clients.partition": [
        *(*NO_SECTION, LEAVE_OUT, {"name": "file", "path": "nowhere.json"}, {"name": "file"}),
        *({"name": "diversity"}, {"name": "diversity", "share": 0}, {"name": "diversity", "share": 1.5}),
    ],
    "clients.partition.name": ["dirichelt", "iid", LEAVE_OUT, *NO_WORD],
    "clients.partition.alpha": [*NO_POSITIVE, LEAVE_OUT],
    "clients.partition.min_size": NO_WHOLE,
    "train": [*NO_SECTION, LEAVE_OUT],
    "train.optimizer": ["adam", "adamw", "adagrad", None],
    "train.lr": [*NO_POSITIVE, 1e30, LEAVE_OUT],
    "train.momentum": [-0.1, 1, "0.9", None, NAN],
    "train.betas": [[0.9], [0.9, 0.99, 0.999], [0.5, 0.9], 0.9, [0.9, 1], ["a", 0.9], None],
    "train.weight_decay": [-1, "1", None, INFINITY],
    "train.batch_size": NO_COUNT,
    "train.epochs": [0, -1, 1.5, "1", None],
    "train.steps": [5, 0],
    "train.schedule": [*NO_SECTION, {"name": "step"}, {"name": "cosine", "final": 2}],
    "train.schedule.name": ["cos", None],
    "train.clip_norm": [0, -1, "1", NAN],
    "train.loss": ["dise", 1],
    "train.keep_optimizer": ["yes", 1, None],
    "evaluate.best_by": ["acuracy", 1],
    "evaluate.absent_class": ["nan", None],
    "evaluate.every": [0, 1.5],
    "evaluate.patience": [0, "3"],
    "evaluate.max_val": [0, 2.5],
    "evaluate.test": ["never", None],
    "checkpoint.keep": [0, -1, None],
    # keys that do not exist
    "round": [3],
    "privacy": [{}],
    "model.lora.rank": [8],
    "data.size": [28],
    "clients.partition.beta": [1],
    "train.learning_rate": [0.1],
    "train.schedule.final": [0.1],
    "evaluate.patient": [3],
    "checkpoint.last": [3],
    "algorithm.mue": [0.1],
}
BROKEN_FILES: dict[str, bytes] = {
    "empty": b"",
    "only a comment": b"# nothing\n",
    "list": b"- name: small\n",
    "text": b"small",
    "tab": b"name: small\ntrain:\n\tlr: 0.1\n",
    "open bracket": b"name: [small\n",
    "open quote": b'name: "small\n',
    "two values": b"name: small: large\n",
    "binary": bytes(range(256)),
    "null byte": b"name: a\0b\n",
    "UTF-16": "name: small".encode("utf-16"),
    "duplicate key": b"name: small\nrounds: 1\nrounds: 2\n",
    "nested duplicate key": b"name: small\ntrain: {lr: 1, lr: 2}\n",
    "key that is no text": b"1: small\n",
    "null key": b"? \n: small\n",
    "two documents": b"name: small\n---\nname: large\n",
    "alias": b"name: &a small\ndata: *a\n",
    "alias bomb": b"a: &a [1, 1]\nb: &b [*a, *a]\n",
    "alias to itself": b"a: &a [*a]\n",
    "tag": b"name: !!python/object/apply:os.getcwd []\n",
    "wrong tag": b"rounds: !!int three\n",
    "deep": b"name: " + b"[" * 20_000,
    "many digits": b"rounds: " + b"9" * 10_000,
    "too large": b"# " + b"x" * 2_000_000,
    "wrong indent": b"train:\n  lr: 1\n momentum: 0\n",
}
BROKEN_OVERRIDES = {
    "rounds": "rounds",
    "=3": "=3",
    "train..lr=3": "train..lr=3",
    "rounds=": "rounds",
    "rounds=[1": "rounds",
    "rounds.x=3": "rounds.x",
    "train.lr=1e-3x": "train.lr",
    "train.lrr=1": "train.lrr",
    "seed=*a": "seed",
    " seed=3": " seed=3",
}


@dataclass(frozen=True)
class Case:
    """A broken start: the file's content, overrides, and what the line must name."""

    label: str
    content: bytes
    overrides: tuple[str, ...]
    names: str


def _with(key: str, value: Any) -> bytes:
    """The valid config with another value at ``key``, as YAML."""
    data = copy.deepcopy(VALID)
    *parents, last = key.split(".")
    section = data
    for parent in parents:
        section = section[parent]
    if value is LEAVE_OUT:
        del section[last]
    else:
        section[last] = value
    return yaml.safe_dump(data, sort_keys=False).encode()


def _cases() -> list[Case]:
    mutated = [
        Case(
            f"{key}={'left out' if value is LEAVE_OUT else repr(value)[:40]}",
            _with(key, value),
            (),
            key.split(".")[0],
        )
        for key, values in WRONG.items()
        for value in values
    ]
    files = [Case(label, content, (), "") for label, content in BROKEN_FILES.items()]
    valid = yaml.safe_dump(VALID).encode()
    return mutated + files + [Case(text, valid, (text,), key) for text, key in BROKEN_OVERRIDES.items()]


CASES = _cases()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 200
    assert len({(case.content, case.overrides) for case in CASES}) == len(CASES)


def test_the_config_that_is_mutated_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "valid.yaml"
    file.write_text(yaml.safe_dump(VALID))
    load_config(file)


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_one_line_and_exit_code_2(case: Case, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(case.content)
    result = CliRunner().invoke(launch.app, ["check", str(file), *case.overrides])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    source = "command line" if case.overrides else str(file)
    _check_line(result.stderr, source)
    assert case.names.strip() in result.stderr


def _check_line(stderr: str, source: str) -> None:
    assert stderr.startswith(f"error: {source}: "), stderr
    assert stderr.endswith("\n")
    assert len(stderr.splitlines()) == 1
    assert ": found " in stderr
    assert "; expected " in stderr
    assert len(stderr) < 1200


@pytest.mark.parametrize("key", [key for key, values in WRONG.items() if key.count(".") >= 1])
def test_the_line_names_the_whole_key(key: str, tmp_path: Path) -> None:
    """A wrong type in a nested key is blamed on that key, or on the one that it contradicts."""
    file = tmp_path / "broken.yaml"
    file.write_bytes(_with(key, {"no": ["such", "thing"]}))
    result = CliRunner().invoke(launch.app, ["check", str(file)])
    assert result.exit_code == 2
    assert f"{file}: {key}" in result.stderr


@pytest.mark.parametrize("path", ["", "nowhere.yaml", "nowhere/at_all.yaml", ".", "/dev/zero", "x" * 5000])
def test_no_such_file(path: str) -> None:
    result = CliRunner().invoke(launch.app, ["run", path])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def _start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch.py", *arguments]
    # a proper environment of its own, whatever launcher runs the tests
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RANK"))}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=clean | environment)


@pytest.mark.parametrize(
    "label",
    [
        "rounds='5'",
        "train.lr=nan",
        "algorithm.name='fedprx'",
        "data.root='no/such/folder'",
        "tab",
        "deep",
        "rounds=",
    ],
)
def test_real_process(label: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.label == label)
    file = tmp_path / "broken.yaml"
    file.write_bytes(case.content)
    done = _start("run", str(file), *case.overrides, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    _check_line(done.stderr, "command line" if case.overrides else str(file))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_other_ranks_are_silent(variable: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(json.dumps({}))
    assert "error:" in _start("check", str(file), **{variable: "0"}).stderr
    done = _start("check", str(file), **{variable: "1"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
