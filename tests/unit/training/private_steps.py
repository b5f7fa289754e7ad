"""What tests of DP-SGD inside clients share: steps and their gradients, and the images that are in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, GradOf, ServerState, Step, Tensors
from fedsim.kernels import build
from fedsim.simulation import Simulation
from fedsim.training.steps import plan_steps
from tests.helpers import cohort_of, with_method, with_params

SIZES = (9, 4, 2)
STILL = {"lr": 1e-30, "momentum": 0.0}  # every step is taken from the start


def protected(bound: float, noise_multiplier: float = 0.0) -> dict[str, Any]:
    return {"mechanism": {"name": "record", "bound": bound}, "noise_multiplier": noise_multiplier, "delta": 1e-3}


class Watched(Algorithm):
    """FedAvg that remembers its steps: parameters and gradient, (K, ...) by name."""

    def __init__(self, config: Any, facts: Any) -> None:
        super().__init__(config, facts)
        self.seen: list[tuple[Tensors, Tensors]] = []

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Tensors:
        del step
        found = grad_of(params)
        before, after = ({n: v.clone() for n, v in part.items()} for part in (params, found))
        self.seen.append((before, after))
        return found


def away_from_zero(sim: Simulation, state: ServerState) -> ServerState:
    """The state with factors B that are not zero, so that A has a gradient."""
    stream = torch.Generator().manual_seed(1)
    names = [name for name, spec in sim.held.specs.items() if spec.kind == "lora_b"]
    return with_params(state, {n: 0.3 * torch.randn(state.params[n].shape, generator=stream) for n in names})


def gradients(sim: Simulation, clients: Sequence[int], state: ServerState) -> list[tuple[Tensors, Tensors]]:
    """The parameters and gradients of some clients' steps in the method's first phase."""
    phase = sim.algorithm.phases(1)[0]
    sim = with_method(sim, Watched)
    sim.trainer.agreement = 0.0
    sim.trainer.train(tuple(clients), cohort_of(*clients), state, phase, [{} for _ in clients])
    assert isinstance(sim.algorithm, Watched)
    return sim.algorithm.seen


def batches(sim: Simulation, clients: Sequence[int]) -> list[list[np.ndarray]]:
    """The images of every client's steps."""
    steps = plan_steps(sim.parts, clients, sim.config.train, sim.config.seed, 1, "train", poisson=True)
    pairs = zip(steps.index.numpy(), steps.weights.numpy(), strict=True)
    return [[i[w > 0] for i, w in zip(index, weights, strict=True)] for index, weights in pairs]


def one_by_one(sim: Simulation, params: Tensors, places: np.ndarray) -> list[dict[str, Tensor]]:
    """The gradient of every image's own loss, by autograd, for one client's parameters."""
    found = []
    for place in places:
        sim.images.prepare([np.array([place])])
        inputs = sim.images.plain_batch(torch.tensor([[place]]))
        leaf = {name: value[None].clone().requires_grad_() for name, value in params.items()}
        outputs = sim.held.forward(leaf, inputs, training=False)
        target = sim.images.targets[torch.tensor([[place]])]
        (loss,) = sim.task.loss(outputs, target, torch.ones(1, 1))
        grads = torch.autograd.grad(loss, list(leaf.values()), allow_unused=True)
        found.append(
            {n: (v * 0 if g is None else g)[0].detach() for (n, v), g in zip(leaf.items(), grads, strict=True)}
        )
    return found


def norm(tensors: Tensors) -> float:
    return float(torch.cat([value.double().flatten() for value in tensors.values()]).norm())


PATHS = pytest.mark.parametrize(
    "path",
    [pytest.param("compiled", marks=pytest.mark.skipif(build.problem() is not None, reason="no C++")), "pytorch"],
)


def use(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "pytorch":
        monkeypatch.setattr("fedsim.kernels.lora.suits", lambda *_: False)
