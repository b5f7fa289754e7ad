"""Several findings in an image: the loss leaves out what nobody knows, and metrics are those of the libraries."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from medmnist.evaluator import getACC, getAUC
from monai.metrics import compute_average_precision, compute_roc_auc
from sklearn.metrics import average_precision_score, roc_auc_score

from fedsim.data.dataset import Dataset
from fedsim.data.findings import rarest_findings
from fedsim.errors import UserError
from fedsim.runfolder.partition import notes
from fedsim.tasks.choose import task_of
from fedsim.tasks.findings import Findings, binary_cross_entropy
from fedsim.training.own_images import OwnImages
from tests.helpers import (
    LORA,
    TINY_VIT,
    cohort_of,
    everything,
    furthest,
    make_config,
    make_dataset,
    make_simulation,
    play,
)

NAMES = ("mass", "nodule", "edema")
MULTI_LABEL = "multi-label, binary-class"


def made_up(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (50, 3) with ties, and targets 0 and 1 that they tell something about."""
    stream = np.random.default_rng(seed)
    targets = (stream.random((50, 3)) < [0.5, 0.2, 0.3]).astype(np.float32)
    return (stream.normal(size=(50, 3)) + targets).round(1).astype(np.float32), targets


def measured(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    rows = torch.from_numpy(np.concatenate([scores, targets], 1))
    return Findings(NAMES).measure(rows, torch.zeros(len(rows)).long())


def probabilities(scores: np.ndarray) -> np.ndarray:
    return torch.from_numpy(scores).double().sigmoid().numpy()


def test_where_all_is_known_sklearn_medmnist_and_monai_agree() -> None:
    scores, targets = made_up()
    found = measured(scores, targets)
    assert found["auroc"] == pytest.approx(roc_auc_score(targets, scores, average="macro"))
    assert found["auroc"] == pytest.approx(getAUC(targets, probabilities(scores), MULTI_LABEL))
    assert found["accuracy"] == pytest.approx(getACC(targets, probabilities(scores), MULTI_LABEL))
    assert found["average_precision"] == pytest.approx(average_precision_score(targets, scores, average="macro"))
    pair = torch.from_numpy(scores), torch.from_numpy(targets)
    assert found["auroc"] == pytest.approx(float(compute_roc_auc(*pair)))
    assert found["average_precision"] == pytest.approx(float(compute_average_precision(*pair)))
    assert found["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(*pair).item())
    each = [found[f"auroc/{name}"] for name in NAMES]
    assert each == pytest.approx(roc_auc_score(targets, scores, average=None).tolist())


def test_missing_labels_count_nowhere() -> None:
    scores, targets = made_up()
    targets[np.random.default_rng(1).random(targets.shape) < 0.3] = -1
    targets[7] = -1
    found = measured(scores, targets)
    areas, precisions, hits, losses = [], [], [], []
    for place in range(3):
        known = targets[:, place] >= 0
        truth, own = targets[known, place], scores[known, place]
        areas.append(roc_auc_score(truth, own))
        assert areas[-1] == pytest.approx(getAUC(truth, own, "binary-class"))
        assert areas[-1] == pytest.approx(float(compute_roc_auc(torch.from_numpy(own), torch.from_numpy(truth))))
        precisions.append(average_precision_score(truth, own))
        hits.append(getACC(truth, probabilities(own), "binary-class"))
    for scored, true in zip(scores, targets, strict=True):
        if (true >= 0).any():
            pair = torch.from_numpy(scored[true >= 0]), torch.from_numpy(true[true >= 0])
            losses.append(F.binary_cross_entropy_with_logits(*pair).item())
    assert 0 < len(losses) < 50
    assert [found[f"auroc/{name}"] for name in NAMES] == pytest.approx(areas)
    for metric, values in (("auroc", areas), ("average_precision", precisions), ("accuracy", hits), ("loss", losses)):
        assert found[metric] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("value", [0, 1])
def test_a_finding_that_all_images_agree_on_is_left_out_of_the_mean(value: int) -> None:
    """Others make nan of the whole: scikit-learn, medmnist, MONAI; scikit-learn's precision alone is 0 or 1."""
    scores, targets = made_up()
    targets[:, 1] = value
    found = measured(scores, targets)
    assert math.isnan(found["auroc/nodule"])
    for metric, library in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        others = [library(targets[:, place], scores[:, place]) for place in (0, 2)]
        assert found[metric] == pytest.approx(np.mean(others))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair = torch.from_numpy(scores), torch.from_numpy(targets)
        assert math.isnan(roc_auc_score(targets, scores, average="macro"))
        assert math.isnan(getAUC(targets, probabilities(scores), MULTI_LABEL))
        assert math.isnan(float(compute_roc_auc(*pair)))
        assert math.isnan(float(compute_average_precision(*pair)))
        assert average_precision_score(targets[:, 1], scores[:, 1]) == pytest.approx(value)
    # Whether all had it or none is known, and being right about that counts.
    assert found["accuracy"] == pytest.approx(getACC(targets, probabilities(scores), MULTI_LABEL))


def test_nothing_known_is_nothing_measured() -> None:
    scores, targets = made_up()
    found = measured(scores, np.full_like(targets, -1))
    assert all(map(math.isnan, found.values()))


def test_the_loss_is_a_mean_over_images_of_the_mean_over_what_is_known() -> None:
    outputs = torch.tensor([[[0.5, -1.0], [2.0, 3.0], [math.pi, 9.0]]])
    targets = torch.tensor([[[1.0, -1.0], [0.0, 1.0], [1.0, 0.0]]])
    weights = torch.tensor([[0.5, 0.5, 0.0]])
    first = math.log1p(math.exp(-0.5))
    second = (math.log1p(math.exp(2.0)) + math.log1p(math.exp(-3.0))) / 2
    found = binary_cross_entropy(outputs, targets, weights)
    assert found.tolist() == pytest.approx([(first + second) / 2])
    nothing = binary_cross_entropy(outputs, torch.full_like(targets, -1), weights)
    assert nothing.tolist() == [0]


def test_no_gradient_comes_from_what_is_not_known() -> None:
    outputs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.randint(-1, 2, (2, 4, 3), generator=torch.Generator().manual_seed(1)).float()
    weights = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    binary_cross_entropy(outputs, targets, weights).sum().backward()
    assert outputs.grad is not None
    counts = (targets >= 0) & (weights > 0)[..., None]
    assert (outputs.grad[~counts] == 0).all()
    assert (outputs.grad[counts] != 0).all()


def findings_set(sizes: list[int]) -> tuple[Dataset, list[np.ndarray]]:
    """Images that show by their colours which of two findings they have; the last client knows nothing of one."""
    plain, parts = make_dataset(sizes)
    stream = np.random.default_rng(2)
    targets = np.stack(
        [plain.labels.numpy() == 0, plain.labels.numpy() == 1, stream.random(len(plain.labels)) < 0.5], 1
    )
    targets = targets.astype(np.float32)
    targets[stream.random(targets.shape) < 0.2] = -1
    targets[parts[-1], 1] = -1
    rarest = torch.from_numpy(rarest_findings(targets))
    return replace(plain, class_names=NAMES, labels=rarest, targets=torch.from_numpy(targets)), parts


@pytest.mark.parametrize("model", [{**TINY_VIT, "lora": LORA}, {**TINY_VIT, "train": "head"}])
def test_clients_in_one_batch_train_as_alone(model: dict[str, object]) -> None:
    dataset, parts = findings_set([30, 9, 17])
    states = []
    for per_block in (3, 1):
        config = make_config(model=model, clients={"count": 3, "per_block": per_block})
        sim = make_simulation(config, dataset, parts)
        states.append(everything(sim, play(sim, 2)[0]))
    assert furthest(*states) < (1e-5, "")


def test_training_learns_and_a_client_leaves_the_finding_alone_that_it_lacks() -> None:
    dataset, parts = findings_set([60, 60, 60])
    config = make_config(clients={"count": 3, "per_block": 3}, rounds=8, train={"lr": 0.1})
    sim = make_simulation(config, dataset, parts)
    start = sim.initial_state()
    _, records = play(sim, 8)
    losses = [record.row["train_loss"] for record in records]
    assert losses[-1] < 0.9 * losses[0]
    block = sim.trainer.train((2,), cohort_of(2), start, sim.algorithm.phases(1)[0], [{}])[0]
    change = block.after["head.weight"][0] - start.params["head.weight"]
    assert (change[1] == 0).all()
    assert (change[[0, 2]] != 0).any()


def test_what_clients_know_nothing_of_is_said() -> None:
    dataset, parts = findings_set([30, 9, 17])
    sim = make_simulation(make_config(clients={"count": 3, "per_block": 3}), dataset, parts)
    assert notes(sim) == [("not known", "nodule at 1 of 3 clients")]
    assert dataset.targets is not None
    targets = dataset.targets.clone()
    targets[:, 2] = -1
    sim = make_simulation(sim.config, replace(dataset, targets=targets), [*parts[:2], parts[2][:0]])
    assert notes(sim) == [("not known", "edema at all of 2 clients")]


def test_each_client_is_measured_on_what_is_known_of_its_own_images() -> None:
    dataset, parts = findings_set([30, 9, 17])
    sim = make_simulation(make_config(clients={"count": 3, "per_block": 3}), dataset, parts)
    own: OwnImages = sim.trainer.own
    params = sim.initial_state().params
    rows, labels = own.rows("test", (0, 1, 2), params)
    assert rows.shape[2] == 2 * len(NAMES)
    for row, places in enumerate(own.places("test")):
        assert (labels[row] >= 0).sum() == len(places)
        assert dataset.targets is not None
        assert torch.equal(rows[row, : len(places), 3:], dataset.targets[torch.from_numpy(places)])


def test_which_metrics_say_nothing() -> None:
    dataset, _ = findings_set([30])
    task = task_of(dataset, make_config())
    assert isinstance(task, Findings)
    assert dataset.targets is not None
    targets = dataset.targets.clone()
    targets[torch.from_numpy(dataset.val), 1] = 0
    one = replace(dataset, targets=targets)
    assert task.undecided(one, one.val).keys() == {"auroc/nodule"}
    with pytest.raises(UserError, match=r"evaluate.best_by: found auroc/nodule, but no image with it beside"):
        task.check_decisive("auroc/nodule", one)
    none = replace(dataset, targets=torch.zeros_like(targets))
    assert {"auroc", "average_precision"} <= task.undecided(none, none.val).keys()
    with pytest.raises(UserError, match=r"found auroc, but no finding that one image has .* in validation; expected"):
        task.check_decisive(None, none)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"loss": "cross_entropy"}},
            r"train.loss: found cross_entropy .* findings .*; expected null",
        ),
        (
            {"model": {"name": "open_clip:ViT-B-32", "classifier": "text", "train": "all"}},
            r"model.classifier: found text .*; expected linear",
        ),
    ],
)
def test_what_compares_classes_is_refused(sections: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of(findings_set([30])[0], make_config(**sections))
