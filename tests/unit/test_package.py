"""What ``pip install .`` puts into a fresh virtual environment, and that it runs there, far from the repository.

PyTorch and all else that is large comes from the environment of the tests, by a .pth file.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fedsim
from tests.docs.pages import FEW
from tests.unit.test_repository import ROOT, tracked_files

#: The folders of the repository that are parts of the package, and where they lie in an installation.
PARTS = {"fedsim": "fedsim", "algorithms": "fedsim/algorithms", "comm": "fedsim/comm", "configs": "fedsim/configs"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a virtual environment ``venv`` that fedsim was installed in."""
    folder = tmp_path_factory.mktemp("installed")
    for name in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
    for name in ("launch.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site(folder) / "shared.pth").write_text(sysconfig.get_path("purelib"))
    # Without the network: neither what the package needs nor what builds it is asked for.
    alone = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv/bin/python", "install", *alone, folder / "source"]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(folder / "source")
    return folder


def site(place: Path) -> Path:
    """Where the environment keeps its packages."""
    return next((place / "venv" / "lib").glob("python*/site-packages"))


def call(place: Path, program: str, *arguments: str, **variables: str) -> str:
    """Run a program of the environment from a folder of its own, and return what it shows."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(place / "venv/bin" / program), *arguments]
    kept |= {"OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=place, env=kept, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_the_program_is_installed_and_nothing_beside_it(place: Path) -> None:
    expected = {Path("fedsim/launch.py")}
    for file in tracked_files():
        top, *rest = file.relative_to(ROOT).parts
        if top in PARTS and not file.is_symlink():
            expected.add(Path(PARTS[top], *rest))
    found = {path.relative_to(site(place)) for path in site(place).rglob("*") if path.is_file()}
    ours = {path for path in found if path.parts[0] == "fedsim" and path.suffix != ".pyc"}
    assert ours == expected
    assert {path.parts[0].partition("-")[0] for path in found - {Path("shared.pth")}} == {"fedsim"}


def test_nothing_of_ours_takes_a_common_name(place: Path) -> None:
    names = "comm", "algorithms", "configs", "launch", "tests"
    program = f"import importlib.util as find; print(*(bool(find.find_spec(name)) for name in {names}))"
    without = "import sys; sys.path = [path for path in sys.path if 'venv' in path or 'lib/python' in path]; "
    ours = f"{without}import importlib.util as find, fedsim; print(fedsim.__file__); "
    shown = call(place, "python", "-c", ours + program).splitlines()
    assert Path(shown[0]).is_relative_to(site(place))
    elsewhere = {name for name in names if (Path(sysconfig.get_path("purelib")) / name).exists()}
    assert shown[1].split() == [str(name in elsewhere) for name in names]


def test_the_command_answers_far_from_the_repository(place: Path) -> None:
    assert call(place, "fedsim", "--version") == f"fedsim {fedsim.__version__}\n"
    assert call(place, "python", "-m", "fedsim.launch", "--version") == f"fedsim {fedsim.__version__}\n"
    listed = call(place, "fedsim", "list", "configs").splitlines()
    files = [line.partition("  ")[0].strip() for line in listed]
    assert all((place / file).is_file() for file in files)
    assert len(files) == len(list(ROOT.glob("configs/**/*.yaml")))


def test_the_shell_completes_verbs_and_options(place: Path) -> None:
    for typed, found in (("fedsim ev", ["evaluate"]), ("fedsim export --fo", ["--format"])):
        position = str(len(typed.split()) - 1)
        shown = call(place, "fedsim", _FEDSIM_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=position)
        assert shown.split() == found


@pytest.mark.slow
def test_the_quickstart_runs_there(place: Path) -> None:
    config = site(place) / "fedsim/configs/quickstart.yaml"
    few = FEW.replace("'", "").split(" data.fractions")[0].split()
    shown = call(place, "fedsim", "run", str(config), *few, "clients.partition.alpha=10")
    assert "finished after round 1" in shown
    facts = (place / "runs/quickstart/environment.json").read_text()
    assert f'"fedsim": "{fedsim.__version__}"' in facts
    assert '"git": null' in facts
