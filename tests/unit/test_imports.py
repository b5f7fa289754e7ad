"""The arrows between modules: every import counts, late and typing-only ones too. None leads round in a circle, and
between wings they point down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"fedsim": ROOT / "fedsim", "fedsim.comm": ROOT / "comm", "fedsim.algorithms": ROOT / "algorithms"}

#: The wings and the files of the spine, from the ground up; what stands on one floor knows nothing of each other.
FLOORS = (
    ("__init__", "errors", "seeding"),
    ("catalogue",),
    ("config",),
    ("machine",),
    ("kernels",),
    ("comm", "data"),
    ("models", "schedule", "tasks"),
    ("algorithms", "inputs"),
    ("configure", "method_checks", "privacy", "storage", "training"),
    ("client", "results"),
    ("simulation",),
    ("build", "distill", "measure"),
    ("phase",),
    ("runfolder",),
    ("buffered",),
    ("server",),
    ("verbs",),
    ("launch",),
)
FLOOR = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}


def all_modules() -> dict[str, Path]:
    """Every module of the program, by the name that it is imported by."""
    found = {"launch": ROOT / "launch.py"}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def arrows(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules of ours each module names in an import statement, wherever that stands."""
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {target if target in modules else node.module for target in inner}
        found[name] = (targets & modules.keys()) - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that reach each other, by taking away whoever has no arrow out, or none in."""
    left = {name: set(targets) for name, targets in graph.items()}
    while True:
        inner = {name for name in left if left[name] & left.keys() and any(name in left[other] for other in left)}
        if inner == left.keys():
            return [sorted(left)] if left else []
        left = {name: left[name] & inner for name in inner}


def wing(module: str) -> str:
    """The wing that a module lies in, or the name of a file of the spine."""
    package, _, rest = module.partition(".")
    return package if package == "launch" else rest.partition(".")[0] or "__init__"


def upward(graph: dict[str, set[str]]) -> list[str]:
    """The arrows between wings that do not point down."""
    pairs = [(source, target) for source, targets in graph.items() for target in targets]
    return [
        f"{source} -> {target}"
        for source, target in pairs
        if wing(source) != wing(target) and FLOOR[wing(source)] <= FLOOR[wing(target)]
    ]


def test_no_circle_of_imports() -> None:
    assert circles(arrows(all_modules())) == []


def test_arrows_between_wings_point_down() -> None:
    assert upward(arrows(all_modules())) == []


def test_a_circle_and_an_upward_arrow_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert upward({"fedsim.data.sets": {"fedsim.models.lora", "fedsim.errors"}}) == [
        "fedsim.data.sets -> fedsim.models.lora"
    ]
    assert upward({"fedsim.kernels.rows": {"fedsim.data"}}) == ["fedsim.kernels.rows -> fedsim.data"]


def test_no_hall() -> None:
    assert len(list((ROOT / "fedsim").glob("*.py"))) <= 12
    places = (*FOLDERS.values(), ROOT / "tests", ROOT / "benchmarks")
    folders = {path.parent for place in places for path in place.rglob("*.py")}
    assert [folder for folder in folders if len(list(folder.glob("*.py"))) > 24] == []


@pytest.mark.parametrize("folder", [ROOT, ROOT.parent])
def test_nothing_is_called_comm(folder: Path, tmp_path: Path) -> None:
    """Jupyter installs a package comm, which must be found also by a program that starts in the repository."""
    (tmp_path / "comm").mkdir()
    (tmp_path / "comm" / "__init__.py").write_text("create_comm = 'Jupyter'")
    program = "import fedsim.comm.exact, comm; print(comm.create_comm)"
    paths = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=paths, capture_output=True, text=True)
    assert done.stdout.strip() == "Jupyter", done.stderr
