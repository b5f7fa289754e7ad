"""Which task a data set poses."""

from fedsim.config.experiment import Config
from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.tasks.findings import Findings
from fedsim.tasks.grading import Grading, ordinal_loss
from fedsim.tasks.imbalance import class_loss
from fedsim.tasks.segmentation import Segmentation
from fedsim.tasks.task import Classification, Task, cross_entropy
from fedsim.tasks.texts import Regression, TextClassification


def task_of(dataset: Dataset, config: Config) -> Task:
    """Return the task that a data set poses; UserError for a loss that it does not have."""
    asked = ordinal_loss if config.train.loss == "ordinal" else class_loss
    criterion = asked(dataset, config.train) or cross_entropy
    if dataset.masks is not None:
        loss = config.train.loss or "dice_ce"
        assert loss != "focal", "class_loss refuses it"
        assert loss != "ordinal", "ordinal_loss refuses it"
        return Segmentation(dataset.class_names, loss, config.evaluate.absent_class)
    if config.train.loss in ("dice", "dice_ce"):
        found = f"{config.train.loss} with {dataset.name}, which has no masks"
        raise UserError("train.loss", found, f"cross_entropy or focal{', or ordinal' * dataset.is_graded}")
    if config.evaluate.absent_class != "skip":
        found = f"{config.evaluate.absent_class} with {dataset.name}, which has no masks"
        raise UserError("evaluate.absent_class", found, "no such key: nothing would use it")
    if dataset.has_findings:
        return _findings(dataset, config)
    if dataset.targets is not None:
        return Regression()
    if dataset.is_graded:
        return Grading(len(dataset.class_names), criterion)
    if dataset.texts is not None:
        return TextClassification(len(dataset.class_names), criterion)
    return Classification(len(dataset.class_names), criterion)


def _findings(dataset: Dataset, config: Config) -> Findings:
    """UserError for what compares classes with each other, where each finding stands by itself."""
    if config.train.loss is not None:
        found = f"{config.train.loss} with {dataset.name}, whose findings go together"
        raise UserError("train.loss", found, "null: binary cross-entropy over what is known")
    if config.model.classifier == "text":
        found = f"text with {dataset.name}, whose findings go together"
        raise UserError("model.classifier", found, "linear: a likeness to a prompt is no probability by itself")
    return Findings(dataset.class_names)
