"""Tables in binary forms that are not what they say."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedsim.data.datasets.tables import read_table
from fedsim.errors import UserError


def test_an_arrow_table_is_what_it_says(tmp_path: Path) -> None:
    """Here of its nulls, which there are none; other such words would lead anywhere in the memory."""
    buffers = [pa.py_buffer(b"\xff"), pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"ab")]
    table = pa.table({name: pa.Array.from_buffers(pa.utf8(), 2, buffers, 2) for name in ("sentence", "kind")})
    with pa.OSFile(str(tmp_path / "train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(UserError, match=r"train\.arrow: found .*null_count .*; expected a \.arrow table"):
        read_table(tmp_path / "train.arrow", ["sentence"])


def test_a_parquet_tables_checksums_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    table = pa.Table.from_pylist([{"sentence": f"word{number}", "kind": "ab"[number % 2]} for number in range(20)])
    pyarrow.parquet.write_table(table, path, compression="none", write_page_checksum=True)
    assert read_table(path, ["sentence"]).rows[7].cells == {"sentence": "word7"}
    path.write_bytes(path.read_bytes().replace(b"word7", b"work7"))
    with pytest.raises(UserError, match=r"train\.parquet: found .*(CRC|checksum)"):
        read_table(path, ["sentence"])
