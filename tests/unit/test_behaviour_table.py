"""The pages on behaviour name tests that exist, and the versions that are installed."""

import ast
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from fedsim.data.assets import ASSETS

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {"PyTorch": "torch", "open_clip": "open_clip_torch", "MLflow": "mlflow-skinny"}
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for page in ("behaviour.md", "behaviour_images.md", "behaviour_programs.md")
    for line in (ROOT / "docs" / page).read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| library")
]


def names_of_tests() -> set[str]:
    """Functions and classes below tests/, and the files that hold them."""
    names = set()
    for path in (ROOT / "tests").rglob("*.py"):
        names.add(path.name)
        tree = ast.walk(ast.parse(path.read_text()))
        names |= {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names


def test_rows_have_four_cells_and_none_stands_twice() -> None:
    assert len(ROWS) > 40
    assert all(len(row) == 4 and all(row) for row in ROWS)
    assert len({row[:2] for row in ROWS}) == len(ROWS)


def test_every_test_named_exists() -> None:
    known = names_of_tests()
    for *_, cell in ROWS:
        names = re.findall(r"`([^`]+)`", cell)
        assert names, cell
        for name in names:
            is_file = "/" in name and any(path.is_file() for path in (ROOT / name, ROOT / "fedsim" / name))
            assert name in known or is_file, name


@pytest.mark.parametrize("cell", sorted({row[0] for row in ROWS if re.search(r" \d+\.\d", row[0])}))
def test_versions_are_those_that_run_here(cell: str) -> None:
    found = re.search(r"([\w.-]+) (\d+\.\d+[.\d]*)", cell)
    assert found is not None
    name, named = found.groups()
    scripts = "".join(path.read_text() for path in (ROOT / "findings").glob("*.sh"))
    packaged = {asset.package: asset.version for asset in ASSETS.values()} | dict(
        re.findall(r"([\w-]+)==([\d.]+)", scripts)
    )
    try:
        installed = version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        installed = packaged[name]
    parts = named.split(".")
    assert installed.split(".")[: len(parts)] == parts
