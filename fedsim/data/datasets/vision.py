"""CIFAR-10, CIFAR-100 and Oxford Flowers-102 from the folders of torchvision's names, never downloaded.

torchvision reads CIFAR's Python version, which is a pickle: whoever made the file could run code. The binary version
that the authors publish beside it has the same images in the same order, so that one is read here.
"""

import zlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.data.cache import cached_folder, load_mapped
from fedsim.data.dataset import Indices, Pixels, Source
from fedsim.data.images import listing, prepared_files, resized, write_images
from fedsim.data.splits import TEST, TRAIN, VAL
from fedsim.errors import UserError

CIFAR_SIDE = 32
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
FLOWERS_SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FLOWERS_LAYOUT = f"<root>/flowers-102/ with jpg/, imagelabels.mat and setid.mat, from {FLOWERS_SITE}"


def cifar10(root: str, image_size: int) -> Source:
    """Read ``root/cifar-10-batches-bin``: five data_batch_*.bin, the training images, and test_batch.bin.

    A record is a byte with the class and 3 x 32 x 32 bytes, red, green, blue (Krizhevsky, 2009). The validation images
    are drawn from training. UserError for a missing file, one that is no whole number of records, and a label of no
    class.
    """
    train = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    folder = _cifar_folder(root, "cifar-10-batches-bin", (*train, "test_batch.bin"), "cifar-10-binary.tar.gz")
    return _cifar(folder, train, "test_batch.bin", 1, CIFAR_CLASSES, image_size)


def cifar100(root: str, image_size: int) -> Source:
    """Read ``root/cifar-100-binary``: train.bin, test.bin and fine_label_names.txt.

    As ``cifar10``, but a record begins with a byte of the coarse class, which is passed over, and one of the class.
    """
    files = ("train.bin", "test.bin", "fine_label_names.txt")
    folder = _cifar_folder(root, "cifar-100-binary", files, "cifar-100-binary.tar.gz")
    names = (folder / "fine_label_names.txt").read_text(encoding="utf-8").split()
    return _cifar(folder, ("train.bin",), "test.bin", 2, tuple(names), image_size)


def _cifar_folder(root: str, name: str, files: tuple[str, ...], archive: str) -> Path:
    folder = Path(root).expanduser() / name
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        wanted = f"the unpacked {archive} (binary version) from {CIFAR_SITE}"
        raise UserError(str(folder), f"no {', '.join(missing)}", wanted)
    return folder


def _cifar(
    folder: Path, train: tuple[str, ...], test: str, label_bytes: int, class_names: tuple[str, ...], side: int
) -> Source:
    """Read the records; of ``label_bytes`` bytes in front of an image the last is the class."""
    parts = [_records(folder / file, label_bytes) for file in (*train, test)]
    records = np.concatenate(parts)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= len(class_names):
        raise UserError(str(folder), f"label {labels.max()}", f"labels of the {len(class_names)} classes")
    fixed = np.full(len(labels), TRAIN, np.int64)
    fixed[-len(parts[-1]) :] = TEST
    key = [*listing(folder, [folder / file for file in (*train, test)]), side]
    pixels = records[:, label_bytes:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    prepared = cached_folder(folder.name, key, partial(_write_cifar, pixels, side))
    return Source(load_mapped(prepared / "images.npy"), labels, class_names, fixed=fixed)


def _records(path: Path, label_bytes: int) -> Pixels:
    size = label_bytes + 3 * CIFAR_SIDE**2
    content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % size:
        raise UserError(str(path), f"{len(content)} bytes", f"one or more records of {size} bytes")
    return content.reshape(-1, size)


def _write_cifar(pixels: Pixels, side: int, folder: Path) -> None:
    def produce(index: int) -> Pixels:
        image: Pixels = pixels[index]
        if side == CIFAR_SIDE:
            return image
        return resized(Image.fromarray(image.transpose(1, 2, 0)), side, side)

    write_images(folder / "images.npy", (len(pixels), 3, side, side), produce)


def flowers102(root: str, image_size: int) -> Source:
    """Read ``root/flowers-102`` with the authors' split, as torchvision lays it out (Nilsback and Zisserman, 2008).

    ``jpg/image_00001.jpg`` ..., ``imagelabels.mat`` (classes from 1) and ``setid.mat`` (numbers of the training,
    validation and test images). UserError for what is missing or unreadable, a number without label or image, and a
    label of no class.
    """
    from torchvision.datasets import Flowers102  # here, since it costs a second that other sets need not pay

    class_names: list[str] = Flowers102.classes
    folder = Path(root).expanduser() / "flowers-102"
    labels = _row(folder / "imagelabels.mat", "labels")
    parts = [_row(folder / "setid.mat", name) for name in ("trnid", "valid", "tstid")]
    numbers = np.concatenate(parts)
    _check_range(folder / "setid.mat", "image", numbers, len(labels))
    _check_range(folder / "imagelabels.mat", "label", labels, len(class_names))
    paths = [folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    for path in paths:
        if not path.is_file():
            raise UserError(str(path), "no such file", FLOWERS_LAYOUT)
    return Source(
        images=load_mapped(prepared_files("flowers-102", folder, paths, image_size)),
        labels=labels[numbers - 1] - 1,
        class_names=tuple(class_names),
        fixed=np.repeat([TRAIN, VAL, TEST], [len(part) for part in parts]),
    )


def _row(path: Path, name: str) -> Indices:
    """Return a row of whole numbers from a MATLAB file."""
    import scipy.io  # type: ignore[import-untyped]  # scipy has no types; late: few runs need it
    from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]  # as above

    try:
        content = scipy.io.loadmat(path, variable_names=[name])
        return np.asarray(content[name]).ravel().astype(np.int64)
    except (OSError, KeyError, ValueError, TypeError, NotImplementedError, zlib.error, MatReadError) as error:
        raise UserError(str(path), f"no numbers {name!r} ({error})", FLOWERS_LAYOUT) from error


def _check_range(path: Path, what: str, numbers: Indices, highest: int) -> None:
    strange = numbers[(numbers < 1) | (numbers > highest)]
    if len(strange):
        raise UserError(str(path), f"{what} {strange[0]}", f"numbers from 1 to {highest}")
