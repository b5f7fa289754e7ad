"""FLamby's Fed-IXI (du Terrail et al., NeurIPS 2022, datasets track): T1 brain MRI of three hospitals with masks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.dataset import Source
from fedsim.data.datasets.folder import names_below
from fedsim.data.datasets.tables import csv_rows
from fedsim.data.datasets.volume_slices import Case, Slicing, sliced
from fedsim.data.folders import files_with, is_file, subfolders
from fedsim.data.masks import main_classes
from fedsim.data.splits import SPLIT_WORDS
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped

CLASS_NAMES = ("background", "brain")
#: A subject's folder: number, hospital, and a number of the hospital's.
SUBJECT = re.compile(r"IXI([0-9]{3})-([A-Za-z]+)-[0-9]+")
LAYOUT = "<root>/IXI002-Guys-0828/T1/*.nii.gz with one of label/*.nii.gz, as in FLamby's folder IXI_sample"
SPLIT_FILE = "metadata_tiny.csv"
NUMBER, SPLIT = "Patient ID", "Split"


class Subject(NamedTuple):
    """A person: the number, the hospital, and the volume with its mask."""

    number: int
    hospital: str
    case: Case


def ixi_tiny(config: DataConfig) -> Source:
    """Read the folder of subjects that FLamby downloads; an image is an axial slice with some of the brain on it.

    Sites are the hospitals. Where FLamby's own ``metadata_tiny.csv`` lies in ``root``, it says who is for the test;
    without it whole subjects are drawn at each hospital.

    UserError for no subject, one without its one volume and its one mask, or without a row in that table, and as
    ``sliced``.
    """
    base = config.folder
    subjects = [_subject(folder, match) for folder, match in _subjects(base)]
    folder = sliced("ixi_tiny", base, [one.case for one in subjects], config.image_size, Slicing(CLASS_NAMES))
    subject_of = np.load(folder / "volumes.npy", allow_pickle=False)
    hospitals, site_of = np.unique([one.hospital for one in subjects], return_inverse=True)
    table = base / SPLIT_FILE
    known = _splits(table) if is_file(table) else None
    lacking = [one for one in subjects if known is not None and one.number not in known]
    if lacking:
        raise UserError(str(table), f"no {NUMBER} {lacking[0].number}", f"a row for {lacking[0].case.image.name}")
    masks = load_mapped(folder / "masks.npy")
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=main_classes(masks, len(CLASS_NAMES)),
        class_names=CLASS_NAMES,
        groups=subject_of,
        sites=site_of[subject_of].astype(np.int64),
        site_names=tuple(hospitals.tolist()),
        fixed=None if known is None else np.array([known[one.number] for one in subjects], np.int64)[subject_of],
        strata=site_of[subject_of].astype(np.int64),
        masks=masks,
        files=(
            *(path for one in subjects for path in (one.case.image, one.case.mask)),
            *((table,) if known is not None else ()),
        ),
        file_names=names_below(base, [subjects[place].case.image for place in subject_of.tolist()]),
    )


def _subjects(base: Path) -> list[tuple[Path, re.Match[str]]]:
    folders = subfolders(base) if base.is_dir() else []
    found = [(folder, match) for folder in folders if (match := SUBJECT.fullmatch(folder.name))]
    if not found:
        raise UserError(f"data.root {base}", "no folder of a subject", LAYOUT)
    return found


def _subject(folder: Path, match: re.Match[str]) -> Subject:
    files = []
    for name in ("T1", "label"):
        inner = folder / name
        own = files_with(inner, (".gz", ".nii")) if inner.is_dir() else []
        if len(own) != 1:
            raise UserError(str(inner), f"{len(own)} volumes", f"one: {LAYOUT}")
        files += own
    return Subject(int(match[1]), match[2], Case(files[0], files[1]))


def _splits(table: Path) -> Mapping[int, int]:
    """Return the splits of the subjects by their numbers."""
    found = {}
    for place, row in enumerate(csv_rows(table, f"FLamby's table with {NUMBER} and {SPLIT}"), start=1):
        number, split = row.get(NUMBER) or "", SPLIT_WORDS.get((row.get(SPLIT) or "").lower())
        if not (number.isdecimal() and len(number) < 10) or split is None:
            shown = show({name: row.get(name) for name in (NUMBER, SPLIT)})
            raise UserError(f"{table} row {place}", shown, f"a number, and one of {', '.join(SPLIT_WORDS)}")
        found[int(number)] = split
    return found
