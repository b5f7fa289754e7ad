"""FedPFT under torchrun: distilled on the ranks, aligned on the ranks, and killed in an alignment."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, command, environment, launch, results, same_log, write_config
from tests.distributed.test_failures import pid_of_rank, wait_for

pytestmark = pytest.mark.slow

MODEL = """
model:
  name: timm:vit_tiny_patch16_224
  weights: random
  options: {patch_size: 7, embed_dim: 32, depth: 3, num_heads: 2, act_layer: relu}
  lora: {r: 2, lora_alpha: 4, target: [q, k, v]}
"""
DISTILLATION = f"""
name: half
seed: 3
{MODEL}
data: {{name: digits, image_size: 14, max_train: 100}}
submodel: {{layers_retained: [0], intermediate_rank: 40}}
distill: {{epochs: 2, batch_size: 32, micro_batch: 8}}
"""
RUN = f"""
name: tiny
seed: 3
rounds: 3
{MODEL}
  submodel: {{folder: %s}}
algorithm: {{name: fedpft, distill: {{epochs: 1, batch_size: 40, micro_batch: 16}}}}
data: {{name: digits, image_size: 14, max_train: 200}}
clients: {{count: 7, per_block: 2, partition: {{name: dirichlet, alpha: 0.5}}}}
train: {{lr: 0.05, momentum: 0.9, batch_size: 8}}
"""
# FedPFT that stops for a while in the middle of the second round's alignment where it is told to.
SLOW = """
import os, time
from pathlib import Path
from fedsim.algorithms.fedpft import FedPFT as Slow
from fedsim.distill.distiller import Distiller

take_step = Distiller._step

def slowly(self, number):
    if "STOP" in os.environ and self._round == 2 and number == 2:
        Path(os.environ["STOP"]).touch()
        time.sleep(300)
    return take_step(self, number)

Distiller._step = slowly
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's config, beside the sub-model that it names."""
    folder = tmp_path_factory.mktemp("fedpft")
    (folder / "distill.yaml").write_text(DISTILLATION)
    done = launch(0, "distill", folder / "distill.yaml", "--out", folder / "half")
    assert done.returncode == 0, done.stderr
    (folder / "slow_alignment.py").write_text(SLOW)
    return write_config(folder, RUN % (folder / "half"))


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """The run that nobody disturbs, in one process."""
    done = launch(0, "run", config, "--out", config.parent / "whole")
    assert done.returncode == 0, done.stderr
    return config.parent / "whole"


def test_any_number_of_ranks_gives_the_same_bits(config: Path, whole: Path, tmp_path: Path) -> None:
    for ranks in (1, 2, 3):
        done = launch(ranks, "run", config, "--out", tmp_path / str(ranks))
        assert done.returncode == 0, done.stderr
        assert results(tmp_path / str(ranks)) == results(whole)
        assert same_log(tmp_path / str(ranks), whole)


def test_what_an_alignment_leaves_in_the_log(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    found = [row["diagnostics"].get("alignment") for row in rows]
    assert [one and one["steps"] for one in found] == [3, 3, None]
    assert found[0] != found[1]
    assert all(0 < row["diagnostics"]["train"]["apoz"] < 1 for row in rows[:2])
    timings = [json.loads(line) for line in (whole / "timings.jsonl").read_text().splitlines()]
    assert ["alignment_seconds" in row for row in timings] == [True, True, False]


def test_a_rank_killed_in_an_alignment_costs_nothing(config: Path, whole: Path, tmp_path: Path) -> None:
    mark, broken = tmp_path / "mark", tmp_path / "broken"
    options = ["algorithm.name=slow_alignment.Slow"]
    process = subprocess.Popen(
        command(2, "run", config, *options, "--out", broken),
        cwd=ROOT,
        env=environment(STOP=str(mark)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(mark.exists, 120)
    os.kill(pid_of_rank(process.pid, 1), signal.SIGKILL)
    assert process.wait(60) != 0
    assert (broken / "metrics.jsonl").read_bytes().count(b"\n") == 1
    done = launch(0, "run", config, *options, "--out", broken, "--resume")
    assert done.returncode == 0, done.stderr
    assert results(broken) == results(whole)
    assert same_log(broken, whole)
