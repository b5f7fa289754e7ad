"""Training, validation and test images: whole groups only, each class or site in its proportion."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedsim.config.data import DataConfig, FractionsConfig
from fedsim.config.mistakes import nearest
from fedsim.data.dataset import Indices, Source
from fedsim.data.numbering import counted, places_among
from fedsim.errors import UserError
from fedsim.seeding import numpy_stream

TRAIN, VAL, TEST, UNUSED = 0, 1, 2, 3
NAMES = ("train", "val", "test")
#: What people call the splits, in lower case.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}


def split(
    source: Source, config: DataConfig, external_sites: Sequence[int] = (), may_be_empty: bool = False
) -> tuple[Indices, Indices, Indices]:
    """Return sorted indices of the training, validation and test images.

    Splits that the set does not bring are drawn from its training images by ``split_seed``: groups in random
    order, class by class (or by the set's own strata), until the fraction is reached, so a split may miss its size
    by half a group. A group counts for the class most of its images have. UserError where a split stays empty, unless
    it may.
    """
    strata = source.labels if source.strata is None else source.strata
    splits = np.zeros(len(source.labels), np.int64) if source.fixed is None else source.fixed.copy()
    pool = np.flatnonzero(splits == TRAIN)
    groups = pool if source.groups is None else source.groups[pool]
    positions = stratified_positions(strata[pool], groups, numpy_stream(config.split_seed, "data.split"))
    lower = 0.0
    _check_used(config, splits)
    for code, fraction in ((TEST, config.fractions.test), (VAL, config.fractions.val)):
        if not (splits == code).any():
            splits[pool[(positions >= lower) & (positions < lower + fraction)]] = code
            lower += fraction
    train = np.flatnonzero(splits == TRAIN)
    if config.truncate_to_smallest:
        train = _truncated(train, source, config, external_sites)
    train = _at_most(config.max_train, train, strata, source.groups, config.split_seed)
    found = (train, np.flatnonzero(splits == VAL), np.flatnonzero(splits == TEST))
    for name, indices in zip(NAMES, found, strict=True):
        if len(indices) == 0 and not may_be_empty:
            raise _empty(name, source, groups, strata[pool])
    return found


def with_external_sites(source: Source, names: Sequence[str]) -> tuple[Source, tuple[int, ...]]:
    """Return a set whose test is all images of the sites ``names``, and those sites' numbers.

    Of the other sites nothing is tested: images that they bring for the test are in no split, nor are those of groups
    that have some at the sites ``names``. Their validation images are those that they bring, or are drawn. UserError
    for a site that the set does not have, and where no other is.
    """
    if not names:
        return source, ()
    known = source.site_names
    for name in names:
        if name not in known:
            expected = nearest(name, known) if known else "a data set with natural sites"
            raise UserError("data.external_sites", repr(name), expected)
    if len(names) == len(known):
        raise UserError("data.external_sites", f"all {len(known)} sites", "a site that is trained on")
    assert source.sites is not None, "where there are names there are sites"
    numbers = tuple(sorted(known.index(name) for name in names))
    is_test = np.isin(source.sites, numbers)
    fixed = np.zeros(len(is_test), np.int64) if source.fixed is None else source.fixed.copy()
    num_unused = np.count_nonzero(fixed[~is_test] == TEST)
    fixed[fixed == TEST] = UNUSED
    fixed[is_test] = TEST
    num_shared = 0
    if source.groups is not None:
        is_shared = np.isin(source.groups, source.groups[is_test]) & (fixed != TEST) & (fixed != UNUSED)
        num_shared, fixed[is_shared] = int(np.count_nonzero(is_shared)), UNUSED
    remark = f"the test is site {', '.join(names)}, where nobody trains"
    if num_unused:
        remark += f"; {num_unused} test images of the other sites are in no split"
    if num_shared:
        remark += f"; {num_shared} images of the other sites are in no split, since the test has some of their groups"
    return replace(source, fixed=fixed, remarks=(*source.remarks, remark)), numbers


def _check_used(config: DataConfig, splits: Indices) -> None:
    """UserError for words about drawing a split where the set brings it."""
    brought = [name for code, name in ((VAL, "val"), (TEST, "test")) if (splits == code).any()]
    unused = "no such key: nothing would use it"
    for name in brought:
        fraction = getattr(config.fractions, name)
        if fraction != getattr(FractionsConfig(), name):
            found = f"{fraction:g} with {config.name}, which brings its {name} images"
            raise UserError(f"data.fractions.{name}", found, unused)
    draws = (
        len(brought) < 2 or config.split == "by_lesion" or config.max_train is not None or config.truncate_to_smallest
    )
    if config.split_seed != 0 and not draws:
        raise UserError("data.split_seed", f"{config.split_seed} with {config.name}, which brings its split", unused)


def _empty(name: str, source: Source, groups: Indices, strata: Indices) -> UserError:
    """Return what to tell where no image is left for a split: with few whole groups, that they are few."""
    found = f"no image left for {name} out of {len(source.labels)}"
    expected = f"an image in each of {', '.join(NAMES)}"
    if source.groups is not None and name != "train":
        most = int(np.bincount(np.unique(np.stack([strata, groups]), axis=1)[0]).max())
        found += f", since groups stay whole and no class or site has more than {most} of them"
        expected += f": fractions such as {1 / most:.2g}, one group" if most > 2 else ": three groups in one, or more"
    return UserError("data.fractions, data.max_train", found, expected)


def drawn(source: Source) -> tuple[str, ...]:
    """Return the names of the splits that the set does not bring, which ``split`` draws from training."""
    return tuple(NAMES[code] for code in (VAL, TEST) if source.fixed is None or not (source.fixed == code).any())


def training_by_site(
    train: Indices, sites: Indices, site_names: Sequence[str], name: str, external_sites: Sequence[int] = ()
) -> dict[str, Indices]:
    """Return each site's training images, without the sites ``external_sites``.

    UserError for a site of the set ``name`` that has none.
    """
    own = {
        site: train[sites[train] == number] for number, site in enumerate(site_names) if number not in external_sites
    }
    for site, members in own.items():
        if len(members) == 0:
            expected = "at least one at every site; data.external_sites names those that are only tested on"
            raise UserError(f"data {name}, site {site}", "no training image", expected)
    return own


def _truncated(train: Indices, source: Source, config: DataConfig, external_sites: Sequence[int]) -> Indices:
    """Keep of every site as many training images as the smallest has, chosen by ``split_seed``."""
    if source.sites is None:
        raise UserError("data.truncate_to_smallest", f"true with {config.name}", "a data set with natural sites")
    own = training_by_site(train, source.sites, source.site_names, config.name, external_sites).values()
    smallest, stream = min(map(len, own)), numpy_stream(config.split_seed, "data.truncate_to_smallest")
    return np.sort(np.concatenate([stream.permutation(members)[:smallest] for members in own]))


def _at_most(limit: int | None, train: Indices, strata: Indices, groups: Indices | None, seed: int) -> Indices:
    """Keep whole groups, strata in proportion, up to ``limit`` images; the smallest stratum too, where that fits."""
    if limit is None or len(train) <= limit:
        return train
    groups = train if groups is None else groups[train]
    positions = stratified_positions(strata[train], groups, numpy_stream(seed, "data.max_train"))
    order = np.lexsort((groups, positions))
    _, firsts = np.unique(strata[train][order], return_index=True)
    follows = ~np.isin(groups, groups[order][firsts])  # the first group of every stratum goes ahead of the others
    order = np.lexsort((groups, positions, follows))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    ends = starts + sizes
    return np.sort(train[order[: max(ends[ends <= limit], default=0)]])


def at_most(limit: int | None, places: Indices, labels: Indices, seed: int, purpose: str) -> Indices:
    """Return ``limit`` of the ``places``, drawn for a purpose, classes in proportion; all where there are no more.

    ``labels``: of all images.
    """
    if limit is None or len(places) <= limit:
        return places
    positions = stratified_positions(labels[places], places, numpy_stream(seed, purpose))
    return np.sort(places[np.argsort(positions, kind="stable")[:limit]])


def stratified_positions(labels: Indices, groups: Indices, stream: np.random.Generator) -> npt.NDArray[np.float64]:
    """Place every image between 0 and 1 so that any interval holds its share of each class, by whole groups.

    ``labels`` and ``groups`` are (N,); so is the result, which is the same for all images of a group: the
    middle of the stretch that the group takes when its class is lined up in random order.
    """
    group = places_among(groups)
    classes, sizes = majority(labels, group), np.bincount(group)
    order = stream.permutation(len(sizes))
    members = order[np.argsort(classes[order], kind="stable")]  # class after class, each in random order
    totals = np.bincount(classes, weights=sizes)
    before, of_class = totals.cumsum() - totals, classes[members]
    ends = sizes[members].cumsum() - before[of_class]
    positions = np.empty(len(sizes))
    positions[members] = (ends - sizes[members] / 2) / totals[of_class]
    return positions[group]


def majority(labels: Indices, groups: Indices) -> Indices:
    """Return for each group (G,) the class that most of its images have, the first of equals.

    ``labels`` (N,); ``groups`` (N,), numbered from 0 without gaps.
    """
    num_classes = int(labels.max(initial=0)) + 1
    pairs, counts = counted(groups * num_classes + labels)
    order = np.lexsort((pairs, -counts, pairs // num_classes))
    _, firsts = np.unique(pairs[order] // num_classes, return_index=True)
    main: Indices = pairs[order][firsts] % num_classes
    return main
