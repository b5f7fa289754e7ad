"""Losses for rare classes: against their formulas, written out, and against PyTorch's."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedsim.errors import UserError
from fedsim.tasks.choose import task_of
from fedsim.tasks.imbalance import ClassLoss, class_loss
from fedsim.tasks.task import Classification, cross_entropy
from tests.conformance.settings import ACTIVE, active
from tests.helpers import everything, make_config, make_dataset, make_masked_dataset, play, same_bits, simulate


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, targets and weights of two clients; the second has two images alone."""
    stream = torch.Generator().manual_seed(seed)
    weights = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    return torch.randn(2, 4, 3, generator=stream) * 3, torch.randint(3, (2, 4), generator=stream), weights


def test_without_gamma_and_weights_it_is_cross_entropy() -> None:
    torch.testing.assert_close(ClassLoss()(*batch()), cross_entropy(*batch()))


def test_the_focal_loss_is_its_formula() -> None:
    outputs, targets, weights = batch()
    found = ClassLoss(gamma=2.0, class_weights=(0.5, 1.0, 4.0))(outputs, targets, weights)
    for client in range(2):
        expected = 0.0
        for image in range(4):
            label = int(targets[client, image])
            p = float(outputs[client, image].double().softmax(0)[label])
            expected += float(weights[client, image]) * (0.5, 1.0, 4.0)[label] * -((1 - p) ** 2) * torch.tensor(p).log()
        assert float(found[client]) == pytest.approx(float(expected), rel=1e-4)


def test_weights_are_pytorchs_but_for_their_sum() -> None:
    outputs, targets, weights = batch()
    found = ClassLoss(class_weights=(0.5, 1.0, 4.0))(outputs, targets, weights)
    losses = F.cross_entropy(outputs[0], targets[0], torch.tensor([0.5, 1.0, 4.0]), reduction="none")
    torch.testing.assert_close(found[0], losses.mean())


def test_what_is_certain_has_a_finite_gradient() -> None:
    outputs = torch.tensor([[[200.0, 0.0], [0.0, 200.0]]], requires_grad=True)
    loss = ClassLoss(gamma=0.5)(outputs, torch.zeros(1, 2, dtype=torch.int64), torch.full((1, 2), 0.5))
    loss.sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert float(loss.detach()) == pytest.approx(100.0)


def test_balanced_weights_have_the_mean_one_over_the_training_images() -> None:
    dataset, _ = make_dataset([50])
    words = make_config(train={"class_weights": "balanced"}).train
    loss = class_loss(dataset, words)
    assert loss is not None
    assert loss.class_weights is not None
    weights = torch.tensor(loss.class_weights)[dataset.labels[torch.from_numpy(dataset.train)]]
    assert float(weights.mean()) == pytest.approx(1.0)
    counts = torch.bincount(dataset.labels[torch.from_numpy(dataset.train)], minlength=3)
    assert (torch.tensor(loss.class_weights) * counts).tolist() == pytest.approx([50 / 3] * 3)


@pytest.mark.parametrize(
    "train", [{"loss": "focal"}, {"class_weights": [1.0, 2.0, 0.5]}, {"class_weights": "balanced"}]
)
def test_a_run_takes_it_and_its_bits_are_its_own(train: dict[str, Any]) -> None:
    weighted, plain = simulate([12, 5], 2, train=train), simulate([12, 5], 2)
    assert isinstance(weighted.task, Classification)
    first, _ = play(weighted, 1)
    other, _ = play(plain, 1)
    assert any(not torch.equal(first.params[name], other.params[name]) for name in first.params)
    one_by_one, _ = play(simulate([12, 5], 1, train=train), 1)
    for name, value in first.params.items():
        torch.testing.assert_close(one_by_one.params[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ACTIVE)
def test_every_method_trains_with_it(method: str) -> None:
    ends = []
    for weights in (None, [5.0, 1.0, 0.2]):
        sim = simulate([12, 5], 2, train={"class_weights": weights}, **active(method))
        ends.append(everything(sim, play(sim, 1)[0]))
    assert not same_bits(*ends)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"class_weights": [1.0]},
            r"train.class_weights: found 1 numbers; expected 3, one for each of class 0, class 1",
        ),
        ({"loss": "dice"}, r"train.loss: found dice with made up, which has no masks; expected cross_entropy or focal"),
    ],
)
def test_what_does_not_fit_the_classes_is_refused(train: dict[str, Any], message: str) -> None:
    dataset, _ = make_dataset([50])
    with pytest.raises(UserError, match=message):
        task_of(dataset, make_config(train=train))


@pytest.mark.parametrize("train", [{"loss": "focal"}, {"class_weights": "balanced"}])
def test_masks_have_no_classes_of_images(train: dict[str, Any]) -> None:
    dataset, _ = make_masked_dataset([4], side=16)
    with pytest.raises(UserError, match=r"which has no classes of whole images; expected no such key"):
        task_of(dataset, make_config(train=train))


def test_words_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match=r"focal_gamma: found 3.0 with loss: null"):
        make_config(train={"focal_gamma": 3.0})
    with pytest.raises(ValueError, match=r"class_weights: found balanced with privacy"):
        make_config(train={"class_weights": "balanced"}, privacy={"secure_aggregation": {"threshold": 0.6}})
