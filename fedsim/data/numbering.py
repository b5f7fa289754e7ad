"""What np.unique tells of numbers, without sorting them where they are small, as labels, patients and sites are.

N values, D distinct ones. For a million rows a sort takes as long as all the rest, and several times their memory.
"""

import numpy as np

from fedsim.data.dataset import Indices

#: Up to so many times N, numbers are counted rather than sorted.
SPREAD = 4


def places_among(values: Indices) -> Indices:
    """Return each value's place (N,) among the distinct ones in rising order."""
    if not _are_small(values):
        return np.unique(values, return_inverse=True)[1].reshape(-1)
    is_there = np.zeros(int(values.max()) + 1, np.bool_)
    is_there[values] = True
    places: Indices = (np.cumsum(is_there, dtype=np.int64) - 1)[values]
    return places


def counted(values: Indices) -> tuple[Indices, Indices]:
    """Return the distinct values (D,) in rising order, and how often each is there (D,)."""
    if not _are_small(values):
        return np.unique(values, return_counts=True)
    counts = np.bincount(values)
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]


def connected(patients: Indices | None, files: Indices | None) -> Indices | None:
    """Return what belongs together (N,): rows of one patient or of one file, and what both connect."""
    if patients is None or files is None:
        return patients if files is None else files
    from scipy.sparse import coo_array  # type: ignore[import-untyped]  # late: few runs need it; scipy has no types
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]  # as above

    num_files = int(files.max()) + 1
    pairs, _ = counted(patients * num_files + files)
    size = num_files + int(patients.max()) + 1
    ends = (pairs % num_files, num_files + pairs // num_files)
    links = coo_array((np.ones(len(pairs), np.bool_), ends), shape=(size, size))
    _, clusters = connected_components(links, directed=False)
    return np.asarray(clusters, np.int64)[files]


def _are_small(values: Indices) -> bool:
    return len(values) > 0 and bool(values.min() >= 0 and values.max() < SPREAD * len(values))
