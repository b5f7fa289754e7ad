"""``launch.py import`` of many files beside a plain loop over MONAI's readers, and its end by force.

    python -m benchmarks.own_images.import_speed                       # 10,000 files
    python -m benchmarks.own_images.import_speed --files 300

Makes DICOM files of one and of several frames, NIfTI volumes, and PNG, TIFF and JPEG files, one in a hundred of them
damaged. Imports them with two processes, which must end with all damaged files listed; once more, killed by force on
the way and gone on with, which must end with the same bytes; and with a loop that names MONAI's reader for each file,
in one process and in two. All write the same sizes of PNG, by percentiles, with Pillow's same level.

The loop is timed twice. Plain, it reads, windows, resizes and writes. Recorded, it leaves what the import leaves of a
file too: sha256 of the file and of each picture, and a row of a table. What it never does: see whether a PNG or gzip
file is whole by its checksums, apply what DICOM says of slope, polarity and padding frame by frame, replace patients by
pseudonyms, and leave what can be gone on with. The import's seconds have its start, the loop's have not that of MONAI:
300 files tell of the start alone. Beside the seconds stand those of processors, which others at work change less.
"""

import argparse
import csv
import hashlib
import io
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import description
from fedsim.data.clinic.render import PNG_LEVEL

SIDE, SIZE, SLICES, BAD_EVERY = 256, 128, 4, 100
LOW, HIGH = 1, 99
#: In turn; a quarter of all are single DICOM slices of each of two kinds.
KINDS = (
    "ct.dcm",
    "xray.dcm",
    "ct.dcm",
    "deep.png",
    "volume.nii.gz",
    "ct.dcm",
    "xray.dcm",
    "deep.tif",
    "cine.dcm",
    "plain.jpg",
)


def make_files(folder: Path, count: int) -> list[str]:
    """Write the files, and return the names of those that are damaged."""
    chance = np.random.default_rng(0)
    soft = Image.fromarray(chance.integers(0, 3600, (16, 16)).astype(np.float32)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    base = np.clip(np.asarray(soft), 0, 4095).astype(np.uint16)
    noise = chance.integers(0, 24, (SIDE, SIDE)).astype(np.uint16)
    bad = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        path = folder / f"{number // 500:03}" / f"{number:06}_{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.roll(base, number * 7, axis=1) // 2 + np.roll(noise, number, axis=0)
        path.write_bytes(_content(kind, pixels, number))
        if number % BAD_EVERY == BAD_EVERY // 2:
            path.write_bytes(path.read_bytes()[: 100 + number % 400])
            bad.append(path.relative_to(folder).as_posix())
    return sorted(bad)


def _content(kind: str, pixels: Any, number: int) -> bytes:
    import nibabel

    out = io.BytesIO()
    if kind == "volume.nii.gz":
        volume = np.stack([pixels[row : row + 64, :64] for row in range(0, 160, 10)], axis=2).astype(np.int16)
        return bytes(_gzipped(nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 3.0, 1.0])).to_bytes()))
    if kind.endswith(".dcm"):
        frames = pixels if kind != "cine.dcm" else np.stack([pixels[row : row + 96, :96] for row in range(0, 80, 10)])
        _dicom(frames, kind, number).save_as(out, enforce_file_format=True)
    elif kind == "plain.jpg":
        Image.fromarray((pixels >> 4).astype(np.uint8)).save(out, "JPEG")
    else:
        Image.fromarray(pixels).save(out, "PNG" if kind == "deep.png" else "TIFF")
    return out.getvalue()


def _gzipped(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content, 1, mtime=0)


def _dicom(frames: Any, kind: str, number: int) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data: Any = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{number}"
    data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = str(number // 8), f"1.2.{number // 8}", "1.2"
    data.Modality, data.InstitutionName = "CT", f"Hospital {number % 3}"
    data.PhotometricInterpretation = "MONOCHROME1" if kind == "xray.dcm" else "MONOCHROME2"
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.RescaleSlope, data.RescaleIntercept, data.PixelSpacing = 1, -1024, [0.5, 0.5]
    data.Rows, data.Columns = frames.shape[-2:]
    if frames.ndim == 3:
        data.NumberOfFrames = len(frames)
    data.PixelData = frames.tobytes()
    return data


def start_import(folder: Path, out: Path, salt: Path, *more: str) -> subprocess.Popen[str]:
    words = ["--window", f"{LOW}%-{HIGH}%", "--size", str(SIZE), "--slices", str(SLICES), "--salt", str(salt), *more]
    command = [sys.executable, "launch.py", "import", str(folder), "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def watched(process: subprocess.Popen[str]) -> tuple[float, list[float]]:
    """Wait for a process; return its seconds and, for each half second, MiB of it and its children."""
    begin, sizes = time.perf_counter(), []
    next_look = begin + 0.5
    while process.poll() is None:
        time.sleep(0.02)
        if time.perf_counter() >= next_look:
            sizes.append(sum(map(_own_mib, [process.pid, *_children(process.pid)])))
            next_look += 0.5
    return time.perf_counter() - begin, sizes


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _own_mib(pid: int) -> float:
    """What a process holds for itself; pages that it shares with others count in none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def convert_with_monai(folder: Path, out: Path, is_recorded: bool, names: Sequence[str]) -> list[list[str]]:
    """The loop: MONAI's reader by name, percentiles, size, PNG; passes over what it cannot read.

    Returns a row for each picture where it ``is_recorded``: path, file, sizes, both digests.
    """
    warnings.simplefilter("ignore")  # MONAI's readers say much about files without positions, for every file
    logging.disable(logging.WARNING)
    from monai.data import NibabelReader, PILReader, PydicomReader
    from monai.transforms import LoadImage

    readers = {".dcm": PydicomReader(), ".gz": NibabelReader()}
    load = {suffix: LoadImage(reader=reader, image_only=True) for suffix, reader in readers.items()}
    load_picture = LoadImage(reader=PILReader(), image_only=True)
    rows = []
    for name in names:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest() if is_recorded else ""
        try:
            image = np.asarray(load.get(Path(name).suffix, load_picture)(folder / name))
        except Exception:  # whatever a reader raises over a damaged file
            continue
        depth = image.shape[2] if image.ndim == 3 else 1
        chosen = [(2 * n + 1) * depth // (2 * min(SLICES, depth)) for n in range(min(SLICES, depth))]
        slices = [image[..., place] for place in chosen] if image.ndim == 3 else [image]
        low, high = np.percentile(np.stack(slices), (LOW, HIGH))
        for place, one in enumerate(slices):
            shares = np.clip((one.T - low) / max(high - low, 1e-6), 0, 1)
            picture = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
            side = min(picture.size)
            if side > SIZE:
                picture = picture.resize(tuple(round(n * SIZE / side) for n in picture.size), Image.Resampling.BICUBIC)
            target = out / f"{name}-{place}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target, compress_level=PNG_LEVEL)
            if is_recorded:
                own = hashlib.sha256(target.read_bytes()).hexdigest()
                rows.append([str(target), name, *map(str, picture.size), own, digest])
    return rows


def time_loop(folder: Path, out: Path, names: list[str], processes: int, *, is_recorded: bool) -> tuple[float, float]:
    """Files per second of the loop, and milliseconds of processors for each; importing MONAI is not counted."""
    work = partial(loop_with_its_cost, folder, out, is_recorded)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(work, [names[:1]] * processes, chunksize=1)
        begin = time.perf_counter()
        found = pool.map(work, [names[place::processes] for place in range(processes)], chunksize=1)
        if is_recorded:
            with (out / "manifest.csv").open("w", newline="") as file:
                csv.writer(file).writerows(row for rows, _ in found for row in rows)
        rate = len(names) / (time.perf_counter() - begin)
    return rate, 1000 * sum(cost for _, cost in found) / len(names)


def loop_with_its_cost(
    folder: Path, out: Path, is_recorded: bool, names: Sequence[str]
) -> tuple[list[list[str]], float]:
    """Do the loop; return its rows and its seconds of processors."""
    begin = time.process_time()
    return convert_with_monai(folder, out, is_recorded, names), time.process_time() - begin


def check_kill(folder: Path, place: Path, salt: Path, whole: Path, num_files: int) -> float:
    """Kill an import on the way, go on, and compare; return the share of the files that were done by then."""
    killed = place / "killed"
    process = start_import(folder, killed, salt, "--skip-bad")
    while process.poll() is None and _num_done(killed) < num_files // 3:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    share = _num_done(killed) / num_files
    process = start_import(folder, killed, salt, "--skip-bad")
    process.communicate()
    assert process.returncode == 0
    for name in ("manifest.csv", "bad_files.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), f"another {name} after the kill"
    return share


def _num_done(out: Path) -> int:
    """How many files' pictures are there, of files of one picture; and folders of those of several."""
    return sum(1 for part in out.glob("images/*") for _ in part.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to work, and what is kept; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.folder or Path(temporary)
        folder, whole, salt = place / "files", place / "whole", place / "salt"
        bad = make_files(folder, arguments.files)
        salt.write_text("the salt of a benchmark")
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        process = start_import(folder, whole, salt)
        seconds, sizes = watched(process)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost = 1000 * (used.ru_utime + used.ru_stime) / len(names)
        assert process.returncode == 2, process.communicate()
        listed = [row["source"] for row in csv.DictReader((whole / "bad_files.csv").open(newline=""))]
        assert listed == bad, "other bad files than were made"
        process = start_import(folder, whole, salt, "--skip-bad")
        again, _ = watched(process)
        assert process.returncode == 0, process.communicate()
        rate = len(names) / seconds
        print(description())
        print(f"import, 2 processes, with its start: {rate:.0f} files a second, {seconds:.1f} s for {len(names)}")
        print(f"it takes {cost:.2f} ms of processors for each file")
        print(f"{len(bad)} damaged files, all listed; with --skip-bad the rest of the work took {again:.1f} s")
        quarter = max(1, len(sizes) // 4)
        second, last = (float(np.mean(part)) for part in (sizes[quarter : 2 * quarter], sizes[-quarter:]))
        print(f"memory of all its processes: {second:.0f} MiB in the second quarter, {last:.0f} in the last")
        print(f"killed at {check_kill(folder, place, salt, whole, len(names)):.0%}, gone on with: the same manifest")
        for kind, processes in itertools.product(("plain", "recorded"), (1, 2)):
            out = place / f"{kind}{processes}"
            loop, own = time_loop(folder, out, names, processes, is_recorded=kind == "recorded")
            said = f"{loop:.0f} files a second, {own:.2f} ms of processors; import is {rate / loop:.2f} times that"
            print(f"MONAI's readers, {kind}, {processes} processes: {said}")


if __name__ == "__main__":
    main()
