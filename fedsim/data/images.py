"""Reading image files and resizing them.

Every image becomes square, by stretching unless ``data.fit`` says otherwise: nothing is cut off, and no border tells
the original shape, which in collections from several scanners can give the class away.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedsim.data.dataset import Pixels
from fedsim.errors import UserError
from fedsim.machine.cache import cached_folder

#: Pillow tries no other plug-in than these, one of which would start an outside program.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
# They name no file, and what cannot be read is refused by its name.
warnings.filterwarnings("ignore", module=r"PIL\.")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
EIGHT_BITS = "an image with 8 bits per channel, or grey and data.window where the set takes it"
#: How files become pixels, for the cache: 2 turns them as their tags say and takes one picture of a file, 3 refuses
#: numbers that Pillow takes for others.
READING = 3
NUM_SHOWN = 5
#: A tag of TIFF, and what it says of whole numbers with a sign.
SAMPLE_FORMAT, SIGNED = 339, 2
PNG_MARK = b"\x89PNG\r\n\x1a\n"


def decoded(path: Path, formats: Sequence[str] = FORMATS) -> tuple[Image.Image, bool]:
    """Decode the one picture of an image file, turned upright as its EXIF tag says; also tell whether it has 16 bits.

    UserError for a file that is none of ``formats`` or cannot be decoded, for several pages or frames, and for numbers
    that Pillow takes for others.
    """
    try:
        # Not by its name: Pillow 13 maps an uncompressed TIFF of that name with height and width exchanged by its tag.
        with path.open("rb") as file:
            if file.read(len(PNG_MARK)) == PNG_MARK:
                _check_sums(file, formats)
        with path.open("rb") as file, Image.open(file, formats=formats) as image:
            # Pillow opens colours of 16 bits as 8 bits and drops the lower ones; only the stored mode tells.
            is_deep = image.format in ("TIFF", "PNG") and ";16" in str(image.tile[0][3])
            # What a camera keeps behind a JPEG is a preview or depths; pages and frames are pictures of their own.
            num_pictures = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
            upright = ImageOps.exif_transpose(image)
            odd = _misread(image) if image.format == "TIFF" else ""
    except Exception as error:  # a damaged file can raise anything in a decoder
        cause = "of no such format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            str(path), f"an unreadable image ({cause})", f"a whole image file: {', '.join(formats)}"
        ) from error
    if num_pictures > 1:
        raise UserError(str(path), f"{num_pictures} pages or frames", "a file with one picture")
    if odd:
        raise UserError(str(path), odd, "numbers from 0 to 255, from -2^31 to 2^31 - 1, or float32")
    return upright, is_deep


def _misread(image: Image.Image) -> str:
    """Return what numbers of a TIFF Pillow takes for others: such of 8 bits with a sign, and of 32 without; or ""."""
    is_signed = SIGNED in image.tag_v2.get(SAMPLE_FORMAT, ())
    if is_signed and image.mode in EIGHT_BIT_MODES:
        return "8 bits with a sign"
    is_wrapped = not is_signed and image.mode == "I" and image.getextrema()[0] < 0
    return "values of 2^31 and more" if is_wrapped else ""


def _check_sums(file: BinaryIO, formats: Sequence[str]) -> None:
    """Raise for a PNG file whose checksums do not hold, at which Pillow does not look when it decodes the pixels."""
    file.seek(0)
    with Image.open(file, formats=formats) as image:
        image.verify()


def read_rgb(path: Path) -> Image.Image:
    """Decode an image file to 8-bit RGB, without its alpha channel if any; UserError where that is not possible."""
    return _with_8_bits(path).convert("RGB")


def read_opaque(path: Path) -> Image.Image:
    """Decode an image file as ``read_rgb`` does, but refuse transparency: a mask may hold for what it hides."""
    image = _with_8_bits(path)
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise UserError(str(path), f"transparent pixels (mode {image.mode})", "an image that is opaque everywhere")
    return image.convert("RGB")


def _with_8_bits(path: Path) -> Image.Image:
    """Decode an image file; how 16 bits or floats map to 8 depends on the scanner, and a guess would be silent."""
    image, is_deep = decoded(path)
    if is_deep or image.mode not in EIGHT_BIT_MODES:
        mode = f"{image.mode}, 16 bits" if image.mode in EIGHT_BIT_MODES else image.mode
        raise UserError(str(path), f"pixels of mode {mode}", EIGHT_BITS)
    return image


def resized(image: Image.Image, width: int, height: int) -> Pixels:
    """Return (C, height, width) uint8 by bicubic interpolation, antialiased where it shrinks."""
    small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.uint8)
    return small[None] if small.ndim == 2 else small.transpose(2, 0, 1)


def fitted(image: Image.Image, side: int, fit: str) -> Pixels:
    """Return an RGB image as (3, side, side): stretched, cropped to the square in its middle, or padded with black."""
    return resized(square(image, fit), side, side)


def square(image: Image.Image, fit: str) -> Image.Image:
    """Return the part of an image that becomes the square; what lies outside of the image is black."""
    if fit == "stretch":
        return image
    length = min(image.size) if fit == "crop" else max(image.size)
    left, top = ((have - length) // 2 for have in image.size)
    return image.crop((left, top, left + length, top + length))


def placed(mask: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """Return a square mask at its place in an image of this width and height: ``fitted`` the other way round.

    What was cut off has class 0; every pixel has the class of the nearest one.
    """
    if fit == "stretch":
        return mask.resize(size, Image.Resampling.NEAREST)
    length = min(size) if fit == "crop" else max(size)
    left, top = ((have - length) // 2 for have in size)
    whole = Image.new(mask.mode, size)
    whole.paste(mask.resize((length, length), Image.Resampling.NEAREST), (left, top))
    return whole


def write_images(path: Path, shape: tuple[int, ...], produce: Callable[[int], Pixels]) -> None:
    """Write an .npy file (N, C, H, W) or (N, S, C, H, W) uint8 whose n-th image is ``produce(n)``, several at a time.

    UserErrors of ``produce`` are gathered: one that names the first few files and tells how many there are.
    """
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    def put(index: int) -> UserError | None:
        try:
            out[index] = produce(index)
        except UserError as error:
            return error
        return None

    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        errors = [error for error in pool.map(put, range(shape[0])) if error is not None]
    if errors:
        raise _gathered(errors, shape[0])
    out.flush()


def _gathered(errors: Sequence[UserError], num_images: int) -> UserError:
    """Return one error for all; a single one as it is."""
    if len(errors) == 1:
        return errors[0]
    shown = "; ".join(f"{error.where}: {error.found}" for error in errors[:NUM_SHOWN])
    found = shown if len(errors) <= NUM_SHOWN else f"{shown}; and {len(errors) - NUM_SHOWN} more"
    expected = " or ".join(dict.fromkeys(error.expected for error in errors[:NUM_SHOWN]))
    return UserError(f"{len(errors)} of {num_images} images", found, expected)


Reader = Callable[[Path], Image.Image]


def write_resized(
    paths: Sequence[Path], side: int, folder: Path, fit: str = "stretch", read: Reader | None = None
) -> None:
    """Write ``folder``/images.npy with these image files as (N, 3, side, side), made square as ``fitted`` does."""
    decode = read or read_rgb
    write_images(
        folder / "images.npy",
        (len(paths), 3, side, side),
        lambda index: fitted(decode(paths[index]), side, fit),
    )


def prepared_files(
    name: str,
    base: Path,
    paths: Sequence[Path],
    side: int,
    fit: str = "stretch",
    read: Reader | None = None,
    key: Sequence[object] = (),
) -> Path:
    """Return an .npy file (N, 3, side, side) with these image files under ``base``, made square as ``fitted`` does.

    They are decoded and resized once for this list of files with these sizes and times, in the cache under ``name``.
    ``read`` decodes a file, ``read_rgb`` where it is None; ``key`` tells what it makes of files from what others make.
    """
    whole = [*listing(base, paths), side, *([] if fit == "stretch" else [fit]), *key]
    folder = cached_folder(name, whole, partial(write_resized, paths, side, fit=fit, read=read))
    return folder / "images.npy"


def listing(base: Path, paths: Sequence[Path]) -> list[object]:
    """Return what tells these files under ``base`` from others in a cache: names, sizes, times."""
    stats = [path.stat() for path in paths]
    files = [
        [str(path.relative_to(base)), stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)
    ]
    return [READING, str(base.resolve()), files]
