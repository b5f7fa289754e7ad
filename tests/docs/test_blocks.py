"""Every command and program in the documentation is run, page by page; a page that is wrong fails.

The pages of papers are run in ``test_blocks_of_papers.py``.
"""

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import NO_RUN, PAGES, PAPERS, blocks, make_place, reduced, run_page


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page not in PAPERS], ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    place = make_place(tmp_path / "place")
    run_page(page, place)
    shutil.rmtree(place)  # checkpoints of a dozen pages are more than pytest should keep


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```sh\ntrue\nfalse\n```\n", "page.md:1: exit code 1"),
        ("```sh\nfalse | true\n```\n", "exit code 1"),
        ("Words.\n\n```python\nassert 1 == 2\n```\n", "page.md:3: exit code 1"),
        ("```python\n# mine.py\nx = 1\n```\n\n```python\nimport mine\nassert mine.x == 2\n```\n", "AssertionError"),
        ("```sh\npython launch.py check configs/none.yaml\n```\n", "configs/none.yaml"),
        ("```sh\nmake nothing\n```\n", "exit code 1"),
        ("```sh\npython -m benchmarks.nothing --name x\n```\n", "No module named"),
        ("```sh\ncurl --silent --fail https://example.com\n```\n", "exit code"),
        ("It is fast.\n\n```sh no-run\nsleep 1\n```\n", "the sentence before says what it needs"),
        ("```python\n# algorithms/fedavg.py\n```\n", "the repository's own"),
        ("```bash\ntrue\n```\n", "no block of kind 'bash'"),
        ("```yaml\na: [\n```\n", "expected"),
    ],
)
def test_a_page_that_is_wrong_fails(text: str, found: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(Exception, match=found):
        run_page(page, make_place(tmp_path / "place"))


def test_a_page_that_is_right_passes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\n# mine.py\nx = 1\n```\n\n```python\nimport mine\nassert mine.x == 1\n```\n\n"
        "```sh\nmake demo  # minutes\ngrep x mine.py\n```\n\nThis needs two hosts:\n\n```sh no-run\nfalse\n```\n"
    )
    assert [block.kind for block in run_page(page, make_place(tmp_path / "place"))] == ["python", "sh"]


def test_long_commands_are_made_short() -> None:
    short = reduced("torchrun --nproc-per-node 2 launch.py run \\\n    configs/quickstart.yaml --out x  # minutes\n")
    assert "run      configs/quickstart.yaml --out x rounds=1 data" in short
    assert "#" not in short
    assert reduced("OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m benchmarks.ranks --regime small\n") == (
        "python -m benchmarks.ranks --help\n"
    )
    assert reduced("python launch.py list data\n") == "python launch.py list data\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_code_outside_of_the_blocks_that_are_run(page: Path) -> None:
    """An indented fence or block would be shown as code, and not be run."""
    text = page.read_text()
    assert text.count("```") == 2 * len(list(blocks(text))), "a fence that is indented or not closed"
    lines = text.splitlines()
    outside, inside = [], False
    for before, line in zip(["", *lines], lines, strict=False):
        inside ^= line.startswith("```")
        if not inside and not before.strip() and line.startswith("    "):
            outside.append(line)
    assert outside == []


def test_what_is_not_run_is_little() -> None:
    kinds = [block.kind for page in PAGES for block in blocks(page.read_text())]
    assert kinds.count(NO_RUN) <= sum(kind in ("sh", "python") for kind in kinds) / 4
