"""Deputy-enhanced transfer against PRR-FL's released code (prrfl_det.npz): stages, losses, metrics, local epochs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.algorithms.base import Batch, ServerState
from fedsim.algorithms.prrfl import DEPUTY, PERSONAL, learners, next_stage, transfer_terms
from fedsim.config.words import ModelConfig
from fedsim.data import Dataset
from fedsim.models.build import stack
from fedsim.models.tower import Encoder
from fedsim.simulation import Simulation
from fedsim.tasks.task import classification_metrics, cross_entropy
from fedsim.training.own_images import macro_f1
from tests.golden.clip import below, load, load_words, tags
from tests.golden.test_rounds import FloatImages
from tests.helpers import cohort_of, make_config, make_simulation, play

GOLDEN, WORDS = load("prrfl_det"), load_words("prrfl_det")
TOLERANCE = 2e-6
CASES = tags(GOLDEN, r"(loss\d+)/")
STAGES = {"stage1": 1, "stage2": 2, "stage3": 3, "stage4": 4, "wk1": 2}
LOG = dict(zip(WORDS["epoch/log_columns"], GOLDEN["epoch/log"].T, strict=True))
NUM_EPOCHS = len(GOLDEN["epoch/log"])
# Metrics of ours by the release's columns, where they are in percent.
METRICS = {"acc%": "accuracy", "macro F1%": "f1", "F1%": "f1", "AUC% ovr": "auroc", "AUC%": "auroc"}


def assert_metrics(logits: Tensor, labels: Tensor, expected: Mapping[str, float]) -> None:
    found = classification_metrics(logits, labels)
    columns = METRICS.keys() & expected.keys()
    assert len(columns) == len(set(METRICS.values()))
    for column in columns:
        assert 100 * found[METRICS[column]] == pytest.approx(expected[column], rel=1e-5), column


def test_stage_transitions() -> None:
    columns = dict(zip(WORDS["transition/columns"], GOLDEN["transition/table"].unbind(1), strict=True))
    previous, deputy, personal, expected = (
        columns[name] for name in ("previous_stage", "f1_deputy", "f1_personal", "next_stage")
    )
    alphas = (GOLDEN[f"transition/alpha{number}"].item() for number in (1, 2))
    found = next_stage(previous.long(), deputy, personal, *alphas)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients(case: str, stage: str) -> None:
    """A single local epoch (``wk1``) is always an exchange; there the release fails after its update."""
    golden = below(GOLDEN, f"{case}/{stage}/")
    logits = torch.stack([GOLDEN[f"{case}/logits_{who}"] for who in ("deputy", "personal")])[None].requires_grad_()
    labels = GOLDEN[f"{case}/labels"][None]
    weights = torch.full(labels.shape, 1 / labels.shape[1])
    ce_KM, kl_KM = transfer_terms(logits, labels, weights, cross_entropy)
    learning_KM = learners(torch.tensor([STAGES[stage]]))
    (grad,) = torch.autograd.grad((ce_KM + learning_KM * kl_KM).sum(), logits)
    for row, who in enumerate(("deputy", "personal")):
        found = ce_KM[0, row], (learning_KM * kl_KM)[0, row], (ce_KM + learning_KM * kl_KM)[0, row]
        for word, value in zip(("ce", "kl", "loss"), found, strict=True):
            assert value.item() == pytest.approx(golden[f"{word}_{who}"].item(), abs=TOLERANCE), (word, who)
        torch.testing.assert_close(grad[0, row], golden[f"grad_{who}"], rtol=0, atol=TOLERANCE)
    if "returned" in golden:
        returned = dict(zip(WORDS["loss/returned_columns"], golden["returned"].tolist(), strict=True))
        assert returned["stage"] == STAGES[stage]
        ce = {who: ce_KM[0, row].item() for row, who in enumerate(("deputy", "personal"))}
        assert ce == pytest.approx({who: returned[f"mean CE {who}"] for who in ce}, abs=TOLERANCE)
        assert_metrics(GOLDEN[f"{case}/logits_personal"], GOLDEN[f"{case}/labels"], returned)


def test_loss_and_metrics_of_a_model() -> None:
    """The release's loss is the mean of its batches' means, ours that over the images."""
    logits, labels, size = (GOLDEN[f"test/{name}"] for name in ("logits", "labels", "batch_size"))
    batches = zip(logits.split(int(size)), labels.split(int(size)), strict=True)
    losses = [classification_metrics(*batch)["loss"] for batch in batches]
    result = dict(zip(WORDS["test/result_columns"], GOLDEN["test/result"].tolist(), strict=True))
    assert np.mean(losses) == pytest.approx(result["loss: mean of BATCH means"], rel=1e-6)
    assert_metrics(logits, labels, result)
    assert 100 * macro_f1(logits[None], labels[None]).item() == pytest.approx(result["macro F1%"])


def as_params(mlp: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release's layers under our names: the first is the network, the last the head."""
    names = {"0.weight": "net.0.weight", "0.bias": "net.0.bias", "2.weight": "head.weight", "2.bias": "head.bias"}
    return {names[name]: value for name, value in mlp.items()}


def golden_simulation(num_epochs: int) -> Simulation:
    """One client with the golden rows for images, and the golden network."""
    rows, labels = GOLDEN["epoch/X"], GOLDEN["epoch/y"]
    hidden, num_classes = (len(GOLDEN[f"epoch/personal_init/{name}.bias"]) for name in (0, 2))
    words = {"name": "timm:golden", "weights": "random", "train": "all"}
    encoder = Encoder(nn.Sequential(nn.Linear(rows.shape[1], hidden), nn.Tanh()), hidden, (0.0,) * 3, (1.0,) * 3, 8)
    model = stack(ModelConfig.model_validate(words), encoder, num_classes, torch.device("cpu"))
    vars(model)["prefix"] = lambda values: values
    config = make_config(
        rounds=1,
        algorithm={"name": "prrfl", "decide_on": "train"},
        clients={"count": 1, "per_block": 1},
        train={
            "lr": GOLDEN["epoch/lr"].item(),
            "momentum": 0.0,
            "weight_decay": GOLDEN["epoch/weight_decay"].item(),
            "epochs": num_epochs,
            "batch_size": GOLDEN["epoch/batch_size"].item(),
            "shuffle": False,
        },
    )
    places = np.arange(len(labels))
    names = tuple(str(label) for label in range(num_classes))
    dataset = Dataset("golden", rows, labels, names, places, places[:0], places[:0], None, None, ())
    sim = make_simulation(config, dataset, [places], model)
    images = FloatImages(dataset, model, ())
    sim.trainer.images = sim.trainer.own._images = images
    return replace(sim, images=images)


def watch(sim: Simulation) -> tuple[list[tuple[Tensor, Tensor]], list[Batch]]:
    """Note F1 and stage before every local pass, and what every step's loss is of."""
    decisions: list[tuple[Tensor, Tensor]] = []
    batches: list[Batch] = []
    assess, loss = sim.algorithm.assess, sim.algorithm.loss

    def noted_assess(f1_KM: Tensor, *others: Any) -> Any:
        decided = assess(f1_KM, *others)
        decisions.append((f1_KM, decided["stage"]))
        return decided

    def noted_loss(batch: Batch) -> Tensor:
        batches.append(batch)
        return loss(batch)

    vars(sim.algorithm).update(assess=noted_assess, loss=noted_loss)
    return decisions, batches


@pytest.mark.parametrize("num_epochs", range(2, NUM_EPOCHS + 1))
def test_local_epochs(num_epochs: int) -> None:
    """Both models, and what the release logs of every epoch; the round's aggregate is not looked at."""
    sim = golden_simulation(num_epochs)
    state = ServerState(0, as_params(below(GOLDEN, "epoch/personal_init/")))
    phase = sim.algorithm.phases(1)[0]
    start = {
        f"{group}/{name}": value
        for group, who in ((DEPUTY, "deputy"), (PERSONAL, "personal"))
        for name, value in as_params(below(GOLDEN, f"epoch/{who}_init/")).items()
    }
    decisions, batches = watch(sim)
    update, _ = sim.trainer.train((0,), cohort_of(0), state, phase, [start])
    assert [stage.item() for _, stage in decisions] == LOG["stage"][:num_epochs].tolist()
    num_steps = len(batches) // num_epochs
    for epoch, (f1_KM, _) in enumerate(decisions):
        own = batches[epoch * num_steps : (epoch + 1) * num_steps]
        terms = [transfer_terms(b.logits.detach(), b.targets, b.weights, cross_entropy)[0][0] for b in own]
        means = torch.stack(terms).mean(0)
        for row, who in enumerate(("deputy", "personal")):
            assert 100 * f1_KM[0, row].item() == pytest.approx(LOG[f"f1_{who}_before"][epoch].item(), rel=1e-6)
            assert means[row].item() == pytest.approx(LOG[f"CE {who}"][epoch].item(), abs=TOLERANCE)
        logits, labels = (
            torch.cat(parts) for parts in zip(*((b.logits[0, 1], b.targets[0]) for b in own), strict=True)
        )
        assert_metrics(logits.detach(), labels, {column: values[epoch].item() for column, values in LOG.items()})
    for row, who in enumerate(("deputy", "personal")):
        for name, value in as_params(below(GOLDEN, f"epoch/{who}_after{num_epochs - 1}/")).items():
            torch.testing.assert_close(update.after[name][0, row], value, rtol=0, atol=TOLERANCE)


def test_one_local_epoch_works() -> None:
    """Where the release crashes."""
    sim = golden_simulation(1)
    _, records = play(sim, 1)
    assert records[0].row["train_loss"] > 0
