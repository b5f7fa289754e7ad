"""Which task a data set poses."""

from fedsim.config.experiment import Config
from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.tasks.segmentation import Segmentation
from fedsim.tasks.task import Classification, Task
from fedsim.tasks.texts import Regression, TextClassification


def task_of(dataset: Dataset, config: Config) -> Task:
    """Return the task that a data set poses; UserError for a loss that it does not have."""
    if dataset.masks is not None:
        return Segmentation(dataset.class_names, config.train.loss or "dice_ce", config.evaluate.absent_class)
    if config.train.loss not in (None, "cross_entropy"):
        raise UserError("train.loss", f"{config.train.loss} with {dataset.name}, which has no masks", "cross_entropy")
    if config.evaluate.absent_class != "skip":
        found = f"{config.evaluate.absent_class} with {dataset.name}, which has no masks"
        raise UserError("evaluate.absent_class", found, "no such key: nothing would use it")
    if dataset.targets is not None:
        return Regression()
    if dataset.texts is not None:
        return TextClassification(len(dataset.class_names))
    return Classification(len(dataset.class_names))
