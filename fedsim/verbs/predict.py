"""``launch.py predict``: what a run's saved model says about image files.

Files are prepared as the run's own were: upright, to 8 bits as data.window says, made square as data.fit says, by
bicubic interpolation.

Shapes: S side of an image in pixels, C classes.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsim.data.datasets.folder import SUFFIXES
from fedsim.data.folders import require_file, walked
from fedsim.data.images import fitted, placed
from fedsim.data.windowed import reader_of
from fedsim.errors import UserError
from fedsim.machine.files import csv_text, naming_files, write_atomic
from fedsim.machine.output import showing
from fedsim.runfolder.saved import SavedModel, open_saved
from fedsim.tasks.findings import Findings
from fedsim.tasks.segmentation import Segmentation
from fedsim.tasks.task import Classification

DIGITS = 6


@dataclass(frozen=True)
class ImageFile:
    """A file to predict; ``name``: where its mask goes below the folder of masks."""

    path: Path
    name: Path


@dataclass(frozen=True)
class Answer:
    """The class scores of a file, (C,), or (C, S, S) of its pixels; ``size``: width and height of its own picture."""

    file: ImageFile
    size: tuple[int, int]
    scores: Tensor


def predict(run_dir: Path, images: Sequence[Path], which: str, out: Path | None, trust: bool = False) -> None:
    """Predict image files, and all in folders of them, with a run's best or last saved state.

    A table of CSV goes to ``out``, or to standard output: for each file its class, and every class's probability, or
    every finding's. Of a run with masks it is the share of every class's pixels, and ``out`` is a folder with the
    table, masks.csv, and a mask for each file. UserError for files that cannot be read, and for runs on texts, volumes
    or numbers.
    """
    files = find_images(images)
    with open_saved(run_dir, which, trust) as saved:
        sim = saved.sim
        is_plain = sim.dataset.num_slices is None and isinstance(sim.task, Classification | Findings | Segmentation)
        if not is_plain or sim.dataset.texts is not None:
            found = f"a run on {sim.dataset.unit}, {type(sim.task).__name__.lower()}"
            raise UserError(str(run_dir), found, "one on images with classes, findings or masks")
        if not sim.group.is_server:
            return
        if sim.model.mixes_images(training=False):
            size = sim.config.evaluate.batch_size
            warning = f"warning: the network normalises over {size} files at once: what it says depends on them"
            print(warning, file=sys.stderr)
        names = sim.dataset.class_names
        if out is not None and not isinstance(sim.task, Segmentation):
            require_room(out)
        if isinstance(sim.task, Classification):
            table = [["file", "class", *names], *classes(answers(saved, files), names)]
        elif isinstance(sim.task, Findings):
            table = [["file", *names], *findings(answers(saved, files))]
        elif out is None:
            raise UserError("--out", "nothing", "a folder for the masks of this run")
        else:
            out.mkdir(parents=True, exist_ok=True)
            table = [["file", "mask", *names], *masks(answers(saved, files), len(names), out, sim.config.data.fit)]
            out /= "masks.csv"
    text = csv_text(table)
    if out is not None:
        with naming_files(out.parent):
            write_atomic(out, text.encode())
        return
    with showing():
        print(text, end="")


def require_room(table: Path) -> None:
    """Make the folder of a table. UserError where there can be none, or the table itself is a folder."""
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", f"{table}: {error.strerror}", "a file that can be written") from None
    if table.is_dir():
        raise UserError("--out", f"{table}, a folder", "a CSV file")


def find_images(places: Sequence[Path]) -> list[ImageFile]:
    """Return the files at ``places``, and the image files in such as are folders and in theirs.

    UserError where there is none, and where two would have the same mask.
    """
    files: dict[Path, ImageFile] = {}
    seen: set[Path] = set()
    for place in places:
        for path in _below(place) if place.is_dir() else [place]:
            require_file(path, "an image file, or a folder of them")
            if path in seen:
                continue
            seen.add(path)
            name = path.relative_to(place) if place.is_dir() else Path(path.name)
            file = ImageFile(path, name.with_suffix(".png"))
            if files.setdefault(file.name, file).path != path:
                raise UserError(str(path), f"the name of {files[file.name].path}", "files of different names")
    if not files:
        raise UserError(", ".join(map(str, places)), "no image", f"files that end in {', '.join(SUFFIXES)}")
    return list(files.values())


def _below(folder: Path) -> list[Path]:
    return [path for path in walked(folder) if path.suffix.lower() in SUFFIXES]


def answers(saved: SavedModel, files: Sequence[ImageFile]) -> Iterator[Answer]:
    """Yield the answers for ``files``, in order, computed in batches of ``evaluate.batch_size``."""
    model, data, size = saved.sim.model, saved.sim.config.data, saved.sim.config.evaluate.batch_size
    read = reader_of(data.window)
    for start in range(0, len(files), size):
        some = files[start : start + size]
        pictures = [read(file.path) for file in some]
        pixels = torch.from_numpy(np.stack([fitted(picture, data.image_size, data.fit) for picture in pictures]))
        with torch.no_grad():
            fixed = model.prefix(pixels.to(model.device).float() / 255)
            scores = model.forward(saved.params, fixed[None], training=False)[0].float().cpu()
        for file, picture, own in zip(some, pictures, scores, strict=True):
            yield Answer(file, picture.size, own)


def classes(found: Iterator[Answer], names: Sequence[str]) -> Iterator[list[str]]:
    """Yield a row for each answer: file, class, and the probability of each class."""
    for answer in found:
        shares = [f"{value:.{DIGITS}f}" for value in answer.scores.softmax(0).tolist()]
        yield [str(answer.file.path), names[int(answer.scores.argmax())], *shares]


def findings(found: Iterator[Answer]) -> Iterator[list[str]]:
    """Yield a row for each answer: file, and the probability of each finding."""
    for answer in found:
        yield [str(answer.file.path), *(f"{value:.{DIGITS}f}" for value in answer.scores.sigmoid().tolist())]


def masks(found: Iterator[Answer], num_classes: int, folder: Path, fit: str) -> Iterator[list[str]]:
    """Write each answer's mask, the number of every pixel's class at the picture's own size; yield a row for each."""
    for answer in found:
        predicted = answer.scores.argmax(0).to(torch.uint8).numpy()
        mask = placed(Image.fromarray(predicted), answer.size, fit)
        path = folder / answer.file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        mask.save(content, "PNG")
        write_atomic(path, content.getvalue())
        counts = np.bincount(np.asarray(mask).ravel(), minlength=num_classes)
        yield [str(answer.file.path), str(path), *(f"{share:.{DIGITS}f}" for share in counts / counts.sum())]
