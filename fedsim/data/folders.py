"""What lies in a folder of somebody's data, without what operating systems leave there."""

import os
from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter
from pathlib import Path

from fedsim.errors import UserError

#: The folder of a Mac's own notes in archives made there; its other traces begin with a dot.
MAC_NOTES = "__MACOSX"


def visible(folder: Path) -> list[Path]:
    """Return what a folder holds, by name, without hidden files and a Mac's notes.

    UserError where it cannot be read, for a link to nothing, since what it stands for would be missing, and for a name
    that is no text, as archives of another encoding leave it: neither a picture nor a record could show it.
    """
    return [folder / entry.name for entry in _entries(folder)]


def walked(folder: Path) -> Iterator[Path]:
    """Yield all that is no folder below a folder, as ``visible`` has it: by name, what lies deeper behind the others.

    A link to a folder that it lies in leads nowhere new.
    """
    yield from _walked(folder, frozenset())


def _walked(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    inner = []
    for entry in _entries(folder):
        if entry.is_dir():
            inner.append(folder / entry.name)
        else:
            yield folder / entry.name
    for one in inner:
        yield from _walked(one, above | {real})


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return a folder's entries as ``visible`` has them; what they are is known without a look at each."""
    try:
        with os.scandir(folder) as all_entries:
            found = [entry for entry in all_entries if entry.name[0] != "." and entry.name != MAC_NOTES]
    except OSError as error:
        raise UserError(str(folder), str(error.strerror), "a folder that can be read") from error
    for entry in found:
        if not is_text(entry.name):
            raise UserError(str(folder / entry.name), "a name that is no UTF-8 text", "another name")
        if entry.is_symlink() and not exists(folder / entry.name):
            raise UserError(str(folder / entry.name), "a link to nothing", "a file or folder")
    return sorted(found, key=attrgetter("name"))


def is_text(name: str) -> bool:
    """Whether a name is text; of bytes that are no UTF-8 Python makes halves of characters."""
    return name.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in name)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder by name, as ``visible`` has them."""
    return [folder / entry.name for entry in _entries(folder) if entry.is_dir()]


def files_with(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files in a folder that end in one of ``suffixes``, in any case, by name, as ``visible`` has them.

    UserError for a folder or a device of such a name: reading a pipe would wait for ever.
    """
    found = [path for path in visible(folder) if path.suffix.lower() in suffixes]
    for path in found:
        require_file(path, "a file")
    return found


def require_file(path: Path, expected: str) -> None:
    """UserError unless there is a regular file, or a link to one, at ``path``."""
    if not is_file(path):
        raise UserError(str(path), "no file, but a folder or device" if exists(path) else "no such file", expected)


def is_file(path: Path) -> bool:
    """Whether there is a regular file at ``path``; a name that no file system takes has none."""
    try:
        return path.is_file()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Whether a path leads anywhere."""
    try:
        return path.exists()
    except OSError:
        return False


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names without suffix; UserError where two have one name."""
    found: dict[str, Path] = {}
    for file in files:
        first = found.setdefault(file.stem, file)
        if first != file:
            raise UserError(str(file), f"the name of {first.name} beside it", "one file of a name")
    return found
