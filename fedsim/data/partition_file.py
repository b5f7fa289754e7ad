"""A partition that the user brings: which images of each split every client has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config.mistakes import show
from fedsim.data.dataset import Dataset, Indices
from fedsim.errors import UserError, reading
from fedsim.machine.files import parse_json

FORM = '{"clients": [[index, ...], ...]}, and of the same form "val" and "test"'
SPLITS = {"clients": "training", "val": "validation", "test": "test"}


def read_partition(path: str, dataset: Dataset, count: int) -> dict[str, list[Indices]]:
    """Read a JSON file with a list of images for each of ``count`` clients, as indices into ``dataset.images``.

    ``clients`` holds their training images. ``val`` and ``test``, which the file may leave out, hold their own images
    of these splits. No image is there twice; one that is nowhere belongs to nobody. UserError where it is otherwise.
    """
    content = _read(path)
    images = {"clients": dataset.train, "val": dataset.val, "test": dataset.test}
    return {key: _checked(f"{path} {key}", parts, images[key], SPLITS[key], count) for key, parts in content.items()}


def read_held_out(path: str, dataset: Dataset) -> dict[str, list[Indices]]:
    """Read each client's own validation and test images, sorted, from a file that ``read_partition`` has taken.

    Those alone that are in the set's splits: of a validation that was made smaller since.
    """
    held_out = {"val": dataset.val, "test": dataset.test}
    return {
        name: [np.intersect1d(np.array(part, np.int64), held_out[name]) for part in parts]
        for name, parts in _read(path).items()
        if name in held_out
    }


def _read(path: str) -> dict[str, list[list[int]]]:
    with reading(path, f"a JSON file {FORM}"):
        content: Any = parse_json(Path(path).expanduser().read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(path, show(content), FORM)
    if "clients" not in content or not content.keys() <= SPLITS.keys():
        raise UserError(path, f"the keys {', '.join(map(repr, content)) or '(none)'}", FORM)
    for key, parts in content.items():
        if not isinstance(parts, list) or not all(
            isinstance(part, list) and all(type(index) is int for index in part) for part in parts
        ):
            raise UserError(f"{path} {key}", "another content", FORM)
    return content


def _checked(where: str, parts: Sequence[list[int]], images: Indices, split: str, count: int) -> list[Indices]:
    if len(parts) != count:
        raise UserError(where, f"{len(parts)} clients", f"clients.count = {count}")
    known, owner = set(images.tolist()), dict[int, int]()
    for client, part in enumerate(parts):
        for index in part:
            if index not in known:
                raise UserError(f"{where}, client {client}", f"index {show(index)}", f"indices of {split} images")
            if index in owner:
                found = f"index {index}, which client {owner[index]} has"
                raise UserError(f"{where}, client {client}", found, "each index once")
            owner[index] = client
    return [np.array(part, np.int64) for part in parts]
