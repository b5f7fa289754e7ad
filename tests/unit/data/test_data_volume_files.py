"""A table whose files are volumes, as the import of whole volumes writes them."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedsim.data.datasets.med import evenly_spaced
from fedsim.data.images import fitted
from fedsim.errors import UserError
from tests.distributed.runs import ROOT
from tests.helpers import load_set
from tests.unit.data.clinic.clinic_folder import bring_in

pytestmark = pytest.mark.usefixtures("cache")
COLUMNS = {"path": "path", "label": "label", "patient": "patient"}
SIDE = 12


def write_set(root: Path, volumes: list[np.ndarray]) -> Path:
    root.mkdir()
    for number, volume in enumerate(volumes):
        np.save(root / f"{number}.npy", volume)
    rows = [{"path": f"{number}", "label": number % 2, "patient": number} for number in range(len(volumes))]
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def load(root: Path, **words: Any) -> Any:
    words = {"file": "labels.csv", "image_size": SIDE, "slices": 4, **words}
    return load_set("table", root=str(root), columns=COLUMNS, **words)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_evenly_spaced_slices_are_made_square(tmp_path: Path, fit: str) -> None:
    stream = np.random.default_rng(0)
    volumes = [stream.integers(0, 256, (5 + number, 16, 10 + number)).astype(np.uint8) for number in range(10)]
    data = load(write_set(tmp_path / "set", volumes), fit=fit)
    assert (data.unit, data.num_slices) == ("volumes", 4)
    for volume, found in zip(volumes, data.images.numpy(), strict=True):
        chosen = [fitted(Image.fromarray(layer), SIDE, fit) for layer in volume[evenly_spaced(len(volume), 4)]]
        np.testing.assert_array_equal(found, np.repeat(np.stack(chosen), 3, axis=1))


def test_imported_volumes_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "clinic"
    folder.mkdir()
    rows = []
    for number in range(10):
        voxels = np.random.default_rng(number).integers(0, 500, (14, 12, 6)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 2, 1])), folder / f"{number}.nii.gz")
        rows.append(f"{number}.nii.gz,{'ab'[number % 2]},{number}")
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,patient", *rows]))
    bring_in(folder, tmp_path / "set", volumes="whole", size=8, labels=tmp_path / "labels.csv")
    data = load(tmp_path / "set", file="manifest.csv", image_size=8, slices=8)
    written = [np.load(path) for path in sorted((tmp_path / "set/images").rglob("*.npy"))]
    assert data.images.shape == (10, 8, 3, 8, 8)
    for volume, found in zip(written, data.images.numpy(), strict=True):
        np.testing.assert_array_equal(found[:, 0], volume)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (np.zeros((3, 9, 9), np.uint8), r"found 3 slices; expected at least data.slices, 4"),
        (np.zeros((9, 9), np.uint8), r"found uint8\(9, 9\); expected a volume uint8 \(slices, rows, columns\)"),
        (np.zeros((5, 9, 9), np.uint16), r"found uint16\(5, 9, 9\); expected a volume uint8"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, odd: np.ndarray, message: str) -> None:
    volumes = [np.full((6, 9, 9), number, np.uint8) for number in range(9)]
    with pytest.raises(UserError, match=message):
        load(write_set(tmp_path / "set", [*volumes, odd]))


def test_damaged_files_are_told_of_at_once(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", [np.full((6, 9, 9), number, np.uint8) for number in range(10)])
    (root / "3.npy").write_bytes((root / "3.npy").read_bytes()[:200])
    (root / "4.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"2 of 10 images: found .*3\.npy.*4\.npy"):
        load(root)


def test_a_thread_does_not_break_the_header_that_another_one_reads(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", [np.zeros((6, 9, 9), np.uint8)] * 10)
    # Whenever garbage is looked for, which may be amid a header, the other threads get their turn.
    code = (
        "import gc, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from fedsim.data.datasets.volume_files import read_volume\n"
        "pause = lambda *_: time.sleep(0.0001)\n"
        f"read = lambda n: read_volume(Path({str(root)!r}) / f'{{n % 10}}.npy', 12, 'stretch', 4)\n"
        "gc.callbacks.append(pause); gc.set_threshold(20)\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    list(pool.map(read, range(2000)))\n"
        "gc.callbacks.clear()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_pictures_are_no_volumes(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", [np.full((6, 9, 9), number, np.uint8) for number in range(10)])
    (root / "3.npy").unlink()
    Image.new("L", (9, 9)).save(root / "3.png")
    with pytest.raises(UserError, match=r"row 4, column path: found no file \"?'?3"):
        load(root)
    with pytest.raises(UserError, match=r"no file"):
        load(root, slices=None)
