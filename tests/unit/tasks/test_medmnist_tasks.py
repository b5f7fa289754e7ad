"""MedMNIST's sets that are no plain classes: several findings of an image, and grades."""

from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
from medmnist import Evaluator

from fedsim import server
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.verbs.evaluate import evaluate_run
from tests.distributed.runs import ROOT, reported
from tests.helpers import TINY_VIT, load_set
from tests.unit.data.datasets.test_data_medmnist import write_medmnist

FINDINGS = tuple(medmnist.INFO["chestmnist"]["label"].values())
SPLITS = {"train": 600, "val": 10, "test": 12}


def chest_labels(seed: int = 1) -> dict[str, np.ndarray]:
    """Labels as they are published: uint8 (N, 14), several ones in a row, and mostly none."""
    stream = np.random.default_rng(seed)
    return {
        f"{name}_labels": (stream.random((count, 14)) < np.linspace(0.05, 0.4, 14)).astype(np.uint8)
        for name, count in SPLITS.items()
    }


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("order", ["C", "F"])
def test_chestmnist_has_its_findings(tmp_path: Path, order: Any) -> None:
    labels = {name: np.asarray(value, order=order) for name, value in chest_labels().items()}
    write_medmnist(tmp_path / "chestmnist.npz", 28, **labels)
    data = load_set("medmnist:chestmnist", root=str(tmp_path))
    assert data.class_names == FINDINGS
    assert data.label_names == (*FINDINGS, "no finding")
    expected = np.concatenate([labels[f"{name}_labels"] for name in SPLITS])
    assert data.targets.numpy().tolist() == expected.tolist()
    assert data.labels[~expected.any(1)].eq(14).all()
    assert all(expected[row, label] for row, label in enumerate(data.labels.tolist()) if label < 14)
    assert not data.is_graded


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((600, 1), np.uint8), r"train_labels uint8\(600, 1\)"),
        (np.zeros((600, 13), np.uint8), r"train_labels uint8\(600, 13\)"),
        (np.full((600, 14), 2, np.uint8), r"train_labels uint8\(600, 14\) within \[2, 2\]"),
        (np.zeros((600, 14)), r"train_labels float64\(600, 14\)"),
        (np.zeros((14,), np.uint8), r"train_labels uint8\(14,\)"),
        (np.array(0, np.uint8), r"train_labels uint8\(\)"),
    ],
)
def test_chestmnist_that_is_not_as_published_is_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    write_medmnist(tmp_path / "chestmnist.npz", 28, **(chest_labels() | {"train_labels": labels}))
    with pytest.raises(UserError, match=message):
        load_set("medmnist:chestmnist", root=str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_retinamnist_has_grades_and_the_others_have_none(tmp_path: Path) -> None:
    for flag, num_classes in (("retinamnist", 5), ("bloodmnist", 8)):
        write_medmnist(tmp_path / f"{flag}.npz", 28, channels=3, num_classes=num_classes)
        assert load_set(f"medmnist:{flag}", root=str(tmp_path)).is_graded is (flag == "retinamnist")


SMALL = ("rounds=1", "clients.count=3", "data.max_train=60", "train.batch_size=8", "data.image_size=28")
TINY = f"model={{name: '{TINY_VIT['name']}', weights: random, options: {TINY_VIT['options']}, lora: {{r: 2}}}}"


def example(name: str, folder: Path) -> dict[str, Any]:
    """Run an example config on the written file, shortened, and evaluate it; return the report."""
    config = load_config(ROOT / "configs" / f"{name}.yaml", [*SMALL, TINY, f"data.root={folder}"])
    server.run(config, folder / "run", resume=False)
    evaluate_run(folder / "run", "last", out=folder / "report")
    return reported(folder / "report")


@pytest.mark.usefixtures("cache")
def test_the_chest_config_runs_and_its_scores_are_those_of_medmnists_evaluator(tmp_path: Path) -> None:
    labels = chest_labels()
    labels["test_labels"][0], labels["test_labels"][1] = 0, 1  # with all and with none: the evaluator needs both
    write_medmnist(tmp_path / "chestmnist.npz", 28, **labels)
    report = example("fedavg_chest", tmp_path)
    test = report["sets"][1]
    metrics = {name: found["value"] for name, found in test["scores"][0]["metrics"].items()}
    chances = np.array([test["predictions"][f"probability/{name}"] for name in FINDINGS]).T
    auc, acc = Evaluator("chestmnist", "test", root=str(tmp_path)).evaluate(chances)
    assert metrics["auroc"] == pytest.approx(auc)
    assert metrics["accuracy"] == pytest.approx(acc)


@pytest.mark.usefixtures("cache")
def test_the_retina_config_runs_and_its_scores_are_those_of_medmnists_evaluator(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "retinamnist.npz", 28, channels=3, num_classes=5)
    report = example("fedavg_retina", tmp_path)
    test = report["sets"][1]
    metrics = {name: found["value"] for name, found in test["scores"][0]["metrics"].items()}
    chances = np.array([test["predictions"][f"probability/{name}"] for name in report["class_names"]]).T
    auc, acc = Evaluator("retinamnist", "test", root=str(tmp_path)).evaluate(chances)
    assert metrics["auroc"] == pytest.approx(auc)
    assert metrics["accuracy"] == pytest.approx(acc)
    assert {"quadratic_kappa", "mae"} <= metrics.keys()
