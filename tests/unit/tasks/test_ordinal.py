"""The loss of grades: against its sum written out, and against binary cross-entropies of the steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsim.errors import UserError
from fedsim.tasks.choose import task_of
from fedsim.tasks.grading import OrdinalLoss
from fedsim.tasks.task import cross_entropy
from tests.helpers import make_config, make_dataset, make_masked_dataset, make_simulation, play


def batch(num_grades: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, targets and weights of two clients; the second has two images alone."""
    stream = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, num_grades, generator=stream) * 3
    weights = torch.tensor([[0.2] * 5, [0.5, 0.5, 0.0, 0.0, 0.0]])
    return scores, torch.randint(num_grades, (2, 5), generator=stream), weights


def test_it_is_the_sum_of_what_each_step_is_asked() -> None:
    outputs, targets, weights = batch()
    found = OrdinalLoss()(outputs, targets, weights)
    for client in range(2):
        expected = 0.0
        for image in range(5):
            chances, grade = outputs[client, image].double().softmax(0), int(targets[client, image])
            for step in range(3):
                above = float(chances[step + 1 :].sum())
                expected -= float(weights[client, image]) * np.log(above if grade > step else 1 - above)
        assert float(found[client]) == pytest.approx(expected, rel=1e-5)


def test_of_two_grades_it_is_cross_entropy() -> None:
    torch.testing.assert_close(OrdinalLoss()(*batch(2)), cross_entropy(*batch(2)))


def test_it_is_corals_loss_at_the_softmaxs_own_steps() -> None:
    """CORAL has a logit for each step and adds up their binary cross-entropies."""
    outputs, targets, weights = batch(5)
    logs = outputs.log_softmax(2)
    below = torch.stack([logs[..., : step + 1].logsumexp(2) for step in range(4)], 2)
    above = torch.stack([logs[..., step + 1 :].logsumexp(2) for step in range(4)], 2)
    levels = (targets[..., None] > torch.arange(4)).float()
    losses = F.binary_cross_entropy_with_logits(above - below, levels, reduction="none").sum(2)
    torch.testing.assert_close(OrdinalLoss()(outputs, targets, weights), (losses * weights).sum(1))


def test_a_far_miss_is_dearer_than_a_near_one_as_it_is_not_with_cross_entropy() -> None:
    scores = torch.full((1, 1, 5), -4.0)
    near, far = scores.clone(), scores.clone()
    near[..., 3], far[..., 1] = 4.0, 4.0
    truth, weight = torch.tensor([[4]]), torch.ones(1, 1)
    assert float(OrdinalLoss()(far, truth, weight)) > 2 * float(OrdinalLoss()(near, truth, weight))
    assert float(cross_entropy(far, truth, weight)) == pytest.approx(float(cross_entropy(near, truth, weight)))


def test_the_true_probabilities_have_the_least_loss() -> None:
    """A proper score: no other forecast of the grades is better in the mean; here to the gradient's last bits."""
    truth = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    scores = truth.log().float().expand(1, 4, 4).clone().requires_grad_()
    OrdinalLoss()(scores, torch.arange(4)[None], truth.float()[None]).sum().backward()
    assert scores.grad is not None
    assert float(scores.grad.sum(1).abs().max()) < 1e-6


def test_what_is_certain_has_a_finite_gradient() -> None:
    outputs = torch.tensor([[[300.0, 0.0, -300.0]]], requires_grad=True)
    loss = OrdinalLoss()(outputs, torch.tensor([[2]]), torch.ones(1, 1))
    loss.sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert float(loss.detach()) == pytest.approx(300.0 + 600.0)


def test_a_run_takes_it_and_clients_in_one_batch_train_as_alone() -> None:
    dataset, parts = make_dataset([12, 5], num_classes=4)
    graded = replace(dataset, is_graded=True)
    words = {"train": {"loss": "ordinal", "class_weights": "balanced"}}

    def trained(per_block: int, **changes: object) -> dict[str, torch.Tensor]:
        config = make_config(clients={"count": 2, "per_block": per_block}, **changes)
        return dict(play(make_simulation(config, graded, parts), 1)[0].params)

    together, one_by_one, plain = trained(2, **words), trained(1, **words), trained(2)
    assert any(not torch.equal(together[name], plain[name]) for name in plain)
    for name, value in together.items():
        torch.testing.assert_close(one_by_one[name], value, rtol=1e-4, atol=1e-6)


def test_classes_without_an_order_are_refused() -> None:
    config = make_config(train={"loss": "ordinal"})
    for dataset in (make_dataset([50])[0], make_masked_dataset([4], side=16)[0]):
        with pytest.raises(UserError, match=r"train.loss: found ordinal with .*, whose classes are no grades"):
            task_of(dataset, config)
