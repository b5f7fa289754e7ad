"""A folder of image files, one subfolder per class, with or without hospitals and a split of its own."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.dataset import Indices, Source
from fedsim.data.folders import files_with, subfolders, walked
from fedsim.data.splits import NAMES, SPLIT_WORDS, TRAIN
from fedsim.data.windowed import prepared
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LAYOUT = "<root>/<class>/<image> or <root>/{train,val,test}/<class>/<image>, or such a folder for each <root>/<site>"
NAMES_SHOWN = 8


class ClassFolder(NamedTuple):
    """A folder of images of one class, its split, and its site, which is empty where there are none."""

    folder: Path
    split: int
    site: str


def image_folder(config: DataConfig) -> Source:
    """Read ``root/<class>/*`` (as Kvasir has it) or ``root/{train,val,test}/<class>/*`` (as OCT-C8 has it).

    The second is taken where ``root/train`` has subfolders, or where no folder of ``root`` has another name than
    ``SPLIT_WORDS``, in any case; of val and test, the one that is missing is drawn from train. Where every folder of
    ``root`` holds folders and no image, these are sites, such as hospitals, each of which has one of these layouts, all
    with the same splits; drawn splits then have each site's classes in proportion. Classes are the names of the
    training subfolders in alphabetical order, or ``data.classes``; hidden files and files that are no images are passed
    over.

    ``data.patient`` tells by a regular expression on files' paths which images belong together; without it nothing is
    known about that, and where one patient has several images, use a layout with splits.

    UserError for a missing root, no classes, a class without images, a class that train does not have, a folder beside
    ``train`` that is no split or the second of one, sites with other splits, images in a folder beside those of a
    class, and images that cannot be read.
    """
    base = config.folder
    if not base.is_dir():
        raise UserError(f"data.root {base}", "no such folder", LAYOUT)
    folders = _class_folders(base)
    class_names = _class_names(base, folders, config.classes)
    images = [image_files(one.folder) for one in folders]
    paths = [path for own in images for path in own]
    site_names = tuple(sorted({one.site for one in folders} - {""}))
    number = {name: code for code, name in enumerate(class_names)}

    def each(codes: Sequence[int]) -> Indices:
        return np.repeat(np.array(codes, np.int64), [len(own) for own in images])

    labels = each([number[one.folder.name] for one in folders])
    sites = each([site_names.index(one.site) for one in folders]) if site_names else None
    names = names_below(base, paths)
    return Source(
        images=load_mapped(prepared("image_folder", base, paths, config)),
        labels=labels,
        class_names=class_names,
        groups=None if config.patient is None else patients_of(config.patient, names),
        sites=sites,
        site_names=site_names,
        fixed=each([one.split for one in folders]),
        strata=None if sites is None else sites * len(class_names) + labels,
        files=tuple(paths),
        remarks=(f"the folders of {base} are sites: {_shown(site_names)}",) if site_names else (),
        file_names=names,
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (
        f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    )


def _class_folders(base: Path) -> list[ClassFolder]:
    """Return the folders of classes: split by split, or site by site and each split by split."""
    parts = _parts(base)
    sites = subfolders(base)
    if parts[TRAIN] != base or not sites or not all(map(_holds_folders, sites)):
        return [ClassFolder(folder, code, "") for code, part in sorted(parts.items()) for folder in subfolders(part)]
    found, splits = [], {}
    for site in sites:
        own = _parts(site)
        splits[site] = {code for code in own if own[TRAIN] != site}
        if splits[site] != splits[sites[0]]:
            there, here = (", ".join(NAMES[code] for code in sorted(splits[one])) for one in (sites[0], site))
            raise UserError(str(site), f"the splits {here or 'none'}", f"{there or 'none'}, as {sites[0].name} has")
        for code, part in sorted(own.items()):
            found += [ClassFolder(folder, code, site.name) for folder in subfolders(part)]
    return found


def _holds_folders(folder: Path) -> bool:
    """Whether a folder may be a site: it holds folders, and no image beside them."""
    return bool(subfolders(folder)) and not files_with(folder, SUFFIXES)


def _class_names(base: Path, folders: Sequence[ClassFolder], known: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return ``known``, or the classes of the training folders; UserError for fewer than two, and for other folders."""
    names = known or tuple(sorted({one.folder.name for one in folders if one.split == TRAIN}))
    if known is None and len(names) < 2:
        where = _parts(base)[TRAIN]
        raise UserError(f"data.root {where}", f"{len(names)} class folders", f"at least two: {LAYOUT}")
    for one in folders:
        if one.folder.name not in names:
            found = "a class that train does not have" if known is None else "a class that is none of data.classes"
            raise UserError(str(one.folder), found, ", ".join(names))
    return names


def names_below(base: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """Return how files are called in the folder ``base``; those outside by their whole paths."""
    prefix = f"{base}{os.sep}"
    return tuple(str(path).removeprefix(prefix) for path in paths)


def patients_of(pattern: str, names: Sequence[str]) -> Indices:
    """Number the patients (N,) that a regular expression finds in files' names (N).

    UserError for files in which it finds nothing.
    """
    found = [re.search(pattern, name) for name in names]
    patients = ["" if match is None else match[1 if match.re.groups else 0] or "" for match in found]
    lacking = [name for name, patient in zip(names, patients, strict=True) if not patient]
    if lacking:
        expected = "a regular expression that finds a patient in every file's path"
        text = f"nothing in {len(lacking):,} of {len(names):,} files, such as {lacking[0]}"
        raise UserError(f"data.patient {show(pattern)}", text, expected)
    return np.unique(np.array(patients), return_inverse=True)[1].reshape(-1).astype(np.int64)


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
    """Return the image files of a folder by name; UserError where there is none, and where folders in it hold more."""
    found = files_with(folder, SUFFIXES)
    deeper = (path for inner in subfolders(folder) for path in walked(inner) if path.suffix.lower() in SUFFIXES)
    if found and (hidden := next(deeper, None)):
        raise UserError(str(hidden), f"an image in a folder beside {found[0].name}", f"all in {folder}")
    if not found:
        raise UserError(str(folder), "no image", f"files that end in {', '.join(SUFFIXES)}")
    return found


def site_folders(base: Path, layout: str) -> list[Path]:
    """Return the folders of a set whose sites are folders, of which there must be some."""
    folders = subfolders(base) if base.is_dir() else []
    if not folders:
        raise UserError(f"data.root {base}", "no folder of a site", layout)
    return folders
