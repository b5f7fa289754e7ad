"""What ``launch.py submit`` writes; tests/cluster submits it to a SLURM."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.errors import UserError
from fedsim.runfolder.place import default_folder
from fedsim.verbs import submit as verb
from tests.distributed.runs import write_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/here/launch.py", "submit", "tiny.yaml", "--dry-run"])
    return write_config(tmp_path).name


def written(tmp_path: Path, name: str) -> list[str]:
    file = tmp_path / "runs" / f"{name}.sbatch"
    assert subprocess.run(["bash", "-n", str(file)], capture_output=True).returncode == 0
    return file.read_text().splitlines()


def test_a_script_has_the_users_words(config: str, tmp_path: Path) -> None:
    verb.submit([config, "rounds=2", "name=a"], nodes=3, gpus_per_node=8, cpus_per_rank=2, time="1:00", dry_run=True)
    lines = written(tmp_path, "a")
    assert lines[0] == "#!/bin/bash"
    assert lines[1] == "# launch.py submit tiny.yaml"
    for line in (
        f"#SBATCH --chdir={tmp_path}",
        "#SBATCH --nodes=3",
        "#SBATCH --gpus-per-node=8 --ntasks-per-node=8",
        "#SBATCH --time=1:00",
        "#SBATCH --job-name=a",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --output=runs/a-%j.log --open-mode=append",
        "set -- tiny.yaml rounds=2 name=a --out runs/a",
        f"python=${{PYTHON:-{sys.executable}}}",
    ):
        assert lines.count(line) == 1, line
    assert any("/here/launch.py run " in line for line in lines)


def test_without_gpus_the_script_asks_for_none(config: str, tmp_path: Path) -> None:
    verb.submit([config], gpus_per_node=0, ranks_per_node=5, dry_run=True)
    lines = written(tmp_path, "tiny")
    assert "#SBATCH --ntasks-per-node=5" in lines
    assert not any("--gpus" in line for line in lines)


def test_an_array_has_a_task_for_each_config_with_each_seed(config: str, tmp_path: Path) -> None:
    other = tmp_path / "other one.yaml"
    other.write_text(Path(config).read_text())
    verb.submit([config, str(other), "rounds=2"], array="3,5-6", out=Path("runs/mine"), dry_run=True)
    lines = written(tmp_path, "mine")
    assert "#SBATCH --array=0-5" in lines
    assert f"configs=(tiny.yaml '{other}')" in lines
    assert "seeds=(3 5 6)" in lines
    assert "set -- rounds=2" in lines
    assert "run=runs/mine_$SLURM_ARRAY_TASK_ID" in lines
    assert any("--output=runs/mine-%A_%a.log" in line for line in lines)


def test_every_line_that_is_filled_in_stands_in_its_script() -> None:
    options = ("nodes", "gpus-per-node", "ntasks-per-node", "cpus-per-task", "time", "job-name", "output")
    for template, names in (("train", options), ("array", (*options, "array"))):
        text = (verb.SCRIPTS / f"{template}.sbatch").read_text()
        header, _, commands = text.partition(verb.HEADER)
        assert [name for name in names if header.count(f" --{name}=") != 1] == []
        assert "#SBATCH" not in commands, "SLURM reads none behind the first command"


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["tiny.yaml", "rounds=0"], {}, "rounds"),
        (["tiny.yaml", "tiny.yaml"], {}, "submit: found 2 configs; expected one, or --array SEEDS"),
        (["tiny.yaml"], {"array": "1-"}, "--array: found '1-'; expected seeds"),
        (["tiny.yaml"], {"array": "1,2,1-2"}, "--array: found"),
        (["tiny.yaml"], {"array": "5-3"}, "--array: found"),
        (["tiny.yaml", "seed=3"], {"array": "1"}, "--array: found seeds beside seed=3"),
    ],
)
def test_a_mistake_is_told_before_anything_waits_in_a_queue(
    words: list[str], options: dict[str, str], message: str, config: str
) -> None:
    assert config == "tiny.yaml"
    with pytest.raises(UserError) as caught:
        verb.submit(words, **options)
    assert message in str(caught.value)
    assert not Path("runs").exists()


def test_a_script_that_somebody_has_changed_stays(config: str, tmp_path: Path) -> None:
    verb.submit([config], dry_run=True)
    verb.submit([config], dry_run=True)
    file = tmp_path / "runs" / "tiny.sbatch"
    file.write_text(file.read_text() + "# mine\n")
    with pytest.raises(UserError, match=r"tiny\.sbatch: found a script of other content"):
        verb.submit([config], dry_run=True)
    assert file.read_text().endswith("# mine\n")


def test_what_sbatch_says_is_one_line(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="submit: found no sbatch here"):
        verb.submit([config])
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'sbatch: error: no\nsuch partition' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(UserError, match="sbatch: found sbatch: error: no such partition; expected options"):
        verb.submit([config])


def test_an_sbatch_that_does_not_answer_is_one_line(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(verb, "SUBMIT_SECONDS", 0.01)
    with pytest.raises(UserError, match=r"sbatch: found no answer in 0\.01 seconds"):
        verb.submit([config])


def test_in_a_job_array_the_default_folder_has_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert default_folder("mine") == Path("runs/mine")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert default_folder("mine") == Path("runs/mine_7")
