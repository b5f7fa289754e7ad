"""Digests of data: what a run has read, wherever the files stand and whatever they are called later."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.data.dataset import Source
from fedsim.data.images import listing
from fedsim.errors import UserError
from fedsim.machine.cache import cached_folder

NUM_LISTED = 32  # so many files are named one by one
DIRECT_BYTES = 2**28  # so much of so many is read again at every start; the digests of more are kept in the cache

Method = Literal["sha256", "md5"]


def describe_files(paths: Sequence[Path]) -> dict[str, Any] | None:
    """Return number, bytes and digest of data files, ready for JSON; None where there are none.

    ``sha256`` is that of the lines which the program sha256sum prints for the files, each by its name relative to the
    folder that holds them all, in the order of the names' bytes: it tells names and contents. ``each`` has every
    file's own, or is null for more than ``NUM_LISTED`` files. UserError for a file that cannot be read.
    """
    if not paths:
        return None
    base = Path(os.path.commonpath([path.parent for path in paths]))
    digests = dict(zip((os.fsencode(path.relative_to(base)) for path in paths), content_digests(paths), strict=True))
    lines = b"".join(digests[name].encode() + b"  " + name + b"\n" for name in sorted(digests))
    each = {name.decode(errors="replace"): digests[name] for name in sorted(digests)}
    return {
        "files": len(digests),
        "bytes": sum(path.stat().st_size for path in set(paths)),
        "sha256": hashlib.sha256(lines).hexdigest(),
        "each": each if len(each) <= NUM_LISTED else None,
    }


def describe_arrays(source: Source) -> dict[str, Any]:
    """Return a digest of all that a set consists of, and of each of its parts, ready for JSON."""
    each = {}
    for field in fields(source):
        value = getattr(source, field.name)
        if field.name in ("files", "remarks", "file_names") or value is None:
            continue
        if field.name in ("divisible", "owner_names", "is_graded") and not value:  # so that older digests hold
            continue
        array = value if isinstance(value, np.ndarray) else np.frombuffer(json.dumps(value).encode(), np.uint8)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
        each[field.name] = digest.hexdigest()
    return {"sha256": hashlib.sha256(json.dumps(each).encode()).hexdigest(), "each": each}


def content_digests(paths: Sequence[Path], method: Method = "sha256") -> list[str]:
    """Return the digest of each file's content in hexadecimal digits.

    Those of many files or bytes are computed once for these files with these sizes and times. UserError as above.
    """
    if len(paths) <= NUM_LISTED and sum(path.stat().st_size for path in paths) < DIRECT_BYTES:
        return _compute(paths, method)
    key = [method, *listing(Path(os.path.commonpath([path.parent for path in paths])), paths)]
    folder = cached_folder("digests", key, lambda folder: _write(_compute(paths, method), folder))
    digests: list[str] = json.loads((folder / "digests.json").read_text())
    return digests


def _compute(paths: Sequence[Path], method: Method) -> list[str]:
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(lambda path: _digest(path, method), paths))


def _digest(path: Path, method: Method) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(method, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(str(path), str(error.strerror), "a readable file") from error


def _write(digests: list[str], folder: Path) -> None:
    (folder / "digests.json").write_text(json.dumps(digests))
