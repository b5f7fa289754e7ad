"""A labelled set of images or texts, ready for training, and the same before it is split.

Shapes: N images, volumes or texts, F findings, S slices of a volume, C channels, H and W pixels
(H = W = ``data.image_size``).
"""

from __future__ import annotations  # so that what reads files alone starts without torch

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
#: One string for each row, or two where a row is a pair of sentences.
Texts = tuple[tuple[str, ...], ...]
#: What the label of an image without any finding means.
NO_FINDING = "no finding"


@dataclass(frozen=True)
class Dataset:
    """Images or texts with labels, their split, and what is known about where they come from.

    ``images`` (N, 3, H, W) uint8; ``labels`` (N,) int64, indices into ``class_names``. ``train``, ``val`` and
    ``test`` are sorted, disjoint indices into ``images``; with ``data.max_train`` some images are in none.
    ``groups`` (N,) marks images that belong together (one patient, near-duplicates): no group is in two
    splits, unless the set's own split has it so, nor at two drawn clients, unless it is ``divisible``, as what only
    looks alike is. ``sites`` (N,) are indices into ``site_names``: natural clients; nobody trains on those among
    ``external_sites``. ``owners`` (N,) are indices into ``owner_names``: the clients that a column of a table names.
    Grey images share one channel in memory, so ``images`` may not be written to. Volumes are ``images``
    (N, S, 3, H, W). Where a table names files several times, ``images`` has each once, and ``pictures`` (N,) says
    which is whose; None: each has its own. ``file_names``: what the files of ``images`` are called, where it is known.

    A segmentation set has ``masks`` (N, H, W) uint8, the class of every pixel as an index into ``class_names``, of
    which 0 is the background; a label is then the foreground class with most pixels, or 0 where there is none.

    ``drawn`` names the splits that the set does not bring, which were drawn from its training images.

    A set of ``texts`` (N) has ``images`` (N, 0). With ``targets`` (N,) float32 the task is to tell those numbers;
    ``labels`` are then all 0, for the one quantity that ``class_names`` holds.

    With ``targets`` (N, F) float32 an image may have several of the F findings that ``class_names`` holds: 1 has it, 0
    has it not, -1 is not known. A label is then the rarest finding that the image has, or F where it has none.

    ``is_graded``: the classes are grades, from the lowest up.

    ``files`` is what ``digests.describe_files`` says of the files that the set was read from, None where it is
    packaged. ``arrays`` is what ``digests.describe_arrays`` says of a set named by its import path, None for others.
    ``remarks`` are lines for the person who starts a run.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    train: Indices
    val: Indices
    test: Indices
    groups: Indices | None
    sites: Indices | None
    site_names: tuple[str, ...]
    masks: Tensor | None = None
    texts: Texts | None = None
    targets: Tensor | None = None
    files: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    arrays: Mapping[str, Any] | None = None
    is_graded: bool = False
    divisible: bool = False
    external_sites: tuple[int, ...] = ()
    owners: Indices | None = None
    owner_names: tuple[str, ...] = ()
    pictures: Indices | None = None
    file_names: tuple[str, ...] = ()

    def pictures_of(self, places: Indices) -> Indices:
        """Return which of ``images`` the images at ``places`` are."""
        return places if self.pictures is None else self.pictures[places]

    @property
    def has_findings(self) -> bool:
        """Whether an image may have several findings at once."""
        return self.targets is not None and self.targets.dim() == 2

    @property
    def label_names(self) -> tuple[str, ...]:
        """What each value of ``labels`` means."""
        return (*self.class_names, NO_FINDING) if self.has_findings else self.class_names

    @property
    def training_sites(self) -> tuple[int, ...]:
        """The sites that are trained on."""
        return tuple(site for site in range(len(self.site_names)) if site not in self.external_sites)

    @property
    def unit(self) -> str:
        """What the set is made of: images, volumes or texts."""
        if self.texts is not None:
            return "texts"
        return "images" if self.num_slices is None else "volumes"

    @property
    def num_slices(self) -> int | None:
        """Slices of each volume; None where there are images or texts."""
        return self.images.shape[1] if self.images.dim() == 5 else None


@dataclass(frozen=True)
class Source:
    """What the reader of one set returns: ``images`` (N, C, H, W) uint8 with C 1 or 3, and its own split if any.

    ``labels`` (N,) int64; ``groups``, ``divisible``, ``sites``, ``owners``, ``pictures`` and ``file_names`` as in
    ``Dataset``. A set of texts has ``images`` (N, 0), one of volumes (N, S, C, H, W).

    ``fixed`` (N,) holds ``splits.TRAIN``, ``VAL`` or ``TEST``; a split that does not occur is drawn from
    TRAIN. ``strata`` (N,), small whole numbers, say what a drawn split and ``data.max_train`` keep in proportion
    where it is not the labels. ``masks`` (N, H, W) as in ``Dataset``, at the size of ``images``; ``texts``,
    ``targets`` (N,) or (N, F), ``is_graded`` and ``remarks`` as there. ``files``: those that were read, none for a
    packaged set.
    """

    images: Pixels
    labels: Indices
    class_names: tuple[str, ...]
    groups: Indices | None = None
    sites: Indices | None = None
    site_names: tuple[str, ...] = ()
    fixed: Indices | None = None
    strata: Indices | None = None
    masks: Pixels | None = None
    texts: Texts | None = None
    targets: npt.NDArray[np.float32] | None = None
    files: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    is_graded: bool = False
    divisible: bool = False
    owners: Indices | None = None
    owner_names: tuple[str, ...] = ()
    pictures: Indices | None = None
    file_names: tuple[str, ...] = ()
