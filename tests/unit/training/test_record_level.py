"""DP-SGD inside clients: every image's gradient by itself, cut, added up, and noise on the sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor

import fedsim.client
from fedsim.algorithms.base import Algorithm, GradOf, ServerState, Step, Tensors
from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.kernels import build
from fedsim.models.specs import ParamSpec
from fedsim.simulation import Simulation
from fedsim.training.steps import plan_steps
from tests.helpers import (
    LORA,
    TINY_VIT,
    cohort_of,
    everything,
    furthest,
    make_config,
    make_dataset,
    make_masked_dataset,
    make_simulation,
    make_volumes,
    play,
    simulate,
    tiny_submodel,
    with_method,
    with_params,
)
from tests.unit.inputs.test_texts import make_texts
from tests.unit.models.models_clip_folders import write_clip
from tests.unit.models.models_hugging_folders import write_hugging

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


def pictures(sizes: Sequence[int], side: int) -> tuple[Dataset, list[np.ndarray]]:
    dataset, parts = make_dataset(sizes)
    larger = F.interpolate(dataset.images.float(), side).to(torch.uint8)
    return replace(dataset, images=larger), parts


@dataclass(frozen=True)
class Case:
    """A model, its data, and how it is written to a folder."""

    model: dict[str, Any]
    data: Callable[[], tuple[Dataset, list[np.ndarray]]] = lambda: make_dataset(SIZES)
    write: Callable[[Path], object] | None = None
    side: int = 14
    algorithm: str = "fedavg"


CLIP = {"name": "open_clip:local-dir:{}", "train_logit_scale": True, "classifier": "text"}
CASES = {
    "qkv": Case({**TINY_VIT, "lora": LORA}),
    "q and v": Case({**TINY_VIT, "lora": {**LORA, "target": ["q", "v"]}}),
    "all linear layers": Case({**TINY_VIT, "lora": {**LORA, "r": 3, "target": ["q", "k", "v", "proj", "fc1", "fc2"]}}),
    "head only": Case({**TINY_VIT, "train": "head"}),
    "volumes": Case({**TINY_VIT, "lora": LORA}, lambda: make_volumes(SIZES)),
    "volumes, head only": Case({**TINY_VIT, "train": "head"}, lambda: make_volumes(SIZES)),
    "B only": Case({**TINY_VIT, "lora": LORA}, algorithm="ffa_lora"),
    "open_clip, text": Case(
        {**CLIP, "lora": {**LORA, "target": ["q", "v", "c_fc", "c_proj"]}},
        lambda: pictures(SIZES, 32),
        write_clip,
        32,
    ),
    "Hugging Face's ViT": Case(
        {"name": "hf:{}", "lora": {**LORA, "target": ["q", "k", "v", "fc1", "fc2"]}},
        lambda: pictures(SIZES, 16),
        lambda path: write_hugging(path, "vit"),
        16,
    ),
    "BERT": Case({"name": "hf:{}", "lora": LORA}, lambda: make_texts(SIZES, True, False), write_hugging, 28),
    "BERT, numbers": Case({"name": "hf:{}", "lora": LORA}, lambda: make_texts(SIZES, True, True), write_hugging, 28),
}
PATHS = pytest.mark.parametrize(
    "path",
    [pytest.param("compiled", marks=pytest.mark.skipif(build.problem() is not None, reason="no C++")), "pytorch"],
)


def use(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "pytorch":
        monkeypatch.setattr("fedsim.kernels.lora.suits", lambda *_: False)


def simulation_of(case: Case, folder: Path, per_block: int, bound: float, **train: Any) -> Simulation:
    dataset, parts = case.data()
    if case.write is not None and not any(folder.iterdir()):
        case.write(folder)
    config = make_config(
        model={**case.model, "name": case.model["name"].format(folder)},
        data={"name": "rated_sentences" if dataset.texts else "digits", "image_size": case.side},
        clients={"count": len(parts), "per_block": per_block},
        train={"batch_size": 3, "momentum": 0.0, "lr": 0.02, "epochs": None, "steps": 3, **train},
        evaluate={"best_by": "loss"},
        algorithm={"name": case.algorithm},
        privacy=protected(bound),
    )
    return make_simulation(config, dataset, parts)


@PATHS
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_sum_of_gradients_cut_one_by_one(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(path, monkeypatch)
    case, clients = CASES[name], (0, 1, 2)
    sim = simulation_of(case, tmp_path, 3, 1.0)
    state = away_from_zero(sim, sim.initial_state())
    kinds = sim.algorithm.phases(1)[0].kinds
    trained = {n: v for n, v in state.params.items() if sim.held.specs[n].kind in kinds}
    own = [{n: g[n] for n in trained} for g in one_by_one(sim, state.params, sim.parts[0])]
    bound = float(np.median([norm(each) for each in own]))
    sim = simulation_of(case, tmp_path, 3, bound)
    shares = []
    seen = gradients(sim, clients, state)
    for step, (params, found) in enumerate(seen):
        for row, drawn in enumerate(batches(sim, clients)):
            here = {**state.params, **{n: v[row] for n, v in params.items()}}
            images = [{n: each[n] for n in params} for each in one_by_one(sim, here, drawn[step])]
            factors = [min(1.0, bound / norm(each)) for each in images]
            expected = {n: torch.zeros_like(v[row]) for n, v in params.items()}
            for each, factor in zip(images, factors, strict=True):
                expected = {n: v + factor * each[n] / min(3, SIZES[row]) for n, v in expected.items()}
            # Of what is added up, since images may all but cancel each other.
            size = sum(factor * norm(each) for each, factor in zip(images, factors, strict=True)) / min(3, SIZES[row])
            assert norm({n: v[row] - expected[n] for n, v in found.items()}) <= 1e-5 * size
            shares += factors
    assert len(seen) == 3
    assert min(shares) < 1
    assert max(shares) == 1


@PATHS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nobodys_share_exceeds_the_bound(precision: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of one image, whose gradient is then their step's."""
    use(path, monkeypatch)
    model = {**TINY_VIT, "lora": LORA, "precision": precision}
    bound = 1e-3
    sim = simulate([1] * 20, 20, model=model, privacy=protected(bound), train=STILL)
    state = away_from_zero(sim, sim.initial_state())
    ((_, found),) = gradients(sim, range(20), state)
    for row in range(20):
        size = norm({name: value[row] for name, value in found.items()})
        assert bound * (1 - 1e-5) < size <= bound


@PATHS
def test_bf16_cuts_nearly_what_fp32_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(path, monkeypatch)
    found = []
    for precision in ("fp32", "bf16"):
        model = {**TINY_VIT, "lora": LORA, "precision": precision}
        sim = simulate(SIZES, 3, model=model, privacy=protected(0.5), train={**STILL, "batch_size": 3})
        found.append(gradients(sim, (0, 1, 2), away_from_zero(sim, sim.initial_state()))[0][1])
    assert furthest(found[1], found[0])[0] < 0.1


METHODS = {
    "fedavg": {},
    "deer": {},
    "dp_dylora": {},
    "ffa_lora": {},
    "rolora": {},
    "fedsa_lora": {},
    "sfed_lora": {},
    "scaffold": {"train": {"momentum": 0.0, "batch_size": 4}},
    "feddyn": {},
    "fedadam": {},
    "fednova": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_block_gives_what_its_clients_give_one_by_one(method: str) -> None:
    sizes = (12, 5, 0, 2, 7)
    sections = {"train": {"batch_size": 4, "epochs": 2}, **METHODS[method]}
    sections |= {"algorithm": {"name": method}, "privacy": protected(0.5, 0.7), "data": {"augment": ["flip", "crop"]}}
    sims = [simulate(sizes, size, **sections) for size in (1, 2, 5)]
    ends = [everything(sim, play(sim, 2)[0]) for sim in sims]
    limit = 1e-4 if method == "scaffold" else 1e-5
    assert furthest(ends[1], ends[0]) < (limit, "")
    assert furthest(ends[2], ends[0]) < (limit, "")
    assert sims[2].trainer.agreement is not None


@PATHS
@pytest.mark.parametrize("target", [["q", "k", "v"], ["q", "k", "v", "proj", "fc1", "fc2"]], ids=["qkv", "all"])
def test_images_that_are_nobodys_count_nothing(target: list[str], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 24 expected images takes them by threes; clients one by one as they come."""
    use(path, monkeypatch)
    model = {**TINY_VIT, "lora": {**LORA, "target": target}}
    words = {"model": model, "train": {"batch_size": 8}, "privacy": protected(0.5, 0.7)}
    one, block = (simulate([40, 30, 25], size, **words) for size in (1, 3))
    sizes = [sum(map(len, step)) for step in zip(*batches(block, (0, 1, 2)), strict=False)]
    assert any(size % 3 for size in sizes)
    assert furthest(play(block, 2)[0].params, play(one, 2)[0].params) < (1e-5, "")


def test_blocks_change_no_bit_of_the_noise() -> None:
    """Steps whose Poisson sample is empty are nothing but noise."""
    found = []
    for clients in ([(0,), (1,), (2,)], [(0, 1), (2,)], [(0, 1, 2)]):
        sim = simulate(
            [30, 30, 30], 3, privacy=protected(0.5, 1.0), train={**STILL, "batch_size": 1, "steps": 12, "epochs": None}
        )
        drawn = batches(sim, (0, 1, 2))
        own: dict[tuple[int, int], Tensor] = {}
        for block in clients:
            for step, (_, grads) in enumerate(gradients(sim, block, sim.initial_state())):
                for row, client in enumerate(block):
                    if not len(drawn[client][step]):
                        own[client, step] = torch.cat([value[row].flatten() for value in grads.values()])
        found.append(own)
    assert len({client for client, _ in found[0]}) == 3
    assert all(one.keys() == found[0].keys() for one in found)
    assert all(torch.equal(one[place], value) for one in found for place, value in found[0].items())
    distinct = {tuple(value[:4].tolist()) for value in found[0].values()}
    assert len(distinct) == len(found[0]), "each step of each client draws its own"


def test_noise_is_what_it_is_said_to_be() -> None:
    """A normal distribution of z C over the expected batch size, whatever was drawn."""
    bound, multiplier, size = 0.3, 1.7, 4
    grads = {}
    for z in (0.0, multiplier):
        train = {**STILL, "batch_size": size, "steps": 8, "epochs": None}
        sim = simulate([10, 10], 2, privacy=protected(bound, z), train=train)
        steps = gradients(sim, (0, 1), sim.initial_state())
        grads[z] = torch.cat([value.flatten() for _, found in steps for value in found.values()])
    noise = (grads[multiplier].double() - grads[0.0].double()).numpy()
    assert len(noise) > 10_000
    scale = multiplier * bound / size
    assert noise.std() == pytest.approx(scale, rel=0.02)
    assert kstest(noise / scale, "norm").pvalue > 0.01


def test_without_noise_and_bound_it_is_plain_training_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"train": {"batch_size": 4, "epochs": 2}, "model": {**TINY_VIT, "lora": LORA}}
    private = simulate([12, 5, 7], 3, privacy=protected(1e6), **words)
    expected, rows = play(private, 3)
    plan = fedsim.client.plan_steps
    monkeypatch.setattr(fedsim.client, "plan_steps", lambda *args, **_: plan(*args, poisson=True))
    found, plain_rows = play(simulate([12, 5, 7], 3, **words), 3)
    assert furthest(found.params, expected.params) < (1e-6, "")
    for one, other in zip(rows, plain_rows, strict=True):
        assert one.row["train_loss"] == pytest.approx(other.row["train_loss"], rel=1e-6)


def test_an_empty_batch_still_gets_noise_and_counts_as_a_step() -> None:
    train = {"lr": 0.1, "momentum": 0.0, "batch_size": 1, "steps": 6, "epochs": None}
    sim = simulate([40], 1, privacy=protected(0.5, 1.0), train=train)
    drawn = batches(sim, (0,))[0]
    assert any(not len(places) for places in drawn)
    assert any(len(places) > 1 for places in drawn)
    update, losses = sim.trainer.train((0,), cohort_of(0), sim.initial_state(), sim.algorithm.phases(1)[0], [{}])
    assert update.num_steps.tolist() == [6]
    assert torch.isfinite(losses).all()
    for step, (_, grads) in enumerate(gradients(sim, (0,), sim.initial_state())):
        assert norm(grads) > 0, step


RESNET = {"name": "timm:test_resnet", "weights": "random"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "BatchNorm": ({"model": {**RESNET, "train": "all"}}, "normalises an image by the others"),
    "amplitudes": ({"model": {**TINY_VIT, "lora": LORA, "amplitude_norm": {}}}, "normalises an image by the others"),
    "whole network": ({"model": {**TINY_VIT, "train": "all"}}, "expected model.train: lora or head"),
    "sub-model": (
        {"model": {**TINY_VIT, "lora": LORA, "submodel": {"folder": tiny_submodel(48)}}},
        "found record with model.submodel",
    ),
    "prrfl": ({"algorithm": {"name": "prrfl", "decide_on": "train"}}, "which scores its models on the images"),
    "fedprox": ({"algorithm": {"name": "fedprox"}}, "FedProx.loss with more in it than the task's"),
    "moon": ({"algorithm": {"name": "moon"}}, "MOON.loss with more in it"),
    "fedsam": ({"algorithm": {"name": "fedsam"}}, "FedSAM.gradient: found a second call of grad_of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_protected_is_refused_in_one_line(case: str) -> None:
    sections, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        play(simulate(SIZES, 3, privacy=protected(1.0, 1.0), **sections), 1)
    assert "\n" not in str(caught.value)


def test_masks_are_refused() -> None:
    unet = {"name": "monai:unet", "weights": "random", "options": {"channels": [4, 8], "strides": [2]}}
    config = make_config(model=unet, data={"image_size": 16}, clients={"count": 1}, privacy=protected(1.0, 1.0))
    with pytest.raises(
        UserError, match=r"privacy\.mechanism: found record with monai:unet that trains .*one answer each"
    ):
        make_simulation(config, *make_masked_dataset([4], 16))


@pytest.mark.parametrize("train", [{"clip_norm": 1.0}, {"shuffle": False}])
def test_training_keys_without_effect_are_refused(train: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(train))}: found .* with privacy.mechanism: record"):
        make_config(train=train, privacy=protected(1.0, 1.0))


@pytest.mark.parametrize("settings", [{"name": "fedprox", "mu": 0.0}, {"name": "fedsam", "radius": 0.0}])
def test_methods_at_a_setting_that_leaves_the_gradient_alone_pass(settings: dict[str, Any]) -> None:
    neutral, _ = play(simulate(SIZES, 3, privacy=protected(1.0, 1.0), algorithm=settings), 1)
    fedavg, _ = play(simulate(SIZES, 3, privacy=protected(1.0, 1.0)), 1)
    assert furthest(neutral.params, fedavg.params) == (0.0, max(neutral.params))


def test_poisson_samples_by_hand() -> None:
    """Rates as asked for, each image by itself, in any company the same."""
    parts = [np.arange(100, 140), np.arange(7), np.array([3])]
    train = make_config(train={"batch_size": 10, "epochs": None, "steps": 500}).train
    steps = plan_steps(parts, [0, 1, 2], train, 0, 1, "train", poisson=True)
    sizes = (steps.weights > 0).sum(2)
    assert sizes[0].double().mean().item() == pytest.approx(10, rel=0.03)
    assert sizes[0].double().var().item() == pytest.approx(40 * 0.25 * 0.75, rel=0.15)
    assert set(sizes[1].tolist()) == {7}, "a client with fewer images than a batch has all of them in each"
    assert set(sizes[2].tolist()) == {1}
    assert sorted(set(steps.weights.flatten().tolist())) == pytest.approx([0.0, 1 / 10, 1 / 7, 1.0])
    counts = np.bincount(steps.index[0][steps.weights[0] > 0], minlength=140)[100:]
    assert counts.min() > 500 * 0.25 * 0.7
    assert counts.max() < 500 * 0.25 * 1.3
    alone = plan_steps(parts, [1], train, 0, 1, "train", poisson=True)
    assert torch.equal(alone.index[0, :, :7], steps.index[1, :, :7])
    assert steps.num_steps.tolist() == [500] * 3
    other = plan_steps(parts, [0], train, 0, 2, "train", poisson=True)
    assert not np.array_equal(*(plan.index[0][plan.weights[0] > 0] for plan in (steps, other)))


def test_a_specs_kind_that_nobody_knows_is_refused() -> None:
    sim = simulate(SIZES, 3)
    sim.held.specs["new"] = ParamSpec((2,), "count")
    try:
        with pytest.raises(UserError, match="that trains new"):
            simulate(SIZES, 3, privacy=protected(1.0, 1.0))
    finally:
        del sim.held.specs["new"]
