"""The rows: each once, and each leads to a function that takes what it is given."""

import inspect
from collections.abc import Iterator

import pytest

from fedsim.catalogue import data, models
from fedsim.catalogue.functions import function_of


def readers() -> Iterator[tuple[str, int]]:
    for row in data.DATA.values():
        yield row.reader, 1
    for model in models.MODELS.values():
        yield model.network, 3
        yield model.encoder, 4


@pytest.mark.parametrize(("reader", "count"), sorted(set(readers())))
def test_every_row_leads_to_its_function(reader: str, count: int) -> None:
    inspect.signature(function_of(reader)).bind(*range(count))


def test_a_name_has_one_row() -> None:
    assert len(data.DATA) == len(data._ROWS)
    assert len(models.MODELS) == len(models._ROWS)


def test_the_import_path_has_no_row() -> None:
    assert data.data_row("digts") is None
    assert data.data_row("mine.wards") is data.OWN_DATA
    assert models.model_row("mine.encoder") is models.OWN_MODEL
