"""Partitions that the package biosilo (0.1) writes, whose clients are hospitals or institutes.

N samples, C channels, H rows, W columns; S the side of a picture.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.clinic.scan import Frame
from fedsim.data.dataset import Indices, Pixels, Source
from fedsim.data.folders import require_file
from fedsim.data.images import listing, resized
from fedsim.data.splits import TEST, TRAIN
from fedsim.data.windowed import grey_levels, request_of, window_key
from fedsim.errors import UserError, reading
from fedsim.machine.cache import cached_folder, load_mapped
from fedsim.machine.files import parse_json

MANIFEST = "manifest.json"
LAYOUT = "the folder that biosilo.generate returns, with manifest.json, train/ and test/"
SPLITS = {"train": TRAIN, "test": TEST}
#: Channels that are one picture; others are seen one by one, as a volume's slices are.
PICTURE = (1, 3)
Array = npt.NDArray[Any]


class Part(NamedTuple):
    """A client's samples of one split: files, pictures (N, C, H, W), labels (N,), and perhaps what belongs together."""

    files: tuple[Path, ...]
    pictures: Array
    labels: Array
    groups: Array | None


def biosilo(config: DataConfig) -> Source:
    """Read a partition of pictures. Its clients are the sites, and its training and test samples stay what they are.

    Samples of one or three channels are pictures; of others, such as BraTS' four kinds of MRI, each channel is a grey
    picture by itself, as the slices of a volume are. Values that are not of 8 bits become grey levels, channel by
    channel, by ``data.window``. Groups, such as subjects, stay together.

    UserError for a folder that is none, samples that are no pictures, and values without a window.
    """
    base = config.folder
    manifest = _manifest(base)
    parts = [_part(base / split, client, manifest) for client in range(len(manifest["clients"])) for split in SPLITS]
    shape = parts[0].pictures.shape[1:]
    for part in parts:
        if part.pictures.shape[1:] != shape:
            raise UserError(str(part.files[0]), f"samples {part.pictures.shape[1:]}", f"{shape}, as the others have")
    files = tuple(path for part in parts for path in part.files)
    key = [*listing(base, files), config.image_size, *window_key(config)]
    folder = cached_folder("biosilo", key, partial(_prepare, parts, config))
    sizes = [len(part.labels) for part in parts]
    each = partial(np.repeat, repeats=sizes)
    names = tuple(str(client["client_id"]) for client in manifest["clients"])
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=np.concatenate([part.labels for part in parts]).astype(np.int64),
        class_names=tuple(map(str, range(manifest["target_spec"]["num_classes"]))),
        groups=_groups(parts),
        sites=each(np.repeat(np.arange(len(names)), len(SPLITS))),
        site_names=names,
        fixed=each(np.tile(list(SPLITS.values()), len(names))),
        files=(base / MANIFEST, *files),
    )


def _manifest(base: Path) -> dict[str, Any]:
    """Return the manifest, whose clients, input and classes are as they must be for pictures."""
    path = base / MANIFEST
    require_file(path, LAYOUT)
    with reading(str(path), LAYOUT):
        manifest: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        names = [client["client_id"] for client in manifest["clients"]]
        inputs, number = manifest["input_spec"], manifest["target_spec"]["num_classes"]
        shapes = [one["shape"] for one in inputs]
    if manifest.get("storage") not in ("npz", "memmap") or len(set(map(str, names))) < max(1, len(names)):
        raise UserError(str(path), "another storage, or clients of one name", LAYOUT)
    if len(shapes) != 1 or len(shapes[0]) not in (2, 3):
        raise UserError(str(path), f"samples of shape {' and '.join(map(str, shapes))}", "pictures (C, H, W) or (H, W)")
    if not isinstance(number, int) or number < 2:
        raise UserError(str(path), f"{show(number)} classes", "at least two")
    return manifest


def _part(folder: Path, client: int, manifest: Mapping[str, Any]) -> Part:
    """Read a client's arrays of one split; those of a memmap stay on the disk."""
    name = manifest["input_spec"][0]["name"]
    fields = {"x": name, "y": "__y__", "groups": "__groups__"}
    if manifest["storage"] == "npz":
        files: tuple[Path, ...] = (folder / f"{client}.npz",)
        require_file(files[0], LAYOUT)
        with reading(str(files[0]), LAYOUT), np.load(files[0], allow_pickle=False) as content:
            found = {key: content[field] for key, field in fields.items() if key != "groups" or field in content}
    else:
        paths = {"x": folder / f"{client}_{name}.npy", "y": folder / f"{client}_y.npy"}
        if manifest["has_groups"]:
            paths["groups"] = folder / f"{client}_groups.npy"
        found = {}
        for key, path in paths.items():
            require_file(path, LAYOUT)
            with reading(str(path), LAYOUT):
                found[key] = np.load(path, mmap_mode="r" if key == "x" else None, allow_pickle=False)
        files = tuple(paths.values())
    return _checked(Part(files, found["x"], found["y"], found.get("groups")), manifest)


def _checked(part: Part, manifest: Mapping[str, Any]) -> Part:
    """Return a part with its channels as an axis; UserError where its arrays do not fit each other or the manifest."""
    where, number = str(part.files[0]), manifest["target_spec"]["num_classes"]
    pictures = part.pictures[:, None] if part.pictures.ndim == 3 else part.pictures
    if pictures.ndim != 4 or pictures.dtype.kind not in "uif":
        raise UserError(where, f"{pictures.dtype} {part.pictures.shape}", "pictures (N, C, H, W) or (N, H, W)")
    lengths = [len(one) for one in (pictures, part.labels, part.groups) if one is not None]
    if len(set(lengths)) > 1 or part.labels.ndim != 1 or part.labels.dtype.kind not in "iu":
        raise UserError(
            where, f"arrays of {' and '.join(map(str, lengths))} samples", "a whole number for each picture"
        )
    if len(part.labels) and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < number:
        raise UserError(where, f"labels up to {part.labels.max()}", f"0 to {number - 1}, as the manifest has it")
    return part._replace(pictures=pictures)


def _groups(parts: Sequence[Part]) -> Indices | None:
    """Return what belongs together (N,), numbered over all clients; None where nothing is known of it."""
    known = [part.groups for part in parts]
    if any(own is None for own in known):
        return None
    names = [
        f"{place // len(SPLITS)}/{name}" for place, own in enumerate(known) for name in (own if own is not None else ())
    ]
    return np.unique(np.array(names), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _prepare(parts: Sequence[Part], config: DataConfig, folder: Path) -> None:
    """Write images.npy: (N, C, S, S), or (N, C, 1, S, S) where each channel is a picture."""
    side, channels = config.image_size, parts[0].pictures.shape[1]
    inner = (channels,) if channels in PICTURE else (channels, 1)
    shape = (sum(len(part.labels) for part in parts), *inner, side, side)
    out = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    row = 0
    for part in parts:
        for number, sample in enumerate(part.pictures):
            levels = [_levels(f"{part.files[0]}, sample {number}", channel, config) for channel in sample]
            small = [resized(Image.fromarray(channel), side, side) for channel in levels]
            out[row] = np.concatenate(small) if channels in PICTURE else np.stack(small)
            row += 1
    out.flush()


def _levels(where: str, channel: Array, config: DataConfig) -> Pixels:
    """Return a channel (H, W) in 8 bits."""
    if channel.dtype == np.uint8:
        return np.ascontiguousarray(channel)
    if config.window is None:
        raise UserError(where, f"values of type {channel.dtype}", "data.window, which says what is black and white")
    values = np.asarray(channel, np.float64)
    if not np.isfinite(values).all():
        raise UserError(where, "values that are nan or infinite", "finite values")
    return grey_levels(where, Frame(values), request_of(config.window))
