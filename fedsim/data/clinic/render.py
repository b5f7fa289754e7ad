"""The frames of a scan as PNG files, or as one array.

N frames of a scan, H rows, W columns. Shares are of white, 0 to 1.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from fedsim.data.clinic.scan import Frame, Scan, Shares, Values
from fedsim.data.clinic.windows import levels_of, parse_window, shown, windows_of
from fedsim.data.datasets.med import evenly_spaced
from fedsim.errors import UserError

#: Of a volume that is kept whole and as large as it is: 256 in each direction.
MAX_VOXELS = 256**3
#: The highest level takes five times as long for a tenth less.
PNG_LEVEL = 1
Row = dict[str, str]
#: How a file's name ends, its content, and its own cells of the manifest.
Made = tuple[str, bytes, Row]


@dataclass(frozen=True)
class Settings:
    """How files are made into pictures: what must be the same in all of a set."""

    window: str = "file"
    bits: Literal[8, 16] = 8
    volumes: Literal["slices", "slabs", "whole"] = "slices"
    slices: int = 8
    size: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError for settings that cannot be or have no effect together."""
        parse_window(self.window)
        if self.volumes == "slabs" and self.bits == 16:
            raise UserError("--bits", "16 with --volumes slabs", "8: slabs are colours of 8 bits")


def render(where: str, scan: Scan, settings: Settings) -> list[Made]:
    """Return a scan's files: a picture of one frame, or of several evenly spaced ones; or one array with all of them.

    No frame, no file. Slabs are slices in green with the one before in red and the one after in blue. UserError where
    there is no window for the values, and for a volume that is too large to be kept whole; it begins with ``where``.
    """
    if scan.num_frames < 1:
        return []
    is_whole = settings.volumes == "whole" and scan.num_frames > 1
    return _volume(where, scan, settings) if is_whole else _pictures(where, scan, settings)


def _pictures(where: str, scan: Scan, settings: Settings) -> list[Made]:
    """Return the pictures of a scan, one or several."""
    total = scan.num_frames
    chosen: list[int] = evenly_spaced(total, min(settings.slices, total)).tolist()
    is_slab = settings.volumes == "slabs" and total > 1
    layers = {place: _beside(place, total) if is_slab else (place,) for place in chosen}
    frames = {place: scan.frame(place) for place in sorted({layer for one in layers.values() for layer in one})}
    ready = dict(zip(frames, _all_shown(where, list(frames.values()), scan, settings), strict=True))
    made = []
    for number_of, place in enumerate(chosen):
        frame = frames[place]
        window, picture = ready[place]
        if is_slab:
            slab = [ready[layer][1] for layer in layers[place]]
            if any(layer.ndim != 2 or layer.shape != picture.shape for layer in slab):
                raise UserError(where, "frames of colours, or of several sizes", "grey values for --volumes slabs")
            picture = np.stack(slab, axis=2)
        image = _resized(picture, settings)
        facts = {
            "frame": str(place),
            "window": window,
            "bits": _bits(image),
            **_sizes(image.shape[:2], frame, picture.shape[:2]),
        }
        name = ".png" if total == 1 else f"/{number_of:03}.png"
        made.append((name, _png(image), facts))
    return made


def _beside(place: int, total: int) -> tuple[int, ...]:
    """Return a slice with the one before and the one after; at the ends it is there twice."""
    return max(place - 1, 0), place, min(place + 1, total - 1)


def _all_shown(where: str, frames: Sequence[Frame], scan: Scan, settings: Settings) -> list[tuple[str, Values]]:
    """Return for each frame its window's name and its picture: shares of white, or the 8 bits that it has."""
    measured = [frame for frame in frames if frame.values.dtype != np.uint8]
    request = parse_window(settings.window)
    left = iter(windows_of(where, measured, request, scan.modality) if measured else [])
    return [
        ("", frame.values) if frame.values.dtype == np.uint8 else ((window := next(left)).name, shown(frame, window))
        for frame in frames
    ]


def _volume(where: str, scan: Scan, settings: Settings) -> list[Made]:
    """Return a whole scan as one array (N, H, W), of equal sides where a size is asked for."""
    first = scan.frame(0)
    num_voxels = scan.num_frames * first.values.shape[0] * first.values.shape[1]
    if settings.size is None and num_voxels > MAX_VOXELS:
        raise UserError(
            where, f"{num_voxels:,} voxels", f"at most {MAX_VOXELS:,} in a volume that is kept whole, or --size"
        )
    frames = [first, *(scan.frame(place) for place in range(1, scan.num_frames))]
    all_shown = _all_shown(where, frames, scan, settings)
    if any(picture.shape != first.values.shape or picture.ndim != 2 for _, picture in all_shown):
        raise UserError(where, "frames of colours, or of several sizes", "grey values for --volumes whole")
    volume: Values = np.stack([_shares_of(picture) for _, picture in all_shown])
    depth = len(volume)
    if settings.size is not None:
        side = settings.size
        volume = np.stack([_stretched(layer, side, side) for layer in volume])
        volume = _stretched(volume.reshape(depth, -1), side * side, side).reshape(side, side, side)
    out = io.BytesIO()
    levels = levels_of(volume, settings.bits)
    np.save(out, levels, allow_pickle=False)
    facts = {
        "bits": _bits(levels),
        "depth": str(len(volume)),
        "window": all_shown[0][0],
        **_sizes(volume.shape[1:], first, first.values.shape),
    }
    if scan.between is not None:
        facts["spacing_z"] = number(scan.between * depth / len(volume))
    return [(".npy", out.getvalue(), facts)]


def _resized(picture: Values, settings: Settings) -> Values:
    """Return a picture in its final bits; its shorter side is no longer than the size that is asked for."""
    height, width = picture.shape[:2]
    side = settings.size
    if side is not None and min(height, width) > side:
        small = max(1, round(height * side / min(height, width))), max(1, round(width * side / min(height, width)))
        if picture.dtype == np.uint8:
            image = Image.fromarray(picture).resize(small[::-1], Image.Resampling.BICUBIC)
            picture = np.asarray(image, np.uint8)
        elif picture.ndim == 3:
            picture = np.stack([_stretched(layer, small[1], small[0]) for layer in np.moveaxis(picture, 2, 0)], axis=2)
        else:
            picture = _stretched(picture, small[1], small[0])
    if picture.ndim == 3 and picture.dtype == np.uint8:
        return picture  # a PNG of Pillow's has colours of 8 bits alone
    is_ready = settings.bits == 8 and picture.dtype == np.uint8
    return picture if is_ready else levels_of(_shares_of(picture), settings.bits)


def _stretched(shares: Shares, width: int, height: int) -> Shares:
    """Return (height, width) by bicubic interpolation, antialiased where it shrinks."""
    image = Image.fromarray(np.ascontiguousarray(shares, np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)


def _shares_of(picture: Values) -> Shares:
    return np.asarray(picture / np.float32(255) if picture.dtype == np.uint8 else picture, np.float32)


def _png(image: Values) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=PNG_LEVEL)
    return out.getvalue()


def _sizes(size: Sequence[int], frame: Frame, stored: Sequence[int]) -> Row:
    """Return what the manifest says about the size of a picture: pixels, and mm between them after resizing."""
    height, width = size
    found = {"height": str(height), "width": str(width)}
    if frame.spacing is not None:
        found["spacing_y"] = number(frame.spacing[0] * stored[0] / height)
        found["spacing_x"] = number(frame.spacing[1] * stored[1] / width)
    return found


def _bits(levels: Values) -> str:
    return str(8 * levels.itemsize)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
