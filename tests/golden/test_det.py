"""Deputy-enhanced transfer against PRR-FL's released code (prrfl_det.npz): stages, losses, and six local epochs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.base import ServerState
from algorithms.prrfl import DEPUTY, PERSONAL, learners, next_stage, transfer_terms
from fedsim.config import ModelConfig
from fedsim.data import Dataset
from fedsim.models.stacked import StackedModel
from fedsim.models.tower import Encoder
from fedsim.own import macro_f1
from fedsim.simulation import Simulation
from tests.golden.clip import below, load
from tests.golden.test_rounds import FloatImages
from tests.helpers import make_config, make_simulation, play

GOLDEN = load("prrfl_det")
TOLERANCE = 2e-6
CASES = sorted({name.split("/")[0] for name in GOLDEN if name.startswith("loss") and name[4].isdigit()})
STAGES = {"stage1": 1, "stage2": 2, "stage3": 3, "stage4": 4, "wk1": 2}
NUM_EPOCHS = len(GOLDEN["epoch/log"])


def test_stage_transitions() -> None:
    previous, deputy, personal, expected = GOLDEN["transition/table"].unbind(1)
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
    ce_KM, kl_KM = transfer_terms(logits, labels, weights)
    learning_KM = learners(torch.tensor([STAGES[stage]]))
    (grad,) = torch.autograd.grad((ce_KM + learning_KM * kl_KM).sum(), logits)
    for row, who in enumerate(("deputy", "personal")):
        found = ce_KM[0, row], (learning_KM * kl_KM)[0, row], (ce_KM + learning_KM * kl_KM)[0, row]
        for word, value in zip(("ce", "kl", "loss"), found, strict=True):
            assert value.item() == pytest.approx(golden[f"{word}_{who}"].item(), abs=TOLERANCE), (word, who)
        torch.testing.assert_close(grad[0, row], golden[f"grad_{who}"], rtol=0, atol=TOLERANCE)


def test_macro_f1() -> None:
    found = macro_f1(GOLDEN["test/logits"][None], GOLDEN["test/labels"][None])
    assert 100 * found.item() == pytest.approx(GOLDEN["test/result"][2].item())


def as_params(mlp: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release's layers under our names: the first is the network, the last the head."""
    names = {"0.weight": "net.0.weight", "0.bias": "net.0.bias", "2.weight": "head.weight", "2.bias": "head.bias"}
    return {names[name]: value for name, value in mlp.items()}


def golden_simulation(num_epochs: int) -> Simulation:
    """One client with the golden rows for images, and the golden network."""
    rows, labels = GOLDEN["epoch/X"], GOLDEN["epoch/y"]
    hidden = len(GOLDEN["epoch/personal_init/0.bias"])
    words = {"name": "timm:golden", "weights": "random", "train": "all"}
    encoder = Encoder(nn.Sequential(nn.Linear(rows.shape[1], hidden), nn.Tanh()), hidden, (0.0,) * 3, (1.0,) * 3, 8)
    model = StackedModel(ModelConfig.model_validate(words), encoder, 3, torch.device("cpu"))
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
    dataset = Dataset("golden", rows, labels, tuple("abc"), places, places[:0], places[:0], None, None, ())
    sim = make_simulation(config, dataset, [places], model)
    sim.images = sim.trainer.images = sim.trainer.own._images = FloatImages(dataset, model, ())
    return sim


@pytest.mark.parametrize("num_epochs", range(2, NUM_EPOCHS + 1))
def test_local_epochs(num_epochs: int) -> None:
    """Both models and the stage decisions, which follow the training F1; the round's aggregate is not looked at."""
    sim = golden_simulation(num_epochs)
    state = ServerState(0, as_params(below(GOLDEN, "epoch/personal_init/")))
    phase = sim.algorithm.phases(1)[0]
    start = {
        prefix + name: value
        for prefix, who in ((DEPUTY, "deputy"), (PERSONAL, "personal"))
        for name, value in as_params(below(GOLDEN, f"epoch/{who}_init/")).items()
    }
    stages = []
    assess = sim.algorithm.assess

    def noted(*arguments: Any) -> Any:
        decided = assess(*arguments)
        stages.append(decided["stage"].item())
        return decided

    vars(sim.algorithm)["assess"] = noted
    update, _ = sim.trainer.train((0,), torch.ones(1, dtype=torch.float64), state, phase, [start])
    assert stages == GOLDEN["epoch/log"][:num_epochs, 2].tolist()
    for row, who in enumerate(("deputy", "personal")):
        for name, value in as_params(below(GOLDEN, f"epoch/{who}_after{num_epochs - 1}/")).items():
            torch.testing.assert_close(update.after[name][0, row], value, rtol=0, atol=TOLERANCE)


def test_one_local_epoch_works() -> None:
    """Where the release crashes."""
    sim = golden_simulation(1)
    _, records = play(sim, 1)
    assert records[0].row["train_loss"] > 0
