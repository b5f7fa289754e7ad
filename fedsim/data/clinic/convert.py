"""One file of the clinic to pictures, or to a volume, and their rows of the manifest.

N frames of a scan, H rows, W columns.
"""

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

from fedsim.data.clinic.dicom import read_dicom
from fedsim.data.clinic.nifti import read_nifti
from fedsim.data.clinic.pictures import read_picture
from fedsim.data.clinic.render import Row, Settings, number, render
from fedsim.data.clinic.scan import Scan
from fedsim.errors import reading
from fedsim.machine.files import replacing

Reader = Callable[[Path], Scan]

SUFFIXES: dict[str, Reader] = {
    **dict.fromkeys((".dcm", ".dicom", ".ima"), read_dicom),
    **dict.fromkeys((".nii", ".nii.gz"), read_nifti),
    **dict.fromkeys((".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp"), read_picture),
}
#: What a DICOM file has after its first 128 bytes; many have no suffix.
DICOM_MARK, DICOM_MARK_AT = b"DICM", 128
INDEX_OF_DISC = "DICOMDIR"
#: Columns of the manifest, in this order; a table of labels may bring more.
COLUMNS = (
    "path", "source", "frame", "label", "site", "patient", "study", "series", "modality", "width", "height", "depth",
    "spacing_x", "spacing_y", "spacing_z", "bits", "window", "burned_in", "sha256", "source_sha256",
)  # fmt: skip
#: Those of them that a table of labels may fill.
FROM_LABELS = ("label", "site", "patient")


def reader_of(path: Path) -> Reader | None:
    """Return the reader for a file, by its suffix or, for DICOM, by its content; None for what is no picture."""
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if path.name.upper() == INDEX_OF_DISC:
        return None
    try:
        with path.open("rb") as file:
            head = file.read(DICOM_MARK_AT + len(DICOM_MARK))
    except OSError:  # whoever reads it tells why
        return read_dicom
    return read_dicom if head[DICOM_MARK_AT:] == DICOM_MARK else None


class Pseudonyms:
    """Names in place of those of patients, hospitals and so on: the same for the same, and no way back without the
    salt (HMAC-SHA256)."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def __call__(self, kind: str, name: str) -> str:
        """Return what stands for a name of some kind; nothing for nothing."""
        if not name:
            return ""
        return hmac.digest(self._salt, f"{kind}\n{name}".encode(), "sha256").hex()[:16]


def convert(root: Path, out: Path, source: str, settings: Settings, pseudonyms: Pseudonyms) -> list[Row]:
    """Write what the file ``source`` below ``root`` shows below ``out``, and return the rows of what was written.

    None where there is no picture in it, as in a report. Labels are not known here. UserError for what cannot be read.
    """
    path = root / source
    reader = reader_of(path)
    assert reader is not None, "the caller has looked"
    with reading(str(path), "a file that can be read"), path.open("rb") as file:
        source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    scan = reader(path)
    common = {**_people(scan, source, pseudonyms), "source": source, "source_sha256": source_sha256}
    common |= {"modality": scan.modality, "spacing_z": number(scan.between)}
    common["burned_in"] = "YES" if scan.has_names_in_pixels else ""
    rows = []
    for name, content, facts in render(str(path), scan, settings):
        target = out / f"{source}{name}"
        _write(target, content)
        written = {"path": target.relative_to(out.parent).as_posix(), "sha256": hashlib.sha256(content).hexdigest()}
        rows.append(dict.fromkeys(COLUMNS, "") | common | facts | written)
    return rows


def _write(target: Path, content: bytes) -> None:
    """Write a file in one step. Most folders are there already, and to look for them first takes as long as writing."""
    try:
        with replacing(target, durable=False) as file:
            file.write(content)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, durable=False) as file:
            file.write(content)


def _people(scan: Scan, source: str, pseudonyms: Pseudonyms) -> Row:
    """Return pseudonyms of patient, study, series and site.

    Where no patient is known it is the study or the series, and for several slices the file: what must stay together.
    """
    ids = {name: pseudonyms(name, scan.ids.get(name, "")) for name in ("patient", "study", "series", "site")}
    ids["patient"] = ids["patient"] or ids["study"] or ids["series"]
    if not ids["patient"] and scan.num_frames > 1:
        ids["patient"] = pseudonyms("source", source)
    return ids
