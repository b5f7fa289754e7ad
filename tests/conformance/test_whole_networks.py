"""Training a head or a whole network: stacked is sequential there too, per client BatchNorm included."""

from typing import Any

import pytest
import torch

from fedsim.algorithms.base import Phase
from fedsim.models.build import build_models
from fedsim.models.stacked import StackedModel
from tests.helpers import (
    IMAGE_SIZE,
    TINY_VIT,
    cohort_of,
    everything,
    furthest,
    make_config,
    make_dataset,
    make_masked_dataset,
    make_simulation,
    play,
    same_bits,
    simulate,
    train_alone,
)

CNN = {"name": "timm:test_resnet", "weights": "random", "train": "all"}
WITH_NORMS = "whole net with BatchNorm"
MODELS: dict[str, dict[str, Any]] = {
    "head": {**TINY_VIT, "train": "head"},
    "whole transformer": {**TINY_VIT, "train": "all"},
    WITH_NORMS: CNN,
}
UNETS: dict[str, dict[str, Any]] = {
    "MONAI's": {"name": "monai:unet", "options": {"channels": [4, 8], "strides": [2], "norm": "batch"}},
    "HarmoFL's": {"name": "fedsim:harmofl_unet", "options": {"num_features": 2}},
    "HarmoFL's as released": {"name": "fedsim:harmofl_unet", "options": {"num_features": 2, "form": "released"}},
}
PERSONAL = {
    "fedbn": {"name": "fedbn"},
    "fedrep": {"name": "fedrep"},
    "prrfl": {"name": "prrfl", "decide_on": "train"},
}
METHODS = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox", "mu": 0.5},
    "harmofl": {"name": "harmofl", "share_target": "every"},
}
# With running statistics: two forward passes a step, other models' features, statistics that are averaged apart.
STATISTICS = {"fedsam": {"name": "fedsam"}, "moon": {"name": "moon"}, "fednova": {"name": "fednova"}}
OF_BATCH_NORM = PERSONAL | STATISTICS
# Ragged, with batches of 16, 16, 8 | 6 | 2 | 16: what is no full batch must not be seen by BatchNorm.
SIZES = [40, 6, 0, 2, 16]

# vmap has no rule of its own for fused attention on the CPU; slow there, and right.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def double_model(words: dict[str, Any], image_size: int = IMAGE_SIZE) -> StackedModel:
    """The model in float64: BatchNorm over a handful of values makes much of float32's rounding."""
    config = make_config(model=words)
    model, _ = build_models(config.model, image_size, ("a", "b", "c"), 0, torch.device("cpu"))
    start = model.initial(0)
    model.net.double()
    model._mean = model._mean.double()
    vars(model)["initial"] = lambda _: {n: v.double() if v.is_floating_point() else v for n, v in start.items()}
    return model


@pytest.mark.parametrize(
    ("model", "method"),
    [*((model, method) for model in MODELS for method in METHODS), *((WITH_NORMS, method) for method in OF_BATCH_NORM)],
)
def test_stacked_is_sequential(model: str, method: str) -> None:
    train = {"lr": 0.01, "momentum": 0.9, "batch_size": 16, "clip_norm": 1.0}
    dataset, parts = make_dataset(SIZES)
    ends = []
    for per_block in (1, len(SIZES)):
        clients = {"count": len(SIZES), "per_block": per_block}
        algorithm = (METHODS | OF_BATCH_NORM)[method]
        words = MODELS[model] | ({"amplitude_norm": {}} if method == "harmofl" else {})
        config = make_config(model=words, algorithm=algorithm, train=train, clients=clients)
        net = double_model(words) if MODELS[model] is CNN else None
        sim = make_simulation(config, dataset, parts, net)
        ends.append(everything(sim, play(sim, 3)[0]))
    assert furthest(ends[1], ends[0]) < (1e-5, "")


@pytest.mark.parametrize("method", ["fedavg", "fedbn"])
@pytest.mark.parametrize("unet", UNETS)
def test_stacked_is_sequential_with_masks(unet: str, method: str) -> None:
    """Scores of every pixel, the Dice loss over a client's own batch, and the clients' own figures."""
    words = {**UNETS[unet], "weights": "random"}
    dataset, parts = make_masked_dataset(SIZES, side=32)
    ends, figures = [], []
    for per_block in (1, len(SIZES)):
        config = make_config(
            model=words,
            algorithm={"name": method},
            clients={"count": len(SIZES), "per_block": per_block},
            data={"image_size": 32},
            evaluate={"clients": True, "batch_size": 3},
        )
        sim = make_simulation(config, dataset, parts, double_model(words, 32))
        state, records = play(sim, 2)
        ends.append(everything(sim, state))
        figures.append(records[-1].row["diagnostics"]["clients"]["test"]["dice_all"]["after"]["deciles"])
    assert furthest(ends[1], ends[0]) < (1e-5, "")
    assert figures[1] == pytest.approx(figures[0])


def test_batch_counters_and_statistics() -> None:
    """The counters of steps are averaged by samples and rounded; the statistics follow the clients' images."""
    sim = simulate(SIZES, len(SIZES), model=CNN)
    start = sim.initial_state()
    end, _ = play(sim, 1)
    counters = [name for name in end.params if name.endswith("num_batches_tracked")]
    steps = (40 * 3 + 6 + 2 + 16) / 64
    assert counters
    for name in counters:
        assert end.params[name].dtype == torch.int64
        assert end.params[name].item() == round(steps)
    means = [name for name in end.params if name.endswith("running_mean")]
    assert not any(torch.equal(end.params[name], start.params[name]) for name in means)


@pytest.mark.parametrize("clients", [(0,), (0, 1)])
def test_a_phase_that_freezes_statistics_uses_them_unchanged(clients: tuple[int, ...]) -> None:
    sim = simulate(SIZES, 2, model=CNN)
    state = sim.initial_state()
    before = {name: value.clone() for name, value in state.params.items()}
    phase = Phase("head only", frozenset({"head"}))
    update, _ = sim.trainer.train(clients, cohort_of(*clients), state, phase, [{} for _ in clients])
    assert set(update.after) == {"head.weight", "head.bias"}
    assert same_bits(state.params, before)
    alone = train_alone(sim, 0, state, phase).after
    assert furthest({n: v[0] for n, v in update.after.items()}, {n: v[0] for n, v in alone.items()}) < (1e-5, "")
