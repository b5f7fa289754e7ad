"""Dividing whole groups, such as patients, among drawn clients: each goes to one of them.

K clients, G groups of training images, N training images, C classes. A partition is drawn over one image of each
group, whose class is the one that most of its images have; then every image follows its group. So what a partition says
of images holds for groups: ``iid`` deals out equal numbers of patients, not of images.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsim.data.client_images import ClientImages
from fedsim.data.dataset import Dataset
from fedsim.data.numbering import places_among
from fedsim.data.splits import majority


def has_whole_groups(dataset: Dataset) -> bool:
    """Whether there are groups that no two clients may share."""
    return dataset.groups is not None and not dataset.divisible


def by_whole_groups(dataset: Dataset, draw: Callable[[Dataset], ClientImages], by_site: bool) -> ClientImages:
    """Return the partition that ``draw`` makes of a set with one training image for each group, with all images.

    ``by_site``: a group's images at two sites are two groups, since sites are clients of their own.
    """
    import torch  # late: what reads files alone starts without

    assert dataset.groups is not None, "has_whole_groups says so"
    train, groups = dataset.train, dataset.groups[dataset.train]
    if by_site and dataset.sites is not None:
        groups = dataset.sites[train] * len(groups) + places_among(groups)
    _, firsts, group_N = np.unique(groups, return_index=True, return_inverse=True)
    heads_G = train[firsts]
    labels = dataset.labels.clone()
    labels[torch.from_numpy(heads_G)] = torch.from_numpy(majority(labels.numpy()[train], group_N))
    parts = draw(replace(dataset, train=np.sort(heads_G), labels=labels))

    # Every image takes the place of its group among all that were dealt out, which follow one another by client.
    place = np.empty(len(dataset.labels), np.int64)
    place[parts.images] = np.arange(len(parts.images))
    places_N = place[heads_G][group_N]
    sizes_K = np.bincount(parts.owners()[places_N], minlength=len(parts))
    return ClientImages(train[np.argsort(places_N, kind="stable")], sizes_K)
