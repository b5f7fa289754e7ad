"""The sets by name."""

from fedsim.catalogue.data import DATA, OWN_DATA, data_row
from fedsim.catalogue.functions import function_of, is_import_path
from fedsim.config.data import DataConfig
from fedsim.config.mistakes import nearest
from fedsim.data.dataset import Dataset, Source
from fedsim.data.datasets.text_files import repeated_texts
from fedsim.data.digests import describe_arrays, describe_files
from fedsim.data.own import read_own
from fedsim.data.splits import drawn, split, with_external_sites
from fedsim.errors import UserError


def load_dataset(config: DataConfig, *, is_outside: bool = False) -> Dataset:
    """Load, resize and split the set that ``config`` names; UserError for all that is missing or unreadable.

    One from outside is only measured on: it needs no images to train and none to validate on.

    Safe to call from many processes at once: what has to be downloaded or decoded is done by one of them and
    kept in the cache folder, where the pixels are mapped into memory that processes of one machine share.
    """
    import torch  # here, so that what reads files alone starts without it

    source = _read(config)
    if len(source.labels) == 0:
        raise UserError(f"data {config.root or config.name}", "an empty set", "images or texts")
    arrays = describe_arrays(source) if is_import_path(config.name) else None
    source, external_sites = with_external_sites(source, config.external_sites)
    train, val, test = split(source, config, external_sites, may_be_empty=is_outside)
    images = torch.from_numpy(source.images)
    repeats = repeated_texts(source.texts, train, {"val": val, "test": test}) if source.texts is not None else ()
    return Dataset(
        name=config.name,
        images=images.expand(*images.shape[:-3], 3, -1, -1) if source.texts is None else images,
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
        is_graded=source.is_graded,
        arrays=arrays,
        divisible=source.divisible,
        external_sites=external_sites,
        owners=source.owners,
        owner_names=source.owner_names,
        pictures=source.pictures,
        file_names=source.file_names,
    )


def _read(config: DataConfig) -> Source:
    row = data_row(config.name)
    if row is None:
        raise UserError("data.name", repr(config.name), nearest(config.name, DATA))
    source: Source = read_own(config) if row is OWN_DATA else function_of(row.reader)(config)
    return source
