"""``launch.py submit`` and the scripts for one node and for arrays, on a real SLURM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm import SCRIPTS, Slurm
from tests.distributed.runs import ROOT, launch, results, same_log, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def submit(slurm: Slurm, folder: Path, *words: object) -> str:
    """Submit from a folder, and return the job's number."""
    command = [sys.executable, str(ROOT / "launch.py"), "submit", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=slurm.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_two_nodes_give_the_bits_of_one_process(slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    words = ("--nodes", 2, "--gpus-per-node", 1, "--cpus-per-rank", 1, "--time", "10:00")
    job = submit(slurm, tmp_path, write_config(tmp_path), *words)
    assert slurm.finish(job) == "COMPLETED", (tmp_path / "runs" / f"tiny-{job}.log").read_text()
    log = (tmp_path / "runs" / f"tiny-{job}.log").read_text()
    assert "2 ranks, backend gloo" in log
    assert all(sign == "\n" or sign.isprintable() for sign in log), "control characters"
    assert results(tmp_path / "runs" / "tiny") == results(alone)
    assert same_log(tmp_path / "runs" / "tiny", alone)


def test_an_array_over_configs_and_seeds_gives_a_folder_each(slurm: Slurm, tmp_path: Path) -> None:
    first = write_config(tmp_path)
    second = tmp_path / "other.yaml"
    second.write_text(first.read_text().replace("name: tiny", "name: other").replace("{name: deer}", "{name: fedavg}"))
    words = ("--array", "4,7", "--gpus-per-node", 1, "--cpus-per-rank", 1)
    job = submit(slurm, tmp_path, first, second, "rounds=1", *words)
    for task in range(4):
        assert slurm.finish(f"{job}_{task}") == "COMPLETED", (tmp_path / "runs" / f"tiny-{job}_{task}.log").read_text()
    folders = [f"{name}_{index}" for name, index in (("tiny", 0), ("tiny", 1), ("other", 2), ("other", 3))]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()) == sorted(folders)
    found = []
    for folder, (config, seed) in zip(folders, [(first, 4), (first, 7), (second, 4), (second, 7)], strict=True):
        here = tmp_path / f"alone_{folder}"
        assert launch(0, "run", config, "rounds=1", f"seed={seed}", "--out", here).returncode == 0
        assert results(tmp_path / "runs" / folder) == results(here)
        assert json.loads((tmp_path / "runs" / folder / "environment.json").read_text())["launcher"] == "srun"
        found.append(results(here)["state_sha256"])
    assert len(set(found)) == 4


@pytest.mark.parametrize("script", ["train.sbatch", "train_one_node.sbatch"])
def test_two_jobs_at_once_on_one_node_do_not_meet(slurm: Slurm, alone: Path, tmp_path: Path, script: str) -> None:
    config = write_config(tmp_path)
    node = ("--nodelist=node01", "--nodes=1", "--gpus-per-node=2")
    tasks = 1 if "one_node" in script else 2  # two ranks, started by one torchrun or as two tasks
    cpus = (f"--ntasks-per-node={tasks}", f"--cpus-per-task={2 // tasks}")
    jobs = [
        slurm.submit(*node, *cpus, SCRIPTS / script, config, "--out", tmp_path / str(number)) for number in range(2)
    ]
    slurm.wait(lambda: all(slurm.state(job)["JobState"] == "RUNNING" for job in jobs), "not both at once")
    for number, job in enumerate(jobs):
        assert slurm.finish(job) == "COMPLETED", slurm.log(job)
        assert "2 ranks, backend gloo" in slurm.log(job)
        assert results(tmp_path / str(number)) == results(alone)
        assert same_log(tmp_path / str(number), alone)
