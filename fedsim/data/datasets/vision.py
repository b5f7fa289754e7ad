"""CIFAR-10, CIFAR-100 and Oxford Flowers-102 from the folders of torchvision's names, never downloaded.

torchvision reads CIFAR's Python version, which is a pickle: whoever made the file could run code. The binary version
that the authors publish beside it has the same images in the same order, so that one is read here.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Indices, Pixels, Source
from fedsim.data.folders import is_file, require_file
from fedsim.data.images import listing, prepared_files, resized, write_images
from fedsim.data.splits import TEST, TRAIN, VAL
from fedsim.errors import UserError, reading
from fedsim.machine.cache import cached_folder, load_mapped

CIFAR_SIDE = 32
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = 100
CIFAR_PUBLISHED = (50_000, 10_000)  # images in train and test of either set
FLOWERS_PUBLISHED = (1020, 1020, 6149)
CIFAR_SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
FLOWERS_SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FLOWERS_LAYOUT = f"<root>/flowers-102/ with jpg/, imagelabels.mat and setid.mat, from {FLOWERS_SITE}"


def cifar10(config: DataConfig) -> Source:
    """Read ``root/cifar-10-batches-bin``: five data_batch_*.bin, the training images, and test_batch.bin.

    A record is a byte with the class and 3 x 32 x 32 bytes, red, green, blue (Krizhevsky, 2009). The validation images
    are drawn from training. UserError for a missing file, one that is no whole number of records, and a label of no
    class.
    """
    train = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    folder = _cifar_folder(config.folder, "cifar-10-batches-bin", (*train, "test_batch.bin"), "cifar-10-binary.tar.gz")
    return _cifar(folder, train, "test_batch.bin", 1, CIFAR_CLASSES, config.image_size)


def cifar100(config: DataConfig) -> Source:
    """Read ``root/cifar-100-binary``: train.bin, test.bin and fine_label_names.txt.

    As ``cifar10``, but a record begins with a byte of the coarse class, which is passed over, and one of the class.
    """
    files = ("train.bin", "test.bin", "fine_label_names.txt")
    folder = _cifar_folder(config.folder, "cifar-100-binary", files, "cifar-100-binary.tar.gz")
    path = folder / "fine_label_names.txt"
    with reading(str(path), f"the names of {CIFAR100_CLASSES} classes"):
        names = tuple(path.read_text(encoding="utf-8").split())
        if len(set(names)) != CIFAR100_CLASSES or len(names) != CIFAR100_CLASSES:
            raise ValueError(f"{len(names)} names, {len(set(names))} of them different")
    return _cifar(folder, ("train.bin",), "test.bin", 2, names, config.image_size)


def _cifar_folder(root: Path, name: str, files: tuple[str, ...], archive: str) -> Path:
    folder = root / name
    missing = [file for file in files if not is_file(folder / file)]
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
    num_test = len(parts[-1])
    return Source(
        images=load_mapped(prepared / "images.npy"),
        labels=labels,
        class_names=class_names,
        fixed=fixed,
        files=tuple(folder / file for file in (*train, test)),
        remarks=_remarks(folder, (len(labels) - num_test, num_test), CIFAR_PUBLISHED),
    )


def _remarks(folder: Path, counts: tuple[int, ...], published: tuple[int, ...]) -> tuple[str, ...]:
    """Say where a set has other counts than the published one of its name."""
    if counts == published:
        return ()
    found, expected = ("/".join(map(str, numbers)) for numbers in (counts, published))
    return (f"{folder} is not the published set: {found} images, published {expected}",)


def _records(path: Path, label_bytes: int) -> Pixels:
    size = label_bytes + 3 * CIFAR_SIDE**2
    with reading(str(path), "a readable file"):
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


def flowers102(config: DataConfig) -> Source:
    """Read ``root/flowers-102`` with the authors' split, as torchvision lays it out (Nilsback and Zisserman, 2008).

    ``jpg/image_00001.jpg`` ..., ``imagelabels.mat`` (classes from 1) and ``setid.mat`` (numbers of the training,
    validation and test images). UserError for what is missing or unreadable, a number without label or image, and a
    label of no class.
    """
    from torchvision.datasets import Flowers102  # here, since it costs a second that other sets need not pay

    class_names: list[str] = Flowers102.classes
    folder = config.folder / "flowers-102"
    labels = _row(folder / "imagelabels.mat", "labels")
    parts = [_row(folder / "setid.mat", name) for name in ("trnid", "valid", "tstid")]
    numbers = np.concatenate(parts)
    _check_range(folder / "setid.mat", "image", numbers, len(labels))
    _check_range(folder / "imagelabels.mat", "label", labels, len(class_names))
    paths = [folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    for path in paths:
        require_file(path, FLOWERS_LAYOUT)
    return Source(
        images=load_mapped(prepared_files("flowers-102", folder, paths, config.image_size)),
        labels=labels[numbers - 1] - 1,
        class_names=tuple(class_names),
        fixed=np.repeat([TRAIN, VAL, TEST], [len(part) for part in parts]),
        files=(folder / "imagelabels.mat", folder / "setid.mat", *paths),
        remarks=_remarks(folder, tuple(len(part) for part in parts), FLOWERS_PUBLISHED),
    )


def _row(path: Path, name: str) -> Indices:
    """Return a row of whole numbers from a MATLAB file."""
    require_file(path, FLOWERS_LAYOUT)
    import scipy.io  # type: ignore[import-untyped]  # scipy has no types; late: few runs need it

    with reading(str(path), f"numbers {name!r}; {FLOWERS_LAYOUT}"):
        values = np.asarray(scipy.io.loadmat(path, variable_names=[name])[name]).ravel()
        with np.errstate(invalid="ignore"):  # what does not fit is told below
            numbers: Indices = values.astype(np.int64)
        if (numbers != values).any():
            raise ValueError(f"numbers {name!r} that are not whole")
        return numbers


def _check_range(path: Path, what: str, numbers: Indices, highest: int) -> None:
    strange = numbers[(numbers < 1) | (numbers > highest)]
    if len(strange):
        raise UserError(str(path), f"{what} {strange[0]}", f"numbers from 1 to {highest}")
