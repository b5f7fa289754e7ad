"""Jobs on a real SLURM of two nodes, through the batch scripts that users copy."""

import time
from pathlib import Path

import pytest

from tests.cluster.slurm import JOB_SECONDS, SCRIPTS, TWO_NODES, Slurm
from tests.distributed.runs import results, same_log, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FAILING = """
import os, time
from pathlib import Path
from fedsim.algorithms.base import Algorithm

class Failing(Algorithm):
    def loss(self, batch):
        if os.environ["SLURM_PROCID"] == "1":
            Path({file!r}).write_text(str(time.time()))
            raise RuntimeError("broken on purpose")
        return super().loss(batch)
"""

WHERE = """#!/bin/bash
place='from fedsim.comm.launcher import find_place; print(find_place())'
"$PYTHON" -c "$place"
srun bash -c '"$PYTHON" -c "$1"' bash "$place"
"""


TWO_RUNS = """#!/bin/bash
for number in 1 2; do
    srun --overlap --cpus-per-task=1 "$PYTHON" launch.py run "$1" --out "$2/$number" &
done
wait -n && wait -n
"""

TAKEN = """#!/bin/bash
# Another program at the port of the job's first step.
port=$((20000 + SLURM_JOB_ID * 127 % 12768))
"$PYTHON" -m http.server --bind 127.0.0.1 $port >&2 2> /dev/null &
sleep 5
srun --nodes=1 --ntasks=2 --overlap "$PYTHON" launch.py run "$1" --out "$2"
"""


def test_a_batch_script_is_one_process_and_its_srun_many(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "where.sbatch"
    script.write_text(WHERE)
    job = slurm.submit(*TWO_NODES, script)
    assert slurm.finish(job, 60) == "COMPLETED", slurm.log(job)
    batch, *tasks = slurm.log(job).splitlines()
    assert "num_ranks=1" in batch
    assert "launcher='none'" in batch
    assert sorted(task.partition(", local")[0] for task in tasks) == [
        f"Place(rank={rank}, num_ranks=2" for rank in (0, 1)
    ]
    assert all("address='node01'" in task and "launcher='srun'" in task for task in tasks)
    assert len({task.partition("address")[2] for task in tasks}) == 1


@pytest.mark.parametrize(
    ("script", "options", "launcher"),
    [
        ("debug.sbatch", (), "srun"),
        ("train.sbatch", ("--gpus-per-node=1",), "srun"),
        ("train_torchrun.sbatch", ("--gpus-per-node=1",), "torchrun"),
    ],
)
def test_two_nodes_give_the_bits_of_one_process(
    slurm: Slurm, alone: Path, tmp_path: Path, script: str, options: tuple[str, ...], launcher: str
) -> None:
    config = write_config(tmp_path)
    job = slurm.submit(*TWO_NODES, *options, SCRIPTS / script, config, "--out", tmp_path / "run")
    assert slurm.finish(job, JOB_SECONDS) == "COMPLETED", slurm.log(job)
    assert "2 ranks, backend gloo" in slurm.log(job)
    assert f'"launcher": "{launcher}"' in (tmp_path / "run" / "environment.json").read_text()
    assert results(tmp_path / "run") == results(alone)
    assert same_log(tmp_path / "run", alone)


def test_two_runs_in_one_allocation_do_not_meet(slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.sbatch"
    script.write_text(TWO_RUNS)
    job = slurm.submit(*TWO_NODES, script, write_config(tmp_path), tmp_path)
    assert slurm.finish(job, JOB_SECONDS) == "COMPLETED", slurm.log(job)
    assert results(tmp_path / "1") == results(tmp_path / "2") == results(alone)


def test_a_taken_port_ends_the_step_with_a_line_per_rank(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "taken.sbatch"
    script.write_text(TAKEN)
    job = slurm.submit("--ntasks=2", script, write_config(tmp_path), tmp_path / "run")
    assert slurm.finish(job, JOB_SECONDS) == "FAILED", slurm.log(job)
    port = 20000 + int(job) * 127 % 12768
    told = [line for line in slurm.log(job).splitlines() if line.startswith("error: ")]
    assert len(told) == 2
    assert all(f"port {port} of 127.0.0.1, where the ranks meet: found " in line for line in told)
    assert any("found Address already in use" in line for line in told)
    assert "Traceback" not in slurm.log(job)


def test_a_rank_that_fails_ends_the_job(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = tmp_path / "moment"
    (tmp_path / "failing.py").write_text(FAILING.format(file=str(moment)))
    monkeypatch.setitem(slurm.environment, "PYTHONPATH", str(tmp_path))
    config = write_config(tmp_path)
    words = ("algorithm={name: failing.Failing}", "--out", tmp_path / "run")
    job = slurm.submit(*TWO_NODES, SCRIPTS / "debug.sbatch", config, *words)
    assert slurm.finish(job, JOB_SECONDS) == "FAILED", slurm.log(job)
    assert time.time() - float(moment.read_text()) < 30
    assert "rank 1 failed" in slurm.log(job)
    assert slurm.log(job).count("RuntimeError: broken on purpose") == 1
