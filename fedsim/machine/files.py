"""Writing files that are either the old one or the whole new one, whatever happens in between."""

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fedsim.errors import UserError


@contextlib.contextmanager
def naming_files(folder: Path) -> Iterator[None]:
    """Turn an OSError over ``folder`` or what is in it into a UserError: no room, no permission, gone, no folder."""
    try:
        yield
    except OSError as error:
        refusal = named(error, folder)
        if refusal is None:
            raise
        raise refusal from error


def named(error: OSError, folder: Path) -> UserError | None:
    """Return the UserError that ``naming_files`` makes of an error; None where it is not about ``folder``."""
    if isinstance(error.filename, str | bytes | os.PathLike):
        name = os.fsdecode(error.filename)
        if Path(name).absolute().is_relative_to(folder.absolute()):
            expected = "files and folders as a run made them, and room for more; --resume goes on from what is there"
            return UserError(name, error.strerror or str(error), expected)
    return None


@contextlib.contextmanager
def about(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an OSError that names no file, or only a ``temporary`` one, name ``path``: writing itself names none."""
    try:
        yield
    except OSError as error:
        names_other = error.filename is not None and str(error.filename) != str(temporary)
        if error.errno is None or names_other:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool) -> Iterator[BinaryIO]:
    """Give a file to write that becomes ``path`` in one step at the end of the ``with``, and never if that fails.

    The folder must exist. ``durable``: the file survives the machine's end from then on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with about(path, temporary):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            # What kept the file from being written may keep it from being removed, and is the one to be told.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    if durable:
        sync_folder(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step, durable on return; the folder must exist."""
    with replacing(path, durable=True) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with about(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, obj: Any) -> None:
    """Write ``obj`` atomically as indented JSON; nan and inf, which JSON has not, become null."""
    text = json.dumps(finite(obj), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the text of a CSV file; None and nan, which no cell shows, become empty."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None or value != value else value


def parse_json(text: str) -> Any:
    """The data in a JSON text; ValueError where a mapping has a key twice, of which the reader would take the last."""
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def finite(obj: Any) -> Any:
    """A copy of JSON-like data with null in place of nan and inf."""
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {key: finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [finite(value) for value in obj]
    return obj
