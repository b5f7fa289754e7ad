"""``launch.py distill`` under torchrun: the same bits on any number of ranks, and after a kill on another number."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, command, environment, launch, write_config
from tests.distributed.test_failures import pid_of_rank, wait_for
from tests.unit.models.models_hugging_folders import WORDS, write_hugging

pytestmark = pytest.mark.slow

# 42 steps of 1 to 4 micro-batches, so that of three ranks some are idle; texts of unequal length, in bf16.
CONFIG = """
name: half
seed: 3
model: {{name: "hf:{folder}/bert", precision: bf16, lora: {{r: 2, lora_alpha: 4, target: [q, k, v]}}}}
data: {{name: text_files, root: "{folder}/tables", columns: {{label: label}}}}
submodel: {{layers_retained: [0], intermediate_rank: 40}}
distill: {{epochs: 6, batch_size: 12, micro_batch: 3, lr: 0.01}}
"""
SAME = ("distillation.jsonl", "submodel.safetensors", "submodel.json")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    write_hugging(folder / "bert")
    (folder / "tables").mkdir()
    rows = [
        {"text": " ".join(WORDS[(number * step) % 8] for step in range(1, 2 + number % 7)), "label": "ab"[number % 2]}
        for number in range(120)
    ]
    (folder / "tables" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return write_config(folder, CONFIG.format(folder=folder))


def same_folder(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in SAME)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """The distillation that nobody disturbs, in one process."""
    done = launch(0, "distill", config, "--out", config.parent / "whole")
    assert done.returncode == 0, done.stderr
    return config.parent / "whole"


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_bits(ranks: int, config: Path, whole: Path, tmp_path: Path) -> None:
    done = launch(ranks, "distill", config, "--out", tmp_path / "half")
    assert done.returncode == 0, done.stderr
    assert same_folder(tmp_path / "half", whole)
    steps = json.loads((whole / "submodel.json").read_text())["steps"]
    assert (whole / "distillation.jsonl").read_bytes().count(b"\n") == steps == 42


def ended_by(number: signal.Signals, config: Path, out: Path) -> tuple[int, str]:
    """Distil on two ranks, of which the second gets a signal once something is saved; return exit code and errors."""
    process = subprocess.Popen(
        command(2, "distill", config, "--out", out),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((out / "checkpoint.json").exists, 120)
    os.kill(pid_of_rank(process.pid, 1), number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_rank_that_is_told_to_leave_has_all_save_and_leave(config: Path, whole: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    _, errors = ended_by(signal.SIGUSR1, config, told)
    assert (told / "exit_code").read_text() == "75\n"
    rows = (told / "distillation.jsonl").read_bytes().count(b"\n")
    assert rows < 42
    assert f"told to leave: step {rows} of 42 is saved, --resume goes on from it" in errors
    done = launch(0, "distill", config, "--out", told, "--resume")
    assert done.returncode == 0, done.stderr
    assert same_folder(told, whole)


def test_a_killed_rank_costs_nothing(config: Path, whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    code, _ = ended_by(signal.SIGKILL, config, broken)
    assert code != 0
    assert not (broken / "submodel.json").exists()
    done = launch(0, "distill", config, "--out", broken, "--resume")
    assert done.returncode == 0, done.stderr
    assert same_folder(broken, whole)
