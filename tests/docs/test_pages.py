"""Links lead somewhere, tables are the code's, the tests and files that pages name are there, pages are short."""

import ast
import re
from pathlib import Path

import pytest

from fedsim.algorithms import METHODS
from fedsim.verbs.tables import PLACE, SECTIONS, filled, table
from tests.docs.pages import FENCE, PAGES, ROOT
from tests.unit.test_imports import FLOORS

LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
DOCS = [page for page in PAGES if page.parent.name == "docs"]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
TEST = re.compile(r"`(test_\w+)`")
#: Files of the program, the tests and the experiments, as pages name them.
FILE = re.compile(r"`((?:fedsim|algorithms|comm|configs|tests|docs|benchmarks)/[\w./-]*)`")


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors that a hosting site makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in words}


def links(page: Path) -> list[str]:
    """The relative links of a page."""
    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


def target(page: Path, link: str) -> Path:
    return (page.parent / link.partition("#")[0]).resolve() if not link.startswith("#") else page


def broken(page: Path) -> list[str]:
    """The links that lead to no file, or to no heading of it."""
    found = []
    for link in links(page):
        file, anchor = target(page, link), link.partition("#")[2]
        if not file.exists() or (anchor and anchor not in anchors(file)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", LINKED, ids=title)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head of `it`\n[a](page.md#head-of-it) [b](none.md) [c](#tail) [d](https://x.y/z)\n")
    assert broken(page) == ["none.md", "#tail"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {
            target(page, link) for page in new if page.suffix == ".md" and page.exists() for link in links(page)
        } - reached
    assert [title(page) for page in [*LINKED, ROOT / "docs"] if page.is_file() and page not in reached] == []


def test_pages_are_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8192
    assert [title(page) for page in PAGES if page.stat().st_size > 12 * 1024] == []


@pytest.mark.parametrize("page", DOCS, ids=title)
def test_tables_that_follow_from_the_code_do(page: Path) -> None:
    """``python -m fedsim.verbs.tables`` writes them anew."""
    assert filled(page.read_text()) == page.read_text()


def test_no_table_of_the_code_is_missing() -> None:
    shown = {name for page in DOCS for _, name, _ in PLACE.findall(page.read_text())}
    expected = {"config run", *(f"config {section}" for section in SECTIONS), "method keys", "distill keys"}
    assert shown >= expected | {"list data", "list models", "list assets"}


def test_another_table_is_noticed() -> None:
    page = f"<!-- table: config store -->\n{table('config store').replace('GiB', 'GB')}<!-- end -->\n"
    assert filled(page) != page


def test_every_method_has_its_row() -> None:
    pages = ((ROOT / "docs" / name).read_text() for name in ("methods.md", "federated_lora.md"))
    rows = [name for page in pages for name in re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)]
    assert sorted(rows) == sorted(METHODS)


def all_tests() -> set[str]:
    """The names of all tests, and of classes and files of tests."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        found |= {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    return found


def test_tests_that_pages_name_are_there() -> None:
    known = all_tests()
    named = {(title(page), name) for page in LINKED for name in TEST.findall(page.read_text())}
    assert {(page, name) for page, name in named if name not in known} == set()


def test_every_guarantee_names_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|(.*)$", (ROOT / "docs" / "guarantees.md").read_text(), re.MULTILINE)
    assert len(rows) >= 12
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert [number for number, row in rows if not TEST.search(row)] == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_pages_name_are_there(page: Path) -> None:
    assert [name for name in FILE.findall(prose(page)) if not (ROOT / name).exists()] == []


def test_the_floors_are_those_that_a_test_holds() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## Floors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE)
    expected = [(str(number), ", ".join(f"`{wing}`" for wing in wings)) for number, wings in enumerate(FLOORS, 1)]
    assert rows == expected
