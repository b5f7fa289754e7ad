"""As ``test_blocks.py``, for the pages of methods from papers and of clusters, which take as long as all others."""

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import PAPERS, make_place, run_page


@pytest.mark.slow
@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_every_block_of_a_papers_page_runs(page: Path, tmp_path: Path) -> None:
    place = make_place(tmp_path / "place")
    run_page(page, place)
    shutil.rmtree(place)
