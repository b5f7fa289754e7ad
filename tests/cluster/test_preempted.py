"""Jobs that are told to leave: they save, are queued again, and end with the bits of a run that was never told."""

import json
import re
from pathlib import Path

import pytest

from tests.cluster.slurm import SCRIPTS, TWO_NODES, Slurm
from tests.distributed.runs import launch, results, same_log, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROUNDS = 14
# No checkpoint but the one that the run leaves when it is told to.
LONG = (f"rounds={ROUNDS}", "checkpoint.every=100")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert launch(0, "run", write_config(folder), *LONG, "--out", folder / "run").returncode == 0
    return folder / "run"


def in_midst(slurm: Slurm, job: str, run: Path) -> None:
    """Wait until a run has logged rounds, and is not at its end."""
    slurm.wait(lambda: rounds_of(run) >= 2, slurm.log(job), 120)
    assert rounds_of(run) < ROUNDS - 5, "too late to disturb it"


def rounds_of(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize(("script", "signal"), [("train.sbatch", "USR1"), ("train_torchrun.sbatch", "TERM")])
def test_a_job_that_is_told_to_leave_is_queued_again_and_ends_with_the_same_bits(
    slurm: Slurm, whole: Path, tmp_path: Path, script: str, signal: str
) -> None:
    run = tmp_path / "run"
    words = (SCRIPTS / script, write_config(tmp_path), *LONG, "--out", run)
    job = slurm.submit(*TWO_NODES, "--gpus-per-node=1", *words)
    in_midst(slurm, job, run)
    # What SLURM does some time before the job's time is up: the ranks are told, and the script is not.
    slurm.ask("scancel", f"--signal={signal}", job)
    slurm.wait(lambda: slurm.state(job)["Restarts"] == "1", slurm.log(job), 60)
    assert (run / "exit_code").read_text() == "75\n"
    told = re.search(rf"told to leave: round (\d+) of {ROUNDS} is saved", slurm.log(job))
    assert told is not None, slurm.log(job)
    assert [path.name for path in run.glob("checkpoints/round-*")] == [f"round-{int(told[1]):06d}"]
    assert slurm.finish(job) == "COMPLETED", slurm.log(job)
    assert f"round {int(told[1]) + 1}/{ROUNDS}" in slurm.log(job)
    assert results(run) == results(whole)
    assert same_log(run, whole)
    assert (run / "exit_code").read_text() == "0\n"


def test_a_cell_of_a_sweep_that_is_told_to_leave_is_queued_again(slurm: Slurm, whole: Path, tmp_path: Path) -> None:
    sweep, run = tmp_path / "sweep.yaml", tmp_path / "sweep" / "cell"
    cell = {"name": "cell", "rounds": ROUNDS, "checkpoint.every": 100}
    sweep.write_text(json.dumps({"base": str(write_config(tmp_path)), "list": [cell]}))
    job = slurm.submit("--array=0", SCRIPTS / "sweep.sbatch", sweep, "--out", run.parent)
    task = f"{job}_0"
    in_midst(slurm, task, run)
    slurm.ask("scancel", "--signal=USR1", task)
    slurm.wait(lambda: slurm.state(task)["Restarts"] == "1", slurm.log(job), 60)
    assert (run / "exit_code").read_text() == "75\n"
    assert slurm.finish(task) == "COMPLETED", slurm.log(job)
    assert results(run) == results(whole)


def test_a_job_that_its_user_cancels_saves_and_is_not_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (SCRIPTS / "train.sbatch", write_config(tmp_path), *LONG, "--out", run)
    job = slurm.submit(*TWO_NODES, "--gpus-per-node=1", *words)
    in_midst(slurm, job, run)
    slurm.ask("scancel", job)
    slurm.wait((run / "exit_code").exists, slurm.log(job), 60)
    slurm.wait(lambda: not slurm.ask("squeue", "--noheader"), slurm.log(job), 60)
    assert (slurm.state(job)["JobState"], slurm.state(job)["Restarts"]) == ("CANCELLED", "0")
    assert (run / "exit_code").read_text() == "75\n"
    assert len(list(run.glob("checkpoints/round-*"))) == 1
