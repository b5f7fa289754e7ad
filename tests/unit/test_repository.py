"""What must hold for the repository as a whole: who imports whom, one list of pins, sizes, examples that load."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from fedsim.config.distill import load_distill_config
from fedsim.configure import load_config
from fedsim.verbs.sweep_plan import Plan

ROOT = Path(__file__).resolve().parents[2]
MODULES = [path for top in ("fedsim", "comm", "algorithms") for path in ROOT.glob(f"{top}/**/*.py")]
PROGRAM = sorted([ROOT / "launch.py", *MODULES])
SHARED = ("__init__.py", "base.py", "contract.py")
METHODS = [path for path in PROGRAM if path.parent.name == "algorithms" and path.name not in SHARED]
MAX_LINES = 300


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked_files() -> list[Path]:
    """Files under version control; all but hidden ones where this is no checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    found = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, in its functions too: a.b.c for ``from a.b import c``."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def attributes(path: Path) -> Iterator[str]:
    """Dotted names that a file reaches for, such as torch.distributed.barrier."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def pins(lines: Iterator[str] | list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r"))]


@pytest.mark.parametrize("path", [path for path in PROGRAM if path.parent.name != "comm"], ids=name_of)
def test_only_comm_knows_torch_distributed(path: Path) -> None:
    assert not [name for name in {*imports(path), *attributes(path)} if inside(name, "torch.distributed")]


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_methods_know_neither_ranks_nor_each_other(path: Path) -> None:
    found = imports(path)
    assert not [name for name in found if inside(name, "fedsim.comm")]
    shared = ("fedsim.algorithms.base", "fedsim.algorithms.parts")
    own = [name for name in found if inside(name, "fedsim.algorithms")]
    assert not [name for name in own if not any(inside(name, module) for module in shared)]


def test_files_are_short() -> None:
    """Of the program, its tests and benchmarks alike."""
    sources = [path for path in tracked_files() if path.suffix in (".py", ".cpp", ".h")]
    assert len(sources) > len(PROGRAM)
    assert [name_of(path) for path in sources if len(path.read_text().splitlines()) > MAX_LINES] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=name_of)
def test_example_configs_load_and_are_named_like_their_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_sweep = path.parent.name == "sweeps"
    text = (path.parent / yaml.safe_load(path.read_text())["base"] if is_sweep else path).read_text()
    load = load_distill_config if path.stem.startswith("submodel_") else load_config
    if made := re.search(r"submodel: {folder: runs/(\w+)}", text):
        assert (ROOT / f"configs/{made[1]}.yaml").is_file(), "the config that launch.py distill makes the folder with"
        (tmp_path / "runs" / made[1]).mkdir(parents=True)
    if own := re.search(r"root: ([\w./-]+)", text):
        (tmp_path / own[1]).mkdir(parents=True)
    if partition := re.search(r"path: ([\w./-]+)", text):
        (tmp_path / partition[1]).parent.mkdir(parents=True)
        shutil.copy(ROOT / partition[1], tmp_path / partition[1])
    monkeypatch.chdir(tmp_path)
    if is_sweep:
        plan = Plan(path, tmp_path / "out")
        assert plan.trials or plan.cells({})
        return
    # The name of the run's folder: that of the file, after those of the folders that it lies in.
    assert load(path).name == "_".join(path.relative_to(ROOT / "configs").with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/slurm/*.sbatch")), ids=name_of)
def test_batch_scripts_are_valid_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    folders = re.compile(rb"(?<![\w.}-])/(home|work|root|Users|mnt|scratch)/\w")
    found = [name_of(path) for path in tracked_files() if folders.search(path.read_bytes())]
    assert not found


def test_requirements_are_exact_and_name_no_host() -> None:
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in pins((ROOT / file).read_text().splitlines()):
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), f"{file}: {line}"


def test_conda_has_the_same_pins_and_no_jupyter() -> None:
    *packages, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert last["pip"] == pins((ROOT / "requirements.txt").read_text().splitlines())
    assert packages == ["python=3.12", "pip", "cxx-compiler"]


def test_requirements_have_all_that_the_program_imports() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    required = {plain(pin.partition("==")[0]) for pin in pins((ROOT / "requirements.txt").read_text().splitlines())}
    providers = packages_distributions()
    tops = {name.partition(".")[0] for path in PROGRAM for name in imports(path)}
    outside = tops - sys.stdlib_module_names - {"fedsim", "comm", "algorithms"}
    # pydantic names one exact version of its core itself.
    missing = [top for top in outside - {"pydantic_core"} if not required & {plain(name) for name in providers[top]}]
    assert not missing
