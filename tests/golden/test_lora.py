"""LoRA layers, loss, gradients and metrics against the numbers of DEeR's released code (deer_lora.npz).

The release's own tolerance is 8e-6 (gradients 3e-5) against float64; ten times that for our float32.
"""

import numpy as np
import pytest
import torch

from algorithms.deer import DEeR
from algorithms.ffa_lora import FFALoRA
from fedsim.models.lora import initial_factor
from fedsim.models.stacked import StackedModel
from fedsim.tasks import classification_metrics, cross_entropy
from tests.golden.clip import FOLDER, as_params, below, build, build_tower, load

GOLDEN = load("deer_lora")
BASE = below(GOLDEN, "base/")
RTOL = ATOL = 8e-5
GRAD_TOL = 3e-4


def golden_model(r: int) -> StackedModel:
    return build(BASE, GOLDEN["loss/text_features"], r)


def test_base_tower() -> None:
    tower = build_tower(BASE)
    with torch.no_grad():
        found = {
            "base_out": tower(GOLDEN["x"]),
            "base_qkv_out": tower.blocks[0].attn.qkv(GOLDEN["tokens"]),
            "base_block0_out": tower.blocks[0](GOLDEN["tokens"]),
        }
    for name, value in found.items():
        torch.testing.assert_close(value, GOLDEN[name], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("r", [4, 2])
def test_outputs(r: int) -> None:
    model = golden_model(r)
    for layer in model.lora_layers:
        assert layer.module.scaling == GOLDEN[f"r{r}/scaling"]
        layer.bind(as_params(below(GOLDEN, f"r{r}/lora/")))
    block = model.net.blocks[0]
    with torch.no_grad():
        found = {
            "qkv_out": block.attn.qkv(GOLDEN["tokens"]),
            "block0_out": block(GOLDEN["tokens"]),
            "out": model.net(GOLDEN["x"]),
        }
    for name, value in found.items():
        torch.testing.assert_close(value, GOLDEN[f"r{r}/{name}"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("r", [4, 2])
def test_start(r: int) -> None:
    model = golden_model(r)
    params = model.initial(seed=0)
    torch.testing.assert_close(params["logit_scale"], GOLDEN[f"r{r}/logit_scale_init"], rtol=1e-7, atol=0)
    for layer in model.lora_layers:
        layer.bind(params)
    with torch.no_grad():
        out = model.net(GOLDEN["x"])
    torch.testing.assert_close(out, GOLDEN[f"r{r}/out_at_init"], rtol=RTOL, atol=ATOL)

    bound = GOLDEN[f"r{r}/A_init_bound"].item()
    shape = (3, r, GOLDEN[f"r{r}/A_init_sample"].shape[-1])
    drawn = torch.cat([initial_factor("x.lora_a", shape, seed).flatten() for seed in range(100)])
    assert drawn.abs().max() <= bound
    assert drawn.abs().max() > 0.999 * bound
    # The mean square of a uniform variable is bound^2 / 3; the release's few draws lie around it as well.
    assert drawn.square().mean().item() == pytest.approx(bound**2 / 3, rel=0.05)
    assert GOLDEN[f"r{r}/A_init_sample"].square().mean().item() == pytest.approx(bound**2 / 3, rel=0.3)
    assert GOLDEN[f"r{r}/B_init_all_zero"]
    assert all(not params[name].any() for name in params if name.endswith("lora_b"))


@pytest.mark.parametrize("r", [4, 2])
def test_what_trains(r: int) -> None:
    specs = golden_model(r).specs
    with np.load(FOLDER / "deer_lora.npz") as file:
        released = {key: set(file[f"r{r}/{key}"].tolist()) for key in ("trainable", "trainable_FFA")}

    def trained(kinds: frozenset[str]) -> set[str]:
        """Which of the release's names train, with ours of three slices in place of the release's three."""
        ours = {name for name, spec in specs.items() if spec.kind in kinds}
        factors = {name: torch.zeros(1, 1) for name in released["trainable"] if "lora_" in name}
        every = {"logit_scale", *as_params(factors)}
        assert ours <= every
        return {
            name
            for name in released["trainable"]
            if name in ours or any(_is_slice_of(name, ours_name) for ours_name in ours)
        }

    (ffa,) = FFALoRA(None, specs).phases(1)
    phase_b, phase_a = DEeR(None, specs).phases(1)
    assert trained(ffa.kinds) == trained(phase_b.kinds) == released["trainable_FFA"]
    assert trained(phase_a.kinds) == {n for n in released["trainable"] if "linear_b" not in n}
    assert trained(phase_a.kinds | phase_b.kinds) == released["trainable"]


def _is_slice_of(released: str, ours: str) -> bool:
    layer, _, factor = ours.rpartition(".lora_")
    return f".{layer}.linear_{factor}_" in released


def test_loss_and_gradients() -> None:
    model = golden_model(4)
    start = as_params({**below(GOLDEN, "loss/lora/"), "logit_scale": GOLDEN["r4/logit_scale_init"]})
    params = {name: value[None].clone().requires_grad_() for name, value in start.items()}
    labels = GOLDEN["loss/labels"][None]
    logits = model.forward(params, model.prefix(GOLDEN["x"])[None], training=True)
    weights = torch.full(labels.shape, 1 / labels.shape[1])
    (loss,) = cross_entropy(logits, labels, weights)
    loss.backward()

    for layer in model.lora_layers:
        layer.bind(start)
    with torch.no_grad():
        torch.testing.assert_close(model.net(GOLDEN["x"]), GOLDEN["loss/features"], rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(logits[0], GOLDEN["loss/logits"], rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(loss, GOLDEN["loss/loss"], rtol=RTOL, atol=ATOL)
    expected = as_params(below(GOLDEN, "loss/grad/"))
    assert expected.keys() == params.keys()
    for name, value in expected.items():
        assert params[name].grad is not None
        torch.testing.assert_close(params[name].grad[0], value, rtol=GRAD_TOL, atol=GRAD_TOL)


def test_metrics() -> None:
    # The golden scores are probabilities; ours are taken before the softmax, which undoes the logarithm.
    found = classification_metrics(GOLDEN["metrics/scores"].double().log(), GOLDEN["metrics/gt"])
    names = ("accuracy", "recall", "precision", "f1", "auroc")
    for name, value in zip(names, [*GOLDEN["metrics/acc_recall_prec_f1"], GOLDEN["metrics/auc"]], strict=True):
        assert found[name] == pytest.approx(value.item(), abs=1e-12)
