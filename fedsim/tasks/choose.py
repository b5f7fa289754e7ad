"""Which task a data set poses."""

from fedsim.config.experiment import Config
from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.tasks.imbalance import class_loss
from fedsim.tasks.segmentation import Segmentation
from fedsim.tasks.task import Classification, Task, cross_entropy
from fedsim.tasks.texts import Regression, TextClassification


def task_of(dataset: Dataset, config: Config) -> Task:
    """Return the task that a data set poses; UserError for a loss that it does not have."""
    criterion = class_loss(dataset, config.train) or cross_entropy
    if dataset.masks is not None:
        loss = config.train.loss or "dice_ce"
        assert loss != "focal", "class_loss refuses it"
        return Segmentation(dataset.class_names, loss, config.evaluate.absent_class)
    if config.train.loss not in (None, "cross_entropy", "focal"):
        found = f"{config.train.loss} with {dataset.name}, which has no masks"
        raise UserError("train.loss", found, "cross_entropy or focal")
    if config.evaluate.absent_class != "skip":
        found = f"{config.evaluate.absent_class} with {dataset.name}, which has no masks"
        raise UserError("evaluate.absent_class", found, "no such key: nothing would use it")
    if dataset.targets is not None:
        return Regression()
    if dataset.texts is not None:
        return TextClassification(len(dataset.class_names), criterion)
    return Classification(len(dataset.class_names), criterion)
