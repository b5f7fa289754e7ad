"""The arrows between modules: every import counts, late and typing-only ones too, and none leads round in a circle."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fedsim", "comm", "algorithms")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def test_no_circle_of_imports() -> None:
    modules = {module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    modules["launch"] = ROOT / "launch.py"
    assert circles(arrows(modules)) == []


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == [["b", "c"]]
