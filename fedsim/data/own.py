"""A set that somebody's own function returns, looked at before anything is made of it.

Shapes: N images or texts, S the side of the images, C classes, F findings.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.catalogue.data import import_data
from fedsim.catalogue.functions import call_own
from fedsim.config.data import DataConfig
from fedsim.config.mistakes import KeyedError
from fedsim.data.dataset import Source
from fedsim.data.findings import KNOWN
from fedsim.data.splits import TEST
from fedsim.errors import UserError


def read_own(config: DataConfig) -> Source:
    """Call the function that ``config.name`` leads to with the data section.

    UserError, of one line, for whatever it returns that is no ``Source`` as described there, and for keys of the
    section that its texts, or its images, have no use for.
    """
    thing = "a fedsim.data.Source"
    source = call_own("data.name", config.name, import_data(config.name), thing, config)
    where = f"data.name {config.name}"
    if not isinstance(source, Source):
        raise UserError(where, f"a function that returns {_kind(source)}", thing)
    try:
        config.check_kind(texts=source.texts is not None)
    except KeyedError as error:
        raise UserError(f"data.{error.key}", error.found, error.expected) from None
    _check_names(where, source)
    _check_arrays(where, source, config.image_size)
    # torch takes no array that runs backwards
    arrays: dict[str, Any] = {
        key: np.ascontiguousarray(value) for key, value in vars(source).items() if isinstance(value, np.ndarray)
    }
    return replace(source, **arrays)


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _check_names(where: str, source: Source) -> None:
    for key in ("class_names", "site_names", "owner_names", "file_names", "remarks"):
        _check_tuple(where, key, getattr(source, key), str)
    _check_tuple(where, "files", source.files, Path)
    fewest = 1 if source.targets is not None else 2
    if len(source.class_names) < fewest:
        raise UserError(f"{where}, class_names", f"{len(source.class_names)} names", f"at least {fewest}")
    for key in ("class_names", "site_names", "owner_names"):
        names = getattr(source, key)
        if len(set(names)) < len(names):
            raise UserError(f"{where}, {key}", f"{len(names)} names, {len(set(names))} of them different", "each once")
    for key in ("site", "owner"):
        numbers, names = getattr(source, f"{key}s"), getattr(source, f"{key}_names")
        if (numbers is None) != (not names):
            given = f"{key}_names without {key}s" if numbers is None else f"{key}s without {key}_names"
            raise UserError(f"{where}, {key}_names", given, "both or neither")
    if not isinstance(source.divisible, bool):
        raise UserError(f"{where}, divisible", _kind(source.divisible), "True or False")


def _check_tuple(where: str, key: str, value: object, kind: type) -> None:
    if not (isinstance(value, tuple) and all(isinstance(part, kind) for part in value)):
        raise UserError(f"{where}, {key}", _kind(value), f"a tuple of {kind.__name__}")


def _check_arrays(where: str, source: Source, side: int) -> None:
    """UserError for the first array of another type, kind of numbers, shape or range than ``Source`` says."""
    if not isinstance(source.labels, np.ndarray) or source.labels.ndim != 1:
        raise UserError(f"{where}, labels", _shown(source.labels), "int64 (N,), a class for each row")
    count = num_images = len(source.labels)
    if source.texts is None:
        if source.pictures is not None and isinstance(source.images, np.ndarray):
            num_images = len(source.images)
        is_grey = isinstance(source.images, np.ndarray) and source.images.shape[1:2] == (1,)
        _check_array(f"{where}, images", source.images, np.uint8, (num_images, 1 if is_grey else 3, side, side))
    else:
        _check_array(f"{where}, images", source.images, np.uint8, (count, 0))
        _check_texts(f"{where}, texts", source.texts, count)
    has_findings = isinstance(source.targets, np.ndarray) and source.targets.ndim == 2
    if source.file_names and len(source.file_names) != num_images:
        raise UserError(f"{where}, file_names", f"{len(source.file_names)} names", f"{num_images}, or none")
    highest = {
        "labels": len(source.class_names) - (not has_findings),
        "fixed": TEST,
        "sites": len(source.site_names) - 1,
        "owners": len(source.owner_names) - 1,
        "pictures": num_images - 1,
    }
    for key in ("labels", "groups", "sites", "fixed", "strata", "owners", "pictures"):
        values = getattr(source, key)
        if values is not None:
            _check_array(f"{where}, {key}", values, np.int64, (count,))
            _check_range(f"{where}, {key}", values, highest.get(key), lowest=None if key == "groups" else 0)
    if source.masks is not None:
        _check_array(f"{where}, masks", source.masks, np.uint8, (count, side, side))
        _check_range(f"{where}, masks", source.masks, len(source.class_names) - 1, lowest=0)
    if source.targets is not None:
        shape = (count, len(source.class_names)) if has_findings else (count,)
        _check_array(f"{where}, targets", source.targets, np.float32, shape)
        if not np.isfinite(source.targets).all():
            raise UserError(f"{where}, targets", "nan or inf", "finite numbers")
        if has_findings and not np.isin(source.targets, KNOWN).all():
            raise UserError(f"{where}, targets", "other numbers", "1 present, 0 absent, -1 not known")
    _check_grades(where, source)


def _check_grades(where: str, source: Source) -> None:
    if not isinstance(source.is_graded, bool):
        raise UserError(f"{where}, is_graded", _kind(source.is_graded), "true or false")
    if source.is_graded and any(other is not None for other in (source.masks, source.targets, source.texts)):
        raise UserError(f"{where}, is_graded", "true with masks, targets or texts", "false: only images have grades")


def _check_array(where: str, value: Any, kind: type[np.generic], shape: tuple[int, ...]) -> None:
    if not (isinstance(value, np.ndarray) and value.dtype == kind and value.shape == shape):
        raise UserError(where, _shown(value), f"{kind.__name__} {shape}, a numpy array")


def _shown(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else _kind(value)


def _check_range(where: str, values: Any, highest: int | None, lowest: int | None) -> None:
    if lowest is not None and values.size and values.min() < lowest:
        raise UserError(where, str(values.min()), f"at least {lowest}")
    if highest is not None and values.size and values.max() > highest:
        raise UserError(where, str(values.max()), f"at most {highest}")


def _check_texts(where: str, texts: object, count: int) -> None:
    if not isinstance(texts, tuple) or len(texts) != count:
        found = f"a tuple of {len(texts)}" if isinstance(texts, tuple) else _kind(texts)
        raise UserError(where, found, f"a tuple of {count}, one for each label")
    lengths = {len(text) if isinstance(text, tuple) else 0 for text in texts}
    is_words = all(isinstance(part, str) for text in texts if isinstance(text, tuple) for part in text)
    if not (is_words and lengths in ({1}, {2}, set())):
        raise UserError(where, "other rows", "a tuple of one string for each row, or of two for each")
