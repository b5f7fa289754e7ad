"""Who has which images, in two arrays for any number of clients.

K clients, N images that clients have.
"""

from __future__ import annotations  # so that what reads files alone starts without torch

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np

from fedsim.data.dataset import Indices


class ClientImages(Sequence[Indices]):
    """Each client's images, which read like a list with an array for each.

    ``images`` int64 (N,): those of client k lie from ``starts[k]`` to ``starts[k + 1]``, int64 (K + 1,). With ``sizes``
    that is 8 bytes an image and 16 a client; an array of its own takes 112 more for each client.
    """

    def __init__(self, images: Indices, sizes: Indices) -> None:
        """``images``: client after client; ``sizes`` (K,): how many are whose."""
        self.images = images
        self.starts = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=self.starts[1:])
        assert self.starts[-1] == len(images), "every image is somebody's"

    @classmethod
    def of(cls, parts: Sequence[Indices]) -> ClientImages:
        """Return what a list with an array for each client says; what is no list already is returned as it is."""
        if isinstance(parts, ClientImages):
            return parts
        return cls(np.concatenate([np.zeros(0, np.int64), *parts]), np.array([len(part) for part in parts], np.int64))

    @classmethod
    def owned(cls, images: Indices, owners: Indices, count: int) -> ClientImages:
        """Give each of ``images`` (N,) to the one of ``count`` clients that ``owners`` (N,) says, in their order."""
        return cls(images[np.argsort(owners, kind="stable")], np.bincount(owners, minlength=count))

    @cached_property
    def sizes(self) -> array[int]:
        """The number of images of every client (K,). It gives Python's own numbers, at 8 bytes a client."""
        return array("q", np.diff(self.starts).tobytes())

    def owners(self) -> Indices:
        """Return whose each of ``images`` is, int64 (N,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def where(self, keep_K: np.ndarray) -> ClientImages:
        """Return the same without the images of the clients that are not kept, bool (K,)."""
        sizes = np.diff(self.starts)
        return ClientImages(self.images[np.repeat(keep_K, sizes)], np.where(keep_K, sizes, 0))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, client: int) -> Indices: ...
    @overload
    def __getitem__(self, client: slice) -> list[Indices]: ...
    def __getitem__(self, client: int | slice) -> Indices | list[Indices]:
        if isinstance(client, slice):
            return [self[number] for number in range(*client.indices(len(self)))]
        number = range(len(self))[client]  # also from behind, and an IndexError beyond
        own: Indices = self.images[self.starts[number] : self.starts[number + 1]]
        return own

    def __iter__(self) -> Iterator[Indices]:
        return (self[client] for client in range(len(self)))


def even(total: int, count: int) -> Indices:
    """Return the sizes (count,) of so many pieces of ``total``, which differ by one at most, larger ones first."""
    sizes = np.full(count, total // count, np.int64)
    sizes[: total % count] += 1
    return sizes
