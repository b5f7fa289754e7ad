"""NIfTI volumes in space: however image and mask are stored, slices are axial and the mask lies on its image."""

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel import orientations as turning

from fedsim.data import Dataset
from fedsim.errors import UserError
from tests.helpers import load_set

pytestmark = pytest.mark.usefixtures("cache")
SHAPE, SPACING = (12, 10, 8), (0.5, 0.75, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = -20, 7, 100
ALL_CODES = [
    "".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]
REAL_SPLITS = next(
    (found for base in Path(__file__).parents if (found := base / "shared/realdata/harmofl_splits").is_dir()), None
)
NUM_CASES = 6


def patient(case: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose values tell case and place, and a mask far from all middles."""
    image = 1000 + 10 * case + np.arange(np.prod(SHAPE)).reshape(SHAPE)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 6:9, 1:6] = 1
    return image.astype(np.int16), mask


def stored(voxels: np.ndarray, codes: str, affine: np.ndarray = AFFINE) -> Any:
    """The volume whose axes run to the right, front and top, with axes in the file that run as ``codes`` say."""
    turn = turning.ornt_transform(turning.axcodes2ornt("RAS"), turning.axcodes2ornt(codes))
    turned = turning.apply_orientation(voxels, turn)
    return nibabel.Nifti1Image(turned, affine @ turning.inv_ornt_aff(turn, voxels.shape))


def write_site(site: Path, image_codes: str = "RAS", mask_codes: str = "RAS") -> Path:
    site.mkdir(parents=True)
    for case in range(NUM_CASES):
        image, mask = patient(case)
        nibabel.save(stored(image, image_codes), site / f"Case{case:02}.nii.gz")
        nibabel.save(stored(mask, mask_codes), site / f"Case{case:02}_segmentation.nii.gz")
    return site.parent


def load(root: Path, **changes: Any) -> Dataset:
    return load_set("prostate", root=str(root), image_size=20, **changes)  # type: ignore[no-any-return]  # helpers say Any


def same(first: Dataset, second: Dataset) -> bool:
    assert first.masks is not None
    assert second.masks is not None
    images = np.array_equal(first.images.numpy(), second.images.numpy())
    return images and np.array_equal(first.masks.numpy(), second.masks.numpy())


@pytest.fixture
def plain(tmp_path: Path) -> Dataset:
    data = load(write_site(tmp_path / "plain" / "A"))
    assert len(data.images) == NUM_CASES * 5
    return data


def test_every_way_to_store_a_volume_gives_the_same_slices(tmp_path: Path, plain: Dataset) -> None:
    assert len(ALL_CODES) == 48
    for codes, other in zip(ALL_CODES, reversed(ALL_CODES), strict=True):
        assert same(load(write_site(tmp_path / codes / "A", codes, other)), plain), (codes, other)


def test_oblique_volumes_are_sliced_along_the_nearest_axes(tmp_path: Path, plain: Dataset) -> None:
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    (tmp_path / "set/A").mkdir(parents=True)
    for case in range(NUM_CASES):
        for voxels, codes, name in zip(patient(case), ("SAL", "PRI"), ("", "_segmentation"), strict=True):
            nibabel.save(stored(voxels, codes, tilt @ AFFINE), tmp_path / "set/A" / f"Case{case:02}{name}.nii.gz")
    assert same(load(tmp_path / "set"), plain)


@pytest.mark.parametrize("codes", ["LPS", "RAI", "LAS"])
def test_with_split_files_slices_are_those_of_the_file(tmp_path: Path, codes: str) -> None:
    """As released: the split files count slices as stored, and the release knows no affine."""
    root = write_site(tmp_path / "set" / "A", codes, "RAS")
    np.save(root / "A-dir.npy", np.array([f"Case{case:02}_segmentation.nii.gz" for case in range(NUM_CASES)]))
    np.save(root / "A-index.npy", np.arange(NUM_CASES * 5))
    data = load(root)
    assert data.masks is not None
    image, mask = (np.asarray(stored(voxels, codes).dataobj) for voxels in patient(0))
    slices = [z for z in range(1, 7) if mask[:, :, z].any()]
    high = np.quantile(image, 0.99)
    grey = ((np.minimum(image, high) - image.min()) / (high - image.min()) * 255).astype(np.uint8)
    for number, z in enumerate(slices):
        # 20 pixels a side: every column and row of these is at the place of a voxel's middle or beside it.
        found = data.images[number, :, 9, 9].numpy().astype(int)
        assert np.abs(found - grey[5, 4, z - 1 : z + 2]).max() <= 6
        rows, columns = np.nonzero(data.masks[number].numpy())
        x, y = np.nonzero(mask[:, :, z])
        assert abs(columns.mean() / 20 - (x.mean() + 0.5) / 12) < 0.06
        assert abs(rows.mean() / 20 - (y.mean() + 0.5) / 10) < 0.06


@pytest.mark.skipif(REAL_SPLITS is None, reason="the shared folder with HarmoFL's split files is not here")
def test_harmofls_own_split_files_divide_stand_in_volumes_as_released(tmp_path: Path) -> None:
    """BIDMC: 261 slices, 167 for training, 41 for validation, 53 for the test, with volumes as ITK writes them."""
    assert REAL_SPLITS is not None
    listed, order = (np.load(REAL_SPLITS / f"BIDMC-{kind}.npy", allow_pickle=False) for kind in ("dir", "index"))
    masks = [name for name in listed.tolist() if "segmentation" in name.lower()]
    (tmp_path / "set/BIDMC").mkdir(parents=True)
    counts = [len(order) // len(masks) + (number < len(order) % len(masks)) for number in range(len(masks))]
    expected = []
    for number, (name, count) in enumerate(zip(masks, counts, strict=True)):
        voxels = np.zeros((9, 9, count + 2), np.int16)
        voxels[:] = np.arange(count + 2)
        voxels[0, 0] = 20 * number + 60
        for suffix, content in (("", voxels), ("_segmentation", np.ones_like(voxels, np.uint8))):
            path = (
                tmp_path / "set/BIDMC" / (name if suffix else name[: name.lower().index("_segmentation")] + ".nii.gz")
            )
            nibabel.save(nibabel.Nifti1Image(content, np.diag([-1, -1, 3, 1])), path)
        expected += [int(z / (20 * number + 60) * 255) for z in range(1, count + 1)]
    for kind in ("dir", "index"):
        (tmp_path / "set" / f"BIDMC-{kind}.npy").write_bytes((REAL_SPLITS / f"BIDMC-{kind}.npy").read_bytes())
    data = load(tmp_path / "set")
    assert [len(part) for part in (data.train, data.val, data.test)] == [167, 41, 53]
    for part, own in zip((data.train, data.val, data.test), np.split(order, [167, 208]), strict=True):
        np.testing.assert_array_equal(part, np.sort(own))
    assert data.images[:, 1, 12, 12].tolist() == expected


# --- masks that do not lie on their image, and files that are no volume

IMAGE, MASK = "A/Case01.nii.gz", "A/Case01_segmentation.nii.gz"


def rewrite(path: str, change: Any) -> Any:
    """Write the voxels and affine that ``change`` makes of those in a file."""

    def spoil(root: Path) -> None:
        image: Any = nibabel.load(root / path)
        voxels, affine = change(np.asarray(image.dataobj), image.affine.copy())
        nibabel.save(nibabel.Nifti1Image(voxels, affine), root / path)

    return spoil


def moved(voxels: np.ndarray, affine: np.ndarray) -> Any:
    affine[:3, 3] += 20
    return voxels, affine


def rounded(voxels: np.ndarray, affine: np.ndarray) -> Any:
    affine[:3, :3] += 1e-4
    return voxels, affine


def scaled_in_its_header(root: Path) -> None:
    """A mask of 0 and 255 whose header scales by 1/255, which float32 does not hold exactly."""
    mask = nibabel.Nifti1Image(patient(1)[1] * 255, AFFINE)
    mask.header.set_slope_inter(1 / 255, 0)
    nibabel.save(mask, root / MASK)


@pytest.mark.parametrize(
    "change",
    [
        rewrite(MASK, moved),
        rewrite(MASK, rounded),
        rewrite(IMAGE, lambda v, a: (v[..., None], a)),
        rewrite(MASK, lambda v, a: (v[..., None, None], a)),
        rewrite(MASK, lambda v, a: (v.astype(np.float32) * 2, a)),
        scaled_in_its_header,
    ],
)
def test_what_does_not_matter_is_accepted(tmp_path: Path, plain: Dataset, change: Any) -> None:
    root = write_site(tmp_path / "set" / "A")
    change(root)
    assert same(load(root), plain)


def without_orientation(*paths: str) -> Any:
    def change(root: Path) -> None:
        for path in paths:
            image = nibabel.Nifti1Image(np.asarray(nibabel.load(root / path).dataobj), None)
            image.header.set_zooms(SPACING)
            nibabel.save(image, root / path)

    return change


def test_a_pair_that_tells_no_orientation_is_read_as_stored(tmp_path: Path, plain: Dataset) -> None:
    root = write_site(tmp_path / "set" / "A")
    without_orientation(IMAGE, MASK)(root)
    assert same(load(root), plain)


def with_bytes(path: str, at: int, content: bytes) -> Any:
    """Change bytes of the unpacked file."""

    def change(root: Path) -> None:
        found = bytearray(gzip.decompress((root / path).read_bytes()))
        found[at : at + len(content)] = content
        (root / path).write_bytes(gzip.compress(bytes(found)))

    return change


def with_other_checksum(root: Path) -> None:
    content = bytearray((root / IMAGE).read_bytes())
    content[-8] ^= 1
    (root / IMAGE).write_bytes(content)


def dims(*sizes: int) -> bytes:
    return np.array([len(sizes), *sizes], "<i2").tobytes()


def rgb(voxels: np.ndarray, affine: np.ndarray) -> Any:
    colours = np.zeros(voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return colours, affine


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            rewrite(MASK, lambda v, a: (v, a @ np.diag([2, 1, 1, 1]))),
            r"segmentation.nii.gz: found voxels of 1 x 0.75 x 3 mm, which .* up to 11 voxels beside those of the "
            r"image; expected the spacing and axes of Case01.nii.gz: 0.5 x 0.75 x 3 mm",
        ),
        (
            rewrite(MASK, lambda v, a: (v, np.diag([1, 1, np.cos(0.3), 1]) @ a + np.eye(4)[[2, 1, 0, 3]] * 0.3)),
            r"segmentation.nii.gz: found voxels of .* mm, which the affine puts up to",
        ),
        (
            without_orientation(MASK),
            r"Case01_seg.*gz: found no orientation in its header; expected one, as Case01.nii.gz",
        ),
        (without_orientation(IMAGE), r"Case01.nii.gz: found no orientation in its header; expected one, as Case01_seg"),
        (
            rewrite(MASK, lambda v, a: (v.astype(np.float32) * 0.4, a)),
            r"segmentation.nii.gz: found 45 voxels such as 0.4; expected whole numbers, 0 for the background",
        ),
        (rewrite(MASK, lambda v, a: (-v.astype(np.int16), a)), r"segmentation.nii.gz: found 45 voxels such as -1"),
        (
            rewrite(IMAGE, lambda v, a: (v.astype(np.complex64), a)),
            r"Case01.nii.gz: found voxels of type complex64; expected one real number for each voxel",
        ),
        (rewrite(IMAGE, rgb), r"Case01.nii.gz: found voxels of type .*; expected one real number for each voxel"),
        (
            rewrite(IMAGE, lambda v, a: (np.stack([v, v], 3), a)),
            r"Case01.nii.gz: found voxels \(12, 10, 8, 2\); expected three axes",
        ),
        (with_other_checksum, r"Case01.nii.gz: found an unreadable volume \(CRC check failed"),
        (
            with_bytes(IMAGE, 40, dims(32767, 32767, 32767)),
            r"Case01.nii.gz: found 2272 bytes for voxels \(32767, 32767, 32767\) of int16; expected a whole NIfTI file",
        ),
        (with_bytes(IMAGE, 40, dims(*[32767] * 7)), r"Case01.nii.gz: found voxels \(32767, .*; expected three axes"),
        (with_bytes(IMAGE, 40, dims(0, 10, 8)), r"Case01.nii.gz: found voxels \(0, 10, 8\); expected three axes"),
        # A process that takes denormal numbers for 0, as some libraries set it up, reads on to the axes.
        (with_bytes(IMAGE, 40, b"\x63\x00"), r"Case01.nii.gz: found (an unreadable volume|voxels \(3072, 2560,)"),
        (with_bytes(IMAGE, 254, b"\x63\x0b"), r"Case01.nii.gz: found no orientation in its header; expected one, as"),
        (with_bytes(IMAGE, 280, np.zeros(12, "<f4").tobytes()), r"Case01.nii.gz: found an affine that does not tell"),
        (with_bytes(IMAGE, 280, np.full(12, np.nan, "<f4").tobytes()), r"Case01.nii.gz: found an affine that does not"),
        (
            lambda root: (root / "A/Case01_Segmentation.nii.gz").write_bytes((root / MASK).read_bytes()),
            r"Case01_Segmentation.nii.gz: found another mask or volume of that name beside it",
        ),
    ],
)
def test_what_is_no_mask_of_its_image_is_one_line(
    tmp_path: Path, spoil: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_site(tmp_path / "set" / "A")
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
