"""``evaluate.best_by``: every metric of the tasks, no other word, and none that validation cannot tell."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from fedsim import build, server
from fedsim.comm.group import open_group
from fedsim.config.train import Metric
from fedsim.configure import load_config
from fedsim.data.dataset import Dataset
from fedsim.errors import UserError
from fedsim.tasks.choose import task_of
from fedsim.tasks.findings import Findings
from fedsim.tasks.grading import Grading
from fedsim.tasks.segmentation import Segmentation
from fedsim.tasks.task import Classification, Task
from fedsim.tasks.texts import Regression, TextClassification
from fedsim.verbs.evaluate import evaluate_run
from tests.distributed.runs import measured, write_config
from tests.helpers import make_config, make_dataset, make_masked_dataset

TASKS: list[Task] = [
    Classification(2),
    Grading(5),
    Findings(("mass", "edema")),
    TextClassification(2),
    Regression(),
    Segmentation(("background", "cell")),
]


def test_best_by_takes_what_the_tasks_measure_and_no_other_word() -> None:
    measured = {name for task in TASKS for name in task.metrics}
    assert {name for name in measured if "/" not in name} == set(get_args(Metric))
    for name in measured:
        assert make_config(evaluate={"best_by": name}).evaluate.best_by == name


@pytest.mark.parametrize("word", ["acuracy", "auc", "dice/", "accuracy/cell", "dice_cell"])
def test_best_by_refuses_other_words(word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"evaluate\.best_by: found '{word}'; expected .*'recall'.*'iou_all'"):
        load_config(write_config(tmp_path), [f"evaluate.best_by={word}"])


def one_class() -> Dataset:
    dataset, _ = make_dataset([30])
    return replace(dataset, labels=dataset.labels.index_fill(0, torch.from_numpy(dataset.val), 1))


def texts(labels: list[int], num_classes: int = 2) -> Dataset:
    """Texts whose validation split has these labels."""
    dataset, _ = make_dataset([30])
    values = torch.tensor(labels).repeat(12)[:12]
    names = tuple(f"class {number}" for number in range(num_classes))
    own = dataset.labels.clamp(max=num_classes - 1).index_copy(0, torch.from_numpy(dataset.val), values)
    return replace(dataset, labels=own, class_names=names, texts=(("a",),) * len(own))


def numbers(values: list[float]) -> Dataset:
    dataset, _ = make_dataset([30])
    own = torch.linspace(0, 1, len(dataset.labels))
    own[torch.from_numpy(dataset.val)] = torch.tensor(values).repeat(12)[:12]
    return replace(dataset, labels=dataset.labels * 0, class_names=("score",), targets=own, texts=(("a",),) * len(own))


def masks(highest: int) -> Dataset:
    """Masks whose validation images have no class above ``highest``."""
    dataset, _ = make_masked_dataset([8], 16)
    assert dataset.masks is not None
    kept = dataset.masks.clone()
    kept[torch.from_numpy(dataset.val)] = kept[torch.from_numpy(dataset.val)].clamp(max=highest)
    return replace(dataset, masks=kept)


@pytest.mark.parametrize(
    ("dataset", "best_by", "why"),
    [
        (one_class(), "auroc", "auroc, but 1 class in validation"),
        (one_class(), None, None),
        (one_class(), "f1", None),
        (make_dataset([30])[0], "auroc", None),
        (texts([1]), "matthews", "matthews, but 1 class"),
        (texts([0]), "f1_positive", "f1_positive, but no text of the second"),
        (texts([0, 1, 2], 3), "f1_positive", "f1_positive, but 3 classes"),
        (texts([0, 1]), "f1_positive", None),
        (texts([0, 1, 2], 3), "matthews", None),
        (numbers([0.5]), None, "spearman, but one number for all texts"),
        (numbers([0.5]), "pearson", "pearson, but one number for all texts"),
        (numbers([0.5]), "mae", None),
        (numbers([0.5, 1.0]), None, None),
        (masks(0), None, "dice, but no mask with foreground"),
        (masks(0), "iou", "iou, but no mask with foreground"),
        (masks(0), "dice_all", None),
        (masks(1), "dice/white", "dice/white, but no mask of that class"),
        (masks(1), "iou/white", "iou/white, but no mask of that class"),
        (masks(1), "dice/grey", None),
        (masks(2), "dice/white", None),
    ],
)
def test_a_best_by_that_validation_cannot_tell_is_refused_at_the_start(
    dataset: Dataset, best_by: str | None, why: str | None
) -> None:
    config = make_config(evaluate={"best_by": best_by})
    task = task_of(dataset, config)
    if why is None:
        task.check_decisive(best_by, dataset)
        return
    with pytest.raises(UserError) as caught:
        task.check_decisive(best_by, dataset)
    assert str(caught.value).startswith(f"evaluate.best_by: found {why}")
    assert (best_by or task.metrics[0]) not in caught.value.expected.split(", ")


def test_a_run_does_not_start_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_dataset", lambda _: one_class())
    config = load_config(write_config(tmp_path), ["evaluate.best_by=auroc"])
    with pytest.raises(UserError, match=r"^evaluate\.best_by: found auroc, but 1 class in validation"):
        build.build_simulation(config, open_group())


def test_evaluate_says_that_a_run_has_no_best_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a training diverges: no validation gave a number."""
    nothing = dict.fromkeys(Classification(2).metrics, float("nan"))
    monkeypatch.setattr(Classification, "measure", lambda *_: nothing)
    results = server.run(load_config(write_config(tmp_path), ["rounds=1"]), tmp_path / "run", resume=False)
    assert results["best_round"] == 0
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"checkpoints: found no best round: .*; expected --checkpoint last$"):
        evaluate_run(tmp_path / "run", "best")
    assert (measured(tmp_path / "run", "last")["val"]["accuracy"] or 0) > 0
