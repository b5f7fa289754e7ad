"""Cardiac MRI of the M&Ms challenge (Campello et al., IEEE TMI 2021): short-axis films of five hospitals with masks."""

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.dataset import Source
from fedsim.data.datasets.folder import names_below
from fedsim.data.datasets.tables import csv_rows
from fedsim.data.datasets.volume_slices import Case, Slicing, sliced
from fedsim.data.folders import files_with, is_file, walked
from fedsim.data.masks import main_classes
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped

CLASS_NAMES = ("background", "left ventricle", "myocardium", "right ventricle")
LAYOUT = "the table of M&Ms in <root>, and <root>/*/<code>_sa.nii.gz with <code>_sa_gt.nii.gz beside it, in any folder"
CODE, VENDOR, CENTRE, PHASES = "External code", "Vendor", "Centre", ("ED", "ES")
IMAGE, MASK = "_sa.nii.gz", "_sa_gt.nii.gz"
#: The folder of the patients whose hearts nobody has drawn.
UNLABELLED = "unlabeled"


class Patient(NamedTuple):
    """A row of the table: hospital, vendor of the scanner, and the moments of both phases, counted from 0."""

    centre: str
    vendor: str
    moments: tuple[int, ...]


def mnms(config: DataConfig) -> Source:
    """Read the challenge's table and the films that it names: of each patient end-diastole (ED) and end-systole (ES).

    An image is a slice with some of the heart on it. Slices lie and stand as they are stored, across the heart's long
    axis, since they are oblique: by the affines they would be cut along it. Sites are the hospitals; the vendor of the
    scanner is what the partition ``column`` goes by. Whole patients are drawn at each hospital: the challenge's folders
    have no training patient of some. Those in ``Unlabeled`` are passed over.

    UserError for a table that is missing or has no such row, an image without its mask, and as ``sliced``.
    """
    base = config.folder
    table, patients = _patients(base)
    films, num_unlabelled = _films(base)
    lacking = sorted(films.keys() - patients.keys())
    if lacking:
        raise UserError(str(table), f"no row of {CODE} {lacking[0]}", f"one for {films[lacking[0]]}")
    if not films:
        raise UserError(f"data.root {base}", "no film with a mask", LAYOUT)
    codes = sorted(films)
    cases = [Case(films[code], _mask_of(films[code]), moment) for code in codes for moment in patients[code].moments]
    owners = np.repeat(np.arange(len(codes)), [len(patients[code].moments) for code in codes])
    folder = sliced("mnms", base, cases, config.image_size, Slicing(CLASS_NAMES, attrgetter("codes")))
    volume_of = np.load(folder / "volumes.npy", allow_pickle=False)
    patient_of = owners[volume_of]
    masks = load_mapped(folder / "masks.npy")
    centres, site_of = np.unique([patients[code].centre for code in codes], return_inverse=True)
    vendors, vendor_of = np.unique([patients[code].vendor for code in codes], return_inverse=True)
    sites = site_of[patient_of].astype(np.int64)
    unlabelled = f"{num_unlabelled} patients without masks are passed over"
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=main_classes(masks, len(CLASS_NAMES)),
        class_names=CLASS_NAMES,
        groups=patient_of,
        sites=sites,
        site_names=tuple(f"centre {centre}" for centre in centres.tolist()),
        strata=sites,
        masks=masks,
        files=(table, *(path for code in codes for path in (films[code], _mask_of(films[code])))),
        remarks=(unlabelled,) if num_unlabelled else (),
        owners=vendor_of[patient_of].astype(np.int64),
        owner_names=tuple(f"vendor {vendor}" for vendor in vendors.tolist()),
        file_names=names_below(base, [cases[volume].image for volume in volume_of.tolist()]),
    )


def _patients(base: Path) -> tuple[Path, Mapping[str, Patient]]:
    """Return the table, whose name bears a date, and its rows by the patients' codes."""
    found: list[tuple[Path, list[dict[str, str]]]] = []
    for path in files_with(base, (".csv",)) if base.is_dir() else []:
        rows = csv_rows(path, LAYOUT)
        if rows and CODE in rows[0]:
            found.append((path, rows))
    if len(found) != 1:
        raise UserError(f"data.root {base}", f"{len(found)} tables with a column {CODE}", LAYOUT)
    ((path, rows),) = found
    patients: dict[str, Patient] = {}
    for number, row in enumerate(rows, start=1):
        cells = {name: (row.get(name) or "").strip() for name in (CODE, VENDOR, CENTRE, *PHASES)}
        moments = tuple(int(cells[name]) for name in PHASES if cells[name].isdecimal() and len(cells[name]) < 4)
        if not (cells[CODE] and cells[VENDOR] and cells[CENTRE]) or len(moments) < len(PHASES):
            expected = f"{', '.join(cells)} in every row, the last two as whole numbers"
            raise UserError(f"{path} row {number}", show(cells), expected)
        if cells[CODE] in patients:
            raise UserError(f"{path} row {number}", f"{CODE} {cells[CODE]} once more", "a row for each patient")
        patients[cells[CODE]] = Patient(cells[CENTRE], cells[VENDOR], moments)
    return path, patients


def _films(base: Path) -> tuple[dict[str, Path], int]:
    """Return the films that have masks, by their patients' codes, and the number of those left out."""
    found: dict[str, Path] = {}
    num_unlabelled = 0
    for path in walked(base):
        if not path.name.endswith(IMAGE):
            continue
        code = path.name.removesuffix(IMAGE)
        if UNLABELLED in (part.lower() for part in path.relative_to(base).parts):
            num_unlabelled += 1
        elif not is_file(_mask_of(path)):
            raise UserError(str(path), "no mask beside it", f"{_mask_of(path).name}, or a folder Unlabeled")
        elif found.setdefault(code, path) != path:
            raise UserError(str(path), f"the name of {found[code]}", "one film of a patient")
    return found, num_unlabelled


def _mask_of(image: Path) -> Path:
    return image.with_name(image.name.removesuffix(IMAGE) + MASK)
