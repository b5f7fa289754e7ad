"""Images and their targets on the device, and what of the model's work on them can be done once.

Images stay uint8. Where they are not augmented, the model's frozen prefix is computed at an image's first use and
kept, if the whole data set's prefixes fit the budget. Each client's images, and each evaluation batch, go through
the prefix on their own, so the kept values do not depend on which rank computes them.

Shapes: N images of the data set, K clients, B images per client and step.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Dataset
from fedsim.data.augment import NUM_DRAWS, augment, augment_masks
from fedsim.models.stacked import StackedModel
from fedsim.seeding import numpy_stream

PREFIX_BUDGET_BYTES = 4 * 2**30


class ImageSource:
    """Gives the model's inputs for images named by their index in the data set.

    ``targets``: what the task asks of each image: the masks (N, H, W), or the set's own targets, (N,) or (N, F), where
    it has them, else the labels (N,).
    """

    def __init__(self, dataset: Dataset, model: StackedModel, augmentations: Sequence[str]) -> None:
        self.images = dataset.images.to(model.device)
        self._pictures = None if dataset.pictures is None else torch.from_numpy(dataset.pictures).to(model.device)
        asked = [each for each in (dataset.masks, dataset.targets) if each is not None]
        self.targets = (asked or [dataset.labels])[0].to(model.device)
        self._has_masks = dataset.masks is not None
        self.augmentations = tuple(augmentations)
        self._model = model
        sample = model.prefix(self._inputs(torch.zeros(1, dtype=torch.int64)))[0]
        self.num_elements = sample.numel()
        count = len(dataset.labels)
        fits = sample.nbytes * count <= PREFIX_BUDGET_BYTES
        # Token ids come out as they went in, which need not be kept.
        pays = model.has_frozen_prefix and fits and sample.is_floating_point()
        self._prefixes = sample.new_empty((count, *sample.shape)) if pays else None
        self._known = np.zeros(count, dtype=bool)

    @property
    def num_bytes(self) -> int:
        """Bytes of the images, their targets and their prefixes on the device."""
        kept = (self.images, self.targets, self._prefixes)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept if tensor is not None)

    def training_batch(self, places_KB: Tensor, draws_KBU: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the prefixes (K, B, ...) and targets (K, B, ...) of the images at ``places_KB``.

        ``draws_KBU`` from ``draw``: masks are moved together with their images.
        """
        if draws_KBU is None:
            return self.plain_batch(places_KB), self.targets[places_KB]
        flat, draws = places_KB.flatten(), draws_KBU.flatten(0, 1)
        fixed = self._model.prefix(self._augmented(self._inputs(flat), draws))
        targets = self.targets[flat]
        if self._has_masks:
            targets = augment_masks(targets, self.augmentations, draws)
        return fixed.reshape(*places_KB.shape, *fixed.shape[1:]), targets.reshape(*places_KB.shape, *targets.shape[1:])

    def _augmented(self, inputs: Tensor, draws_NU: Tensor) -> Tensor:
        """Return images augmented; all slices of a volume (N, S, 3, H, W) in the same way."""
        if inputs.dim() == 4:
            return augment(inputs, self.augmentations, draws_NU)
        draws = draws_NU.repeat_interleave(inputs.shape[1], 0)
        slices: Tensor = augment(inputs.flatten(0, 1), self.augmentations, draws).unflatten(0, inputs.shape[:2])
        return slices

    def prepare(self, clients_images: Sequence[np.ndarray]) -> None:
        """Compute the prefixes that the clients' training will ask for, client by client."""
        if not self.augmentations:
            self.fill(clients_images)

    def fill(self, groups: Sequence[np.ndarray]) -> None:
        """Compute the prefixes of groups of images, each group on its own, where they can be kept."""
        for places in groups:
            self._fill(places)

    def plain_batch(self, places_KB: Tensor) -> Tensor:
        """Return the prefixes (K, B, ...), without augmentation, of images that ``fill`` has seen."""
        flat = places_KB.to(self.images.device).flatten()
        fixed = self._model.prefix(self._inputs(flat)) if self._prefixes is None else self._prefixes[flat]
        return fixed.reshape(*places_KB.shape, *fixed.shape[1:])

    def evaluation_batch(self, places: np.ndarray) -> Tensor:
        """Return the prefixes (1, B, ...) of one evaluation batch, never augmented."""
        self._fill(places)
        return self.plain_batch(torch.from_numpy(places)[None])

    def draw(self, clients: Sequence[int], places: np.ndarray, seed: int, round: int, phase: str) -> Tensor | None:
        """Return uniform numbers (K, S, B, U) for ``places`` bool (K, S, B), each client's from its own stream.

        Zeros where a place is false, for which nothing is drawn; None where nothing is augmented.
        """
        if not self.augmentations or not clients:
            return None
        rows = np.zeros((*places.shape, NUM_DRAWS), dtype=np.float32)
        for row, own, client in zip(rows, places, clients, strict=True):
            stream = numpy_stream(seed, f"augment/{phase}", round=round, client=client)
            row[own] = stream.random((int(own.sum()), NUM_DRAWS), dtype=np.float32)
        return torch.from_numpy(rows).to(self.images.device)

    def _fill(self, places: np.ndarray) -> None:
        if self._prefixes is None or self._known[places].all():
            return
        index = torch.from_numpy(places).to(self.images.device)
        for part in index.split(256):
            self._prefixes[part] = self._model.prefix(self._inputs(part))
        self._known[places] = True

    def _inputs(self, places: Tensor) -> Tensor:
        """Return the pixels of images, (N, 3, H, W) in 0..1, or of volumes, (N, S, 3, H, W)."""
        pictures = places if self._pictures is None else self._pictures[places]
        return self.images[pictures].float() / 255
