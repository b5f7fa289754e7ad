"""The dermoscopic set of PRR-FL (Chen et al., MICCAI 2021): four clients, each with a split of its own."""

from pathlib import Path

import numpy as np

from fedsim.data.cache import load_mapped
from fedsim.data.dataset import Source
from fedsim.data.datasets.tables import csv_rows
from fedsim.data.folders import is_file, subfolders
from fedsim.data.images import prepared_files
from fedsim.errors import UserError

CLASS_NAMES = ("nevus", "benign keratosis", "melanoma")
PARTS = ("train", "valid", "test")
SIDES = (128, 256)
LAYOUT = "<root>/csv_folder/<client>/{train,valid,test}_<client>.csv and <root>/data/<client>/img_resize128/<image>.png"


def dermoscopic_clients(root: str, image_size: int) -> Source:
    """Read a copy of PRR-FL's repository into whose ``data`` folder the images were put.

    The clients are the folders of ``csv_folder``, in alphabetical order (clientA to clientD), and become the sites.
    Their tables need the columns ``image_id`` and ``label`` (0 nevus, 1 benign keratosis, 2 melanoma); images of
    128 pixels are taken where they suffice, else those of 256 (``img_resize256``). UserError for what is missing,
    a label that is none, and an image that two rows name.
    """
    base = Path(root).expanduser()
    tables = base / "csv_folder"
    clients = [folder.name for folder in subfolders(tables)] if tables.is_dir() else []
    if not clients:
        raise UserError(f"data.root {base}", "no client in csv_folder", LAYOUT)
    side = next((side for side in SIDES if side >= image_size), SIDES[-1])
    paths: list[Path] = []
    files: list[Path] = []
    labels, fixed, sites = [], [], []
    for site, client in enumerate(clients):
        for code, part in enumerate(PARTS):
            files.append(tables / client / f"{part}_{client}.csv")
            rows = _read_table(files[-1])
            paths += [base / "data" / client / f"img_resize{side}" / f"{image}.png" for image, _ in rows]
            labels += [label for _, label in rows]
            fixed += [code] * len(rows)
            sites += [site] * len(rows)
    _check_images(paths)
    return Source(
        images=load_mapped(prepared_files("dermoscopic_clients", base, paths, image_size)),
        labels=np.array(labels, np.int64),
        class_names=CLASS_NAMES,
        sites=np.array(sites, np.int64),
        site_names=tuple(clients),
        fixed=np.array(fixed, np.int64),
        files=(*files, *paths),
    )


def _read_table(path: Path) -> list[tuple[str, int]]:
    """Return the images and labels of a table; it must have some."""
    rows = [(row.get("image_id"), row.get("label")) for row in csv_rows(path, f"a table: {LAYOUT}")]
    if not rows:
        raise UserError(str(path), "no row", "a row for every image")
    known = [str(label) for label in range(len(CLASS_NAMES))]
    for number, (image, label) in enumerate(rows, start=2):
        if not image or label not in known or Path(image).name != image:
            raise UserError(
                f"{path} line {number}",
                f"image_id {image!r} with label {label!r}",
                f"columns image_id, a file name without .png, and label, one of {', '.join(known)}",
            )
    return [(str(image), int(str(label))) for image, label in rows]


def _check_images(paths: list[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise UserError(str(path), "an image that two rows name", "each image once")
        seen.add(path)
        if not is_file(path):
            raise UserError(str(path), "no such file", f"an image: {LAYOUT}")
