"""Sub-model construction and layer-level distillation against FedPFT's released code (fedpft_construct_*.npz).

The release's own tolerance is 9e-6 against float64, on hidden states of size up to 20.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedsim.config import ModelConfig
from fedsim.models.encoders import load_encoder
from fedsim.models.tower import Tower
from fedsim.submodel import FeedForward, compress, distillation_loss
from tests.unit.models_hugging_folders import write_tokenizer

FOLDER = Path(__file__).parent
FAMILIES = ("bert", "roberta", "vit")
CASES = ("retained_some", "retained_none")
ALPHAS = {"0": 0.0, "0p01": 0.01, "1": 1.0}
CLOSE = {"rtol": 1e-5, "atol": 1e-4}
# The library's names of a ViT's feed-forward at the time of the release.
OLD_VIT = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


def load(family: str, folder: Path) -> tuple[dict[str, Any], Tower, Tensor]:
    """Return the file's arrays, the whole model as a tower, and its inputs, through a folder as users have it."""
    arrays = dict(np.load(FOLDER / f"fedpft_construct_{family}.npz"))
    weights = {name[3:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("fm/")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(str(arrays["fm_config"]))
    if family == "vit":
        inputs = torch.from_numpy(arrays["input/pixel_values"])
    else:
        write_tokenizer(folder)  # a text tower asks for one; the files hold ids
        ids, mask = (torch.from_numpy(arrays[f"input/{name}"]) for name in ("input_ids", "attention_mask"))
        inputs = torch.stack([ids.where(mask > 0, -1), torch.zeros_like(ids)], 1)
    tower = load_encoder(ModelConfig(name=f"hf:{folder}", train="all"), 16, ["x"], 0).tower
    assert tower is not None
    return arrays, tower, inputs


def old_name(path: str, family: str) -> str:
    """A parameter's name in the files, from its path in a block."""
    for new, old in OLD_VIT.items() if family == "vit" else ():
        path = path.replace(new, old)
    return path


def sub_model(arrays: dict[str, Any], tower: Tower, case: str) -> tuple[Tower, dict[int, tuple[FeedForward, Tensor]]]:
    small = copy.deepcopy(tower)
    retained = arrays[f"{case}/layers_retained"].tolist()
    return small, compress(small.blocks, retained, int(arrays[f"{case}/intermediate_rank"]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_construction_and_hidden_states(tmp_path: Path, family: str, case: str) -> None:
    arrays, tower, inputs = load(family, tmp_path)
    small, kept = sub_model(arrays, tower, case)
    assert sorted(kept) == [n for n in range(4) if n not in arrays[f"{case}/layers_retained"]]
    for number, (layer, neurons) in kept.items():
        np.testing.assert_array_equal(neurons, arrays[f"{case}/layer{number}/neuron_retained"])
        np.testing.assert_array_equal(
            layer.inner.bias.detach(), arrays[f"{case}/layer{number}/intermediate.dense.bias"]
        )
    with torch.no_grad():
        for model, name in ((tower, "fm_hidden_states"), (small, f"{case}/sub_hidden_states")):
            states = torch.stack(model.states(model.stem(inputs)))
            torch.testing.assert_close(states, torch.from_numpy(arrays[name][1:]), **CLOSE)
        one = int(arrays[f"{case}/single_layer"])
        before = torch.from_numpy(arrays["fm_hidden_states"][one])
        alone = torch.from_numpy(arrays[f"{case}/single_layer_out"])
        torch.testing.assert_close(small.blocks[one](before), alone, **CLOSE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_distillation(tmp_path: Path, family: str, case: str) -> None:
    arrays, tower, inputs = load(family, tmp_path)
    small, kept = sub_model(arrays, tower, case)
    student = {number: layer for number, (layer, _) in kept.items()}
    root = "layer" if family == "vit" else "encoder.layer"
    trained = {
        f"{root}.{number}.{old_name(path, family)}": parameter
        for number, layer in student.items()
        for path, parameter in layer.trained().items()
    }
    theirs = [
        name.removeprefix("encoder.") if family == "vit" else name for name in arrays[f"{case}/distill/trainable"]
    ]
    assert sorted(trained) == sorted(theirs)
    states = tower.states(tower.stem(inputs)), small.states(small.stem(inputs))
    for word, alpha in ALPHAS.items():
        loss = distillation_loss(tower.blocks, student, *states, alpha, "released")
        expected = torch.from_numpy(arrays[f"{case}/distill/loss_alpha{word}"])
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
        if case == "retained_some":
            grads = torch.autograd.grad(loss, list(trained.values()), retain_graph=True)
            for name, grad in zip(trained, grads, strict=True):
                full = name if f"{case}/distill/grad_any_alpha/{name}" in arrays else f"encoder.{name}"
                expected = torch.from_numpy(arrays[f"{case}/distill/grad_any_alpha/{full}"])
                torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


def test_the_paper_form_gives_the_product_of_the_weights_its_gradient(tmp_path: Path) -> None:
    arrays, tower, inputs = load("bert", tmp_path)
    small, kept = sub_model(arrays, tower, "retained_some")
    student = {number: layer for number, (layer, _) in kept.items()}
    states = tower.states(tower.stem(inputs)), small.states(small.stem(inputs))
    weight, bias = kept[1][0].inner.weight, kept[1][0].inner.bias
    found = {
        form: torch.autograd.grad(
            distillation_loss(tower.blocks, student, *states, 1.0, form),  # type: ignore[arg-type]  # a literal
            [weight, bias],
            retain_graph=True,
        )
        for form in ("paper", "released")
    }
    # d/dW1 of |W2 W1 - P|^2 / |P|^2, halved by the mean over the two compressed layers.
    inner, outer = kept[1][0].inner.weight.detach(), kept[1][0].outer.weight.detach()
    whole = tower.blocks[1].output.dense.weight.detach() @ tower.blocks[1].intermediate.dense.weight.detach()
    by_hand = outer.T @ (outer @ inner - whole) / whole.square().sum()
    torch.testing.assert_close(found["paper"][0] - found["released"][0], by_hand, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["paper"][1], found["released"][1])
