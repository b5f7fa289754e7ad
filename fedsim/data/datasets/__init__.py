"""The sets by name."""

from collections.abc import Callable

import torch

from fedsim.config.data import DATA_NAMES, DataConfig
from fedsim.config.mistakes import nearest
from fedsim.data.dataset import Dataset, Source
from fedsim.data.datasets.camelyon import camelyon17, wilds_camelyon17
from fedsim.data.datasets.cells import cells
from fedsim.data.datasets.clients import dermoscopic_clients
from fedsim.data.datasets.folder import image_folder
from fedsim.data.datasets.glue import glue
from fedsim.data.datasets.med import medmnist_set
from fedsim.data.datasets.nuclei import nuclei
from fedsim.data.datasets.packaged import brain_mri, dermoscopy_pairs, digits
from fedsim.data.datasets.prostate import prostate
from fedsim.data.datasets.sentences import neutral_sentences, rated_sentences, sentence_ratings
from fedsim.data.datasets.text_files import repeated_texts, text_files
from fedsim.data.datasets.vision import cifar10, cifar100, flowers102
from fedsim.data.digests import describe_files
from fedsim.data.splits import drawn, split
from fedsim.errors import UserError

PACKAGED = {"brain_mri": brain_mri, "cells": cells, "dermoscopy_pairs": dermoscopy_pairs, "digits": digits}
PACKAGED_TEXTS = {
    "rated_sentences": rated_sentences,
    "sentence_ratings": sentence_ratings,
    "neutral_sentences": neutral_sentences,
}
IN_FOLDERS: dict[str, Callable[[str, int], Source]] = {
    "camelyon17": camelyon17,
    "image_folder": image_folder,
    "nuclei": nuclei,
    "prostate": prostate,
    "torchvision:cifar10": cifar10,
    "torchvision:cifar100": cifar100,
    "torchvision:flowers102": flowers102,
    "wilds_camelyon17": wilds_camelyon17,
}


def load_dataset(config: DataConfig) -> Dataset:
    """Load, resize and split the set that ``config`` names; UserError for all that is missing or unreadable.

    Safe to call from many processes at once: what has to be downloaded or decoded is done by one of them and
    kept in the cache folder, where the pixels are mapped into memory that processes of one machine share.
    """
    source = _read(config)
    if len(source.labels) == 0:
        raise UserError(f"data {config.root or config.name}", "an empty set", "images or texts")
    train, val, test = split(source, config)
    images = torch.from_numpy(source.images)
    repeats = repeated_texts(source.texts, train, {"val": val, "test": test}) if source.texts is not None else ()
    return Dataset(
        name=config.name,
        images=images.expand(-1, 3, -1, -1) if source.texts is None else images,
        labels=torch.from_numpy(source.labels),
        class_names=source.class_names,
        train=train,
        val=val,
        test=test,
        groups=source.groups,
        sites=source.sites,
        site_names=source.site_names,
        masks=None if source.masks is None else torch.from_numpy(source.masks),
        texts=source.texts,
        targets=None if source.targets is None else torch.from_numpy(source.targets),
        files=describe_files(source.files),
        remarks=source.remarks + repeats,
        drawn=drawn(source),
    )


def _read(config: DataConfig) -> Source:
    prefix, _, flag = config.name.partition(":")
    if config.name in PACKAGED:
        return PACKAGED[config.name](config.image_size)
    if config.name in PACKAGED_TEXTS:
        return PACKAGED_TEXTS[config.name]()
    if config.name == "text_files":
        assert config.root is not None, "DataConfig asks for the folder"
        assert config.columns is not None, "and for the columns"
        return text_files(config.root, config.columns)
    if prefix == "glue":
        return glue(flag, config.root)
    if config.name == "dermoscopic_clients":
        assert config.root is not None, "DataConfig asks for the folder"
        lesion_seed = config.split_seed if config.split == "by_lesion" else None
        return dermoscopic_clients(config.root, config.image_size, lesion_seed)
    if config.name in IN_FOLDERS:
        assert config.root is not None, "DataConfig asks for the folder"
        return IN_FOLDERS[config.name](config.root, config.image_size)
    if prefix == "medmnist":
        return medmnist_set(flag, config.root, config.image_size)
    raise UserError("data.name", repr(config.name), nearest(config.name, DATA_NAMES))
