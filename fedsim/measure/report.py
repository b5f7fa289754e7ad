"""All that is to be said about a model on sets of images, as plain data: what a paper's tables and figures are made of.

Shapes: N images of a set, S numbers of an image that the task's metrics need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.catalogue.data import data_row
from fedsim.config.data import DataConfig
from fedsim.data import Dataset, load_dataset
from fedsim.data.dataset import Indices
from fedsim.errors import UserError
from fedsim.inputs.images import ImageSource
from fedsim.inputs.texts import input_source
from fedsim.measure.bootstrap import LEVEL, RESAMPLES, intervals, measure_groups
from fedsim.measure.curves import answered, curves, fixed_specificity, reliability
from fedsim.measure.scores import evaluation_rows
from fedsim.seeding import numpy_stream
from fedsim.simulation import Simulation
from fedsim.tasks.task import Classification, Task
from fedsim.tasks.weighted import confusions

Report = dict[str, Any]
OUTSIDE = "outside"


@dataclass(frozen=True)
class ImageSet:
    """Images that are measured together: a split of the run's own data, or a set from outside.

    ``groups``: by "site" and "client" and by name the places of a group's images among ``places``; those with any.
    ``remark``: what there is to say about the choice of images.
    """

    name: str
    dataset: Dataset
    images: ImageSource
    places: Indices
    groups: Mapping[str, Mapping[str, Indices]]
    remark: str = ""

    @property
    def labels(self) -> Tensor:
        return self.dataset.labels[torch.from_numpy(self.places)]

    @property
    def clusters(self) -> Indices:
        """What belongs together, (N,): the set's own groups, else every image by itself."""
        own = self.dataset.groups
        return np.arange(len(self.places)) if own is None else own[self.places]

    def rows(self, sim: Simulation, params: Mapping[str, Tensor]) -> Tensor:
        """Return what the global model makes of the images, (N, S); every rank calls this."""
        size = sim.config.evaluate.batch_size
        return evaluation_rows(sim.task, sim.model, params, self.images, self.places, size, sim.group)


def own_sets(sim: Simulation) -> list[ImageSet]:
    """Return the validation and the test images, by site and, where single clients may be looked at, by client."""
    own = sim.trainer.own.held_out if shows_clients(sim) else {}
    sets = []
    for split in ("val", "test"):
        places: Indices = vars(sim.dataset)[split]
        clients = {str(k): np.searchsorted(places, part) for k, part in enumerate(own.get(split, [])) if len(part)}
        groups = {"site": by_site(sim.dataset, places), "client": clients}
        sets.append(ImageSet(split, sim.dataset, sim.images, places, groups))
    return sets


def shows_clients(sim: Simulation) -> bool:
    """Whether single clients may be looked at."""
    return sim.config.observes


def outside_set(sim: Simulation, words: DataConfig, file: str) -> ImageSet:
    """Return a set from outside, as ``file`` names it: its own test images, or all of a set that brings no split.

    A table's classes and a folder's are those of the run, of which it may lack some. UserError where a set has others,
    brings its own in another order, or is of another kind.
    """
    row = data_row(words.name)
    if row is not None and row.classes and words.classes is None and not _names_findings(words):
        words = words.model_copy(update={"classes": sim.dataset.class_names})
    dataset = load_dataset(words, is_outside=True)
    if dataset.arrays is not None:
        sim.group.check_equal(f"the data of {dataset.name}", dataset.arrays["sha256"])
    where = f"{file}: data {words.name}"
    found, expected = kind_of(dataset), kind_of(sim.dataset)
    if found != expected:
        raise UserError(where, found, f"{expected}, as the run's {sim.dataset.name}")
    if dataset.class_names != sim.dataset.class_names:
        names = [", ".join(one.class_names) for one in (dataset, sim.dataset)]
        raise UserError(where, f"the classes {names[0]}", f"those of the run, in their order: {names[1]}")
    images = input_source(sim.config.model_copy(update={"data": words}), dataset, sim.model)
    is_split = "test" not in dataset.drawn
    places = dataset.test if is_split else np.arange(len(dataset.labels))
    chosen = "its own test" if is_split else "all"
    remark = f"{words.name}: {chosen} {len(places):,} {dataset.unit}"
    return ImageSet(OUTSIDE, dataset, images, places, {"site": by_site(dataset, places)}, remark)


def _names_findings(words: DataConfig) -> bool:
    return words.columns is not None and words.columns.findings is not None


def kind_of(dataset: Dataset) -> str:
    """Return in words what a set's inputs are for."""
    if dataset.masks is not None:
        return f"{dataset.unit} with masks"
    if dataset.targets is not None:
        return f"{dataset.unit} with {'findings' if dataset.has_findings else 'numbers to be told'}"
    return f"{dataset.unit} with classes"


def by_site(dataset: Dataset, places: Indices) -> dict[str, Indices]:
    """Return which of ``places`` are of each site, by the names of those that have any."""
    if dataset.sites is None:
        return {}
    own = dataset.sites[places]
    found = {name: np.flatnonzero(own == site) for site, name in enumerate(dataset.site_names)}
    return {name: members for name, members in found.items() if len(members)}


def report_on(
    task: Task, images: ImageSet, rows: Tensor, seed: int, thresholds: Mapping[str, Mapping[float, float]]
) -> Report:
    """Return what a model's rows (N, S) say about a set of images.

    ``thresholds``: by class what validation chose, see ``thresholds_of``; the bootstrap follows from ``seed``.
    """
    labels, names = images.labels, images.dataset.class_names
    decisions = task.decisions(rows, labels, names)
    report: Report = {
        "set": images.name,
        "data": images.dataset.name,
        "images": len(rows),
        "drawn_together": "groups" if images.dataset.groups is not None else images.dataset.unit,
        "scores": scores(task, images, rows, seed),
        "classes": {one.name: answered(one, images.name, thresholds.get(one.name, {})) for one in decisions},
        "curves": {one.name: curves(one) for one in decisions},
        "predictions": {**identities(images), **task.predictions(rows, labels, names)},
    }
    if isinstance(task, Classification):
        predicted, truth = rows.argmax(1).numpy(), labels.numpy()
        once = np.ones((1, len(rows)), np.int64)
        report["confusion"] = confusions(truth, predicted, len(names), once)[0].astype(int).tolist()
        chances = rows.double().softmax(1).amax(1).numpy()
        report["calibration"] = reliability(chances, predicted == truth)
    return report


def scores(task: Task, images: ImageSet, rows: Tensor, seed: int) -> list[dict[str, Any]]:
    """Return the metrics of all images and of every group, with intervals but for clients, whose images are few."""
    labels, clusters = images.labels, images.clusters
    found = []
    for kind, groups in {"all": {"all": np.arange(len(rows))}, **images.groups}.items():
        values = measure_groups(task, rows, labels, list(groups.values()))
        if kind == "all":  # as the run itself measures it, to the last bit
            values = [task.measure(rows, labels)]
        for (name, places), own in zip(groups.items(), values, strict=True):
            ends: Mapping[str, tuple[float, float]] = {}
            if kind != "client":
                stream = numpy_stream(seed, f"bootstrap/{images.name}/{kind}/{name}")
                ends = intervals(task, rows[places], labels[places], clusters[places], stream)
            metrics = {
                metric: {"value": value, **dict(zip(("low", "high"), ends.get(metric, ()), strict=False))}
                for metric, value in own.items()
            }
            number = {"images": len(places), "drawn": len(np.unique(clusters[places]))}
            found.append({"kind": kind, "name": name, **number, "metrics": metrics})
    return found


def identities(images: ImageSet) -> dict[str, Sequence[Any]]:
    """Return the columns that say which image a row is about: its index in the data set, file, site and client."""
    found: dict[str, Sequence[Any]] = {"index": images.places.tolist()}
    if names_of_files := images.dataset.file_names:
        found["file"] = [names_of_files[picture] for picture in images.dataset.pictures_of(images.places).tolist()]
    for kind, groups in images.groups.items():
        names: list[str | None] = [None] * len(images.places)
        for name, places in groups.items():
            for place in places.tolist():
                names[place] = name
        if groups:
            found[kind] = names
    return found


def thresholds_of(task: Task, images: ImageSet, rows: Tensor) -> dict[str, dict[float, float]]:
    """Return by class the scores at which a set's images have the fixed specificities."""
    decisions = task.decisions(rows, images.labels, images.dataset.class_names)
    return {one.name: fixed_specificity(one) for one in decisions}


def whole_report(sim: Simulation, params: Mapping[str, Tensor], outside: ImageSet | None) -> Report:
    """Return the report on the run's own validation and test images, or on a set from outside.

    Every rank calls this; on the server alone there is more in it than nothing.
    """
    sets = own_sets(sim)
    rows = [images.rows(sim, params) for images in (sets if outside is None else [sets[0], outside])]
    if not sim.group.is_server:
        return {}
    task, seed = sim.task, sim.config.seed
    thresholds = thresholds_of(task, sets[0], rows[0])
    if outside is None:
        reports = [report_on(task, sets[0], rows[0], seed, {}), report_on(task, sets[1], rows[1], seed, thresholds)]
    else:
        reports = [report_on(task, outside, rows[1], seed, thresholds)]
    intervals = {"level": LEVEL, "resamples": RESAMPLES}
    return {"class_names": sim.dataset.class_names, "intervals": intervals, "sets": reports}
