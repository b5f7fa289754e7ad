"""A folder of image files, one subfolder per class, with or without a split of its own."""

from pathlib import Path

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Source
from fedsim.data.folders import files_with, subfolders
from fedsim.data.images import prepared_files
from fedsim.data.splits import NAMES, SPLIT_WORDS, TRAIN
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LAYOUT = "<root>/<class>/<image> or <root>/{train,val,test}/<class>/<image>"


def image_folder(config: DataConfig) -> Source:
    """Read ``root/<class>/*`` (as Kvasir has it) or ``root/{train,val,test}/<class>/*`` (as OCT-C8 has it).

    The second is taken where ``root/train`` has subfolders, or where no folder of ``root`` has another name than
    ``SPLIT_WORDS``, in any case; of val and test, the one that is missing is drawn from train. Classes are the
    names of the training subfolders in alphabetical order; hidden files and files that are no images are passed over.
    UserError for a missing root, no classes, a class without images, a class that train does not have, a folder beside
    ``train`` that is no split or the second of one, and images that cannot be read.

    Nothing is known about which images belong together: where one patient has several, use the second layout.
    """
    base = config.folder
    if not base.is_dir():
        raise UserError(f"data.root {base}", "no such folder", LAYOUT)
    parts = _parts(base)
    class_names = tuple(folder.name for folder in subfolders(parts[TRAIN]))
    if len(class_names) < 2:
        raise UserError(f"data.root {parts[TRAIN]}", f"{len(class_names)} class folders", f"at least two: {LAYOUT}")
    paths, labels, fixed = [], [], []
    for code, part in sorted(parts.items()):
        for folder in subfolders(part):
            if folder.name not in class_names:
                raise UserError(str(folder), "a class that train does not have", ", ".join(class_names))
            images = image_files(folder)
            paths += images
            labels += [class_names.index(folder.name)] * len(images)
            fixed += [code] * len(images)
    return Source(
        images=load_mapped(prepared_files("image_folder", base, paths, config.image_size)),
        labels=np.array(labels, np.int64),
        class_names=class_names,
        fixed=np.array(fixed, np.int64),
        files=tuple(paths),
    )


def _parts(base: Path) -> dict[int, Path]:
    """Return the folder of each split that the set brings; ``base`` is all of TRAIN where it brings none."""
    codes = {folder: SPLIT_WORDS.get(folder.name.lower()) for folder in subfolders(base)}
    has_classes = any(subfolders(folder) for folder, code in codes.items() if code == TRAIN)
    if not has_classes and (not codes or None in codes.values()):  # a class may be called train, beside others
        return {TRAIN: base}
    parts: dict[int, Path] = {}
    for folder, code in codes.items():
        if code is None:
            raise UserError(str(folder), "a folder beside train that is no split", ", ".join(SPLIT_WORDS))
        if code in parts:
            raise UserError(str(folder), f"a second folder of {NAMES[code]}", f"{parts[code].name} alone")
        parts[code] = folder
    if TRAIN not in parts:
        raise UserError(f"data.root {base}", f"no train beside {next(iter(codes)).name}", LAYOUT)
    return parts


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder by name; UserError where there is none."""
    found = files_with(folder, SUFFIXES)
    if not found:
        raise UserError(str(folder), "no image", f"files that end in {', '.join(SUFFIXES)}")
    return found


def site_folders(base: Path, layout: str) -> list[Path]:
    """Return the folders of a set whose sites are folders, of which there must be some."""
    folders = subfolders(base) if base.is_dir() else []
    if not folders:
        raise UserError(f"data.root {base}", "no folder of a site", layout)
    return folders
