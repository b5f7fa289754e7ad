"""A folder of image files, one subfolder per class, with or without a split of its own."""

from pathlib import Path

import numpy as np

from fedsim.data.cache import load_mapped
from fedsim.data.dataset import Source
from fedsim.data.images import prepared_files
from fedsim.data.splits import NAMES
from fedsim.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
LAYOUT = "<root>/<class>/<image> or <root>/{train,val,test}/<class>/<image>"


def image_folder(root: str, image_size: int) -> Source:
    """Read ``root/<class>/*`` (as Kvasir has it) or ``root/{train,val,test}/<class>/*`` (as OCT-C8 has it).

    The second is taken where ``root/train`` has subfolders; of val and test, the one that is missing is drawn
    from train. Classes are the names of the training subfolders in alphabetical order; names that begin with
    a dot and files that are no images are passed over. UserError for a missing root, no classes, a class
    without images, a class that train does not have, and an image that cannot be read.

    Nothing is known about which images belong together: where one patient has several, use the second layout.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(f"data.root {base}", "no such folder", LAYOUT)
    in_splits = (base / "train").is_dir() and bool(subfolders(base / "train"))
    parts = [(code, base / name) for code, name in enumerate(NAMES)] if in_splits else [(0, base)]
    class_names = tuple(folder.name for folder in subfolders(parts[0][1]))
    if len(class_names) < 2:
        raise UserError(f"data.root {base}", f"{len(class_names)} class folders", f"at least two: {LAYOUT}")
    paths, labels, fixed = [], [], []
    for code, part in parts:
        for folder in subfolders(part) if part.is_dir() else []:
            if folder.name not in class_names:
                raise UserError(str(folder), "a class that train does not have", ", ".join(class_names))
            images = image_files(folder)
            paths += images
            labels += [class_names.index(folder.name)] * len(images)
            fixed += [code] * len(images)
    return Source(
        images=load_mapped(prepared_files("image_folder", base, paths, image_size)),
        labels=np.array(labels, np.int64),
        class_names=class_names,
        fixed=np.array(fixed, np.int64),
        files=tuple(paths),
    )


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder by name, but not those whose name begins with a dot."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder by name; UserError where there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if not found:
        raise UserError(str(folder), "no image", f"files that end in {', '.join(sorted(SUFFIXES))}")
    return found


def site_folders(base: Path, layout: str) -> list[Path]:
    """Return the folders of a set whose sites are folders, of which there must be some."""
    folders = subfolders(base) if base.is_dir() else []
    if not folders:
        raise UserError(f"data.root {base}", "no folder of a site", layout)
    return folders
