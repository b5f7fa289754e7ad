"""A pickle read as text is: what numpy writes comes out as lists, and nothing else is made of it."""

import builtins
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.datasets.pickled import read_plain

ROOT = Path(__file__).parents[4]


def put(path: Path, content: Any, protocol: int = 5) -> Path:
    file = path / "data.pkl"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return file


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "code", ["b1", "i1", "<i2", ">i4", "i8", "u1", ">u2", "u4", "u8", "f2", ">f4", "f8", "U3", ">U3"]
)
def test_arrays_are_lists_of_their_values(tmp_path: Path, code: str, protocol: int) -> None:
    values = np.array(["b", "ab", "näh"] if "U" in code else [0, 1, 100]).astype(code)
    content = {"one": values, "again": (values, values[:, None], values[:0]), "each": list(values)}
    want = values.tolist()
    found = read_plain(put(tmp_path, content, protocol))
    assert found == {"one": want, "again": (want, want, []), "each": want}
    assert all(type(value) is type(wanted) for value, wanted in zip(found["one"], want, strict=True))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_containers_and_numbers_are_themselves(tmp_path: Path, protocol: int) -> None:
    content = {"a": [1, -1, 300, 70_000, 2**40, 0.5, True, None, "x" * 300], "b": ((), (1,), (1, 2, 3, 4)), "c": {}}
    content["d"] = content["b"]
    assert read_plain(put(tmp_path, content, protocol)) == content


class Strange:
    """Asks its reader to call ``print``."""

    def __reduce__(self) -> Any:
        return print, ("from the file",)


CUT = pickle.dumps(np.arange(5, dtype=np.uint8), 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([1, 2, 3], object), r"an array of type 'O8' in it"),
        (np.array([(1, 2)], [("x", "i4"), ("y", "i4")]), r"an array of type 'V8' in it"),
        (np.array(["2020-01-01"], "M8[D]"), r"an array of type 'M8' in it"),
        (np.array([1j]), r"an array of type 'c16' in it"),
        (np.array([b"a"]), r"an array of type 'S1' in it"),
        (np.zeros((2, 2)), r"an array of shape \(2, 2\) in it"),
        (Strange(), r"builtins.print in it"),
        (OrderedDict(a=1), r"collections.OrderedDict in it"),
        ({1: 2}, r"items of no mapping of names"),
        ({"a": {1, 2}}, r"the opcode EMPTY_SET in it"),
        (CUT.replace(b"K\x05", b"K\x04"), r"5 bytes for an array u1\(4,\) in it"),
        (CUT.replace(b"K\x05", b"K\x06"), r"5 bytes for an array u1\(6,\) in it"),
        (CUT[:-1], r"pickle exhausted before seeing STOP"),
        (b"", r"pickle exhausted before seeing STOP"),
        (b"\x80\x03cnumpy\nfromfile\n.", r"numpy.fromfile in it"),
        (b"\x80\x03cnumpy.core.multiarray\nscalar\n)R.", r"not enough values"),
    ],
)
def test_all_else_is_refused(
    tmp_path: Path, content: Any, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(tmp_path, content, 3 if isinstance(content, np.ndarray) else 5)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match=message):
        read_plain(file)
    assert not capsys.readouterr().out
    assert callable(builtins.print)


def test_an_object_array_is_refused_in_every_protocol(tmp_path: Path) -> None:
    for protocol in (3, 4, 5):
        with pytest.raises(ValueError, match=r"an array of type 'O8' in it"):
            read_plain(put(tmp_path, {"hospital1": np.array([1, 2, 3], object)}, protocol))


@pytest.mark.parametrize("protocol", [3, 5])
def test_damage_is_an_error_or_other_values(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps({"a": (["x.png", "y.png"], np.array([0, 1])), "b": np.array(["x", "y"])}, protocol)
    stream = np.random.default_rng(0)
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[stream.integers(len(whole))] ^= 1 << int(stream.integers(8))
        try:
            read_plain(put(tmp_path, bytes(damaged)))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            num_refused += 1
    assert num_refused > 100


def test_no_code_unpickles() -> None:
    for folder in ("fedsim", "algorithms", "comm"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "import pickle\n" not in text, path
            assert "pickle.load" not in text, path
