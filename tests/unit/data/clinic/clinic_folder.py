"""A folder as it comes from a clinic: DICOM with and without suffix, volumes, deep pictures, and what is no picture."""

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from fedsim.data.clinic.importer import Order, import_folder
from fedsim.data.clinic.render import Settings
from tests.unit.data.clinic.dicom_files import save_dicom

WINDOW = "file,0%-100%"


def write_folder(folder: Path, num_each: int = 3) -> Path:
    """Of each of six kinds ``num_each`` files, two of them of two hospitals."""
    chance = np.random.default_rng(0)
    for number in range(num_each):
        deep = chance.integers(0, 4096, (12, 16)).astype(np.uint16)
        words = {"PatientID": f"P{number // 2}", "InstitutionName": ("North", "South")[number % 2]}
        save_dicom(folder / f"ct/{number}.dcm", deep, 12, WindowCenter=2048, WindowWidth=4096, **words)
        save_dicom(folder / f"bare/IM{number:04}", deep, 12, PixelSpacing=[0.5, 0.25], **words)
        save_dicom(folder / f"cine/{number}.dcm", np.stack([deep, deep // 2, deep // 3]), 12, **words)
        (folder / "mr").mkdir(exist_ok=True)
        (folder / "deep").mkdir(exist_ok=True)
        volume = chance.integers(0, 900, (10, 12, 9)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 2, 3, 1])), folder / f"mr/{number}.nii.gz")
        Image.fromarray(deep).save(folder / f"deep/{number}.png")
        Image.fromarray(deep.astype(np.uint8)).save(folder / f"deep/{number}.tif")
    (folder / "notes.txt").write_text("no picture")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    return folder


def bring_in(folder: Path, out: Path, **words: Any) -> str:
    """Import with the words of ``Order`` and ``Settings``."""
    settings = {name: words.pop(name) for name in list(words) if name in Settings.__dataclass_fields__}
    return import_folder(Order(folder, out, Settings(**{"window": WINDOW, **settings}), **words), lambda _: None)


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(out: Path, row: dict[str, str]) -> np.ndarray:
    path = out / row["path"]
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
