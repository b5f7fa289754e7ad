"""The dermoscopic set of PRR-FL (Chen et al., MICCAI 2021): four clients, each with a split of its own."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Indices, Source
from fedsim.data.datasets.folder import names_below
from fedsim.data.datasets.tables import csv_rows
from fedsim.data.folders import is_file, subfolders
from fedsim.data.images import prepared_files
from fedsim.data.splits import TEST, TRAIN, VAL, stratified_positions
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped
from fedsim.seeding import numpy_stream

CLASS_NAMES = ("nevus", "benign keratosis", "melanoma")
PARTS = ("train", "valid", "test")
SIDES = (128, 256)
#: HAM10000's numbers. The columns of client D are shifted: under lesion_id it has a flag, 0 or 1.
LESION_PREFIX = "HAM_"
LAYOUT = "<root>/csv_folder/<client>/{train,valid,test}_<client>.csv and <root>/data/<client>/img_resize128/<image>.png"


class Row(NamedTuple):
    """An image of a table; ``lesion`` is None where it is not told."""

    image: str
    label: int
    lesion: str | None


def dermoscopic_clients(config: DataConfig) -> Source:
    """Read a copy of PRR-FL's repository into whose ``data`` folder the images were put.

    The clients are the folders of ``csv_folder``, in alphabetical order (clientA to clientD), and become the sites.
    Their tables need the columns ``image_id`` and ``label`` (0 nevus, 1 benign keratosis, 2 melanoma); images of
    128 pixels are taken where they suffice, else those of 256 (``img_resize256``). UserError for what is missing,
    a label that is none, and an image that two rows name.

    Groups are the lesions that the column ``lesion_id`` tells. The released split has images of one lesion in training
    and in the test; with ``split: by_lesion`` whole lesions are divided anew (``_by_lesion``).
    """
    base = config.folder
    tables = base / "csv_folder"
    clients = [folder.name for folder in subfolders(tables)] if tables.is_dir() else []
    if not clients:
        raise UserError(f"data.root {base}", "no client in csv_folder", LAYOUT)
    side = next((side for side in SIDES if side >= config.image_size), SIDES[-1])
    paths: list[Path] = []
    rows: list[Row] = []
    files: list[Path] = []
    codes, sites = [], []
    for site, client in enumerate(clients):
        for code, part in enumerate(PARTS):
            files.append(tables / client / f"{part}_{client}.csv")
            own = _read_table(files[-1])
            paths += [base / "data" / client / f"img_resize{side}" / f"{row.image}.png" for row in own]
            rows += own
            codes += [code] * len(own)
            sites += [site] * len(own)
    _check_images(paths)
    labels, site_of, fixed = (np.array(column, np.int64) for column in ([row.label for row in rows], sites, codes))
    lesions = [row.lesion for row in rows]
    if config.split == "by_lesion":
        if not any(lesions):
            raise UserError(f"data.split by_lesion, {tables}", "no lesion_id", f"ids that begin with {LESION_PREFIX}")
        fixed = _by_lesion(fixed, site_of * len(CLASS_NAMES) + labels, lesions, config.split_seed)
    return Source(
        images=load_mapped(prepared_files("dermoscopic_clients", base, paths, config.image_size)),
        labels=labels,
        class_names=CLASS_NAMES,
        groups=_lesion_numbers(lesions) if any(lesions) else None,
        sites=site_of,
        site_names=tuple(clients),
        fixed=fixed,
        files=(*files, *paths),
        file_names=names_below(base, paths),
    )


def _lesion_numbers(lesions: list[str | None]) -> Indices:
    """Number the lesions of the images (N,); an image whose lesion is not told is one by itself."""
    names = [lesion or f"image {index}" for index, lesion in enumerate(lesions)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _by_lesion(released: Indices, strata: Indices, lesions: list[str | None], seed: int) -> Indices:
    """Return the split (N,) of the images by whole lesions, those of several clients included.

    Of every stratum (N,), a client's class, each split gets its share of the released one, to half a lesion. Images
    whose lesion is not told stay where they were released.
    """
    known = np.flatnonzero([lesion is not None for lesion in lesions])
    groups = _lesion_numbers(lesions)[known]
    counts = np.zeros((strata.max() + 1, 3))
    np.add.at(counts, (strata[known], released[known]), 1)
    positions = stratified_positions(strata[known], groups, numpy_stream(seed, "data.split"))
    _, firsts, lesion = np.unique(groups, return_index=True, return_inverse=True)
    of_lesion = counts[strata[known][firsts]]
    ends = (of_lesion[:, [TEST, VAL]] / of_lesion.sum(1, keepdims=True)).cumsum(1)
    codes = np.array([TEST, VAL, TRAIN])[(positions[firsts, None] >= ends).sum(1)]
    split = released.copy()
    split[known] = codes[lesion]
    return split


def _read_table(path: Path) -> list[Row]:
    """Return the rows of a table; it must have some."""
    columns = ("image_id", "label", "lesion_id")
    rows = [tuple(row.get(name) for name in columns) for row in csv_rows(path, f"a table: {LAYOUT}")]
    if not rows:
        raise UserError(str(path), "no row", "a row for every image")
    known = [str(label) for label in range(len(CLASS_NAMES))]
    for number, (image, label, _) in enumerate(rows, start=2):
        if not image or label not in known or Path(image).name != image:
            raise UserError(
                f"{path} line {number}",
                f"image_id {image!r} with label {label!r}",
                f"columns image_id, a file name without .png, and label, one of {', '.join(known)}",
            )
    return [
        Row(str(image), int(str(label)), lesion if lesion and lesion.startswith(LESION_PREFIX) else None)
        for image, label, lesion in rows
    ]


def _check_images(paths: list[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise UserError(str(path), "an image that two rows name", "each image once")
        seen.add(path)
        if not is_file(path):
            raise UserError(str(path), "no such file", f"an image: {LAYOUT}")
