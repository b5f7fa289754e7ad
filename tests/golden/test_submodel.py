"""Sub-model construction and layer-level distillation against FedPFT's released code (fedpft_construct_*.npz).

The release's own tolerance is 9e-6 against float64, on hidden states of size up to 20.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsim.comm.group import open_group
from fedsim.config.distill import DistillSettings
from fedsim.config.words import ModelConfig
from fedsim.distill.distiller import Distiller, Pair, Step
from fedsim.models.encoders import load_encoder
from fedsim.models.specs import PROXIES
from fedsim.models.stacked import StackedModel
from fedsim.models.submodel.feed_forward import FeedForward, choose_neurons
from fedsim.models.submodel.model import HeldModel
from fedsim.models.tuned_tower import tune
from tests.golden.clip import FOLDER, assert_close, tags
from tests.unit.models.models_hugging_folders import write_tokenizer

FAMILIES = ("bert", "roberta", "vit")
CASES = ("retained_some", "retained_none")
# The library's names of a ViT's feed-forward at the time of the release.
OLD_VIT = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


class Golden:
    """A file's arrays, and the models and inputs that they are of."""

    def __init__(self, family: str, case: str, folder: Path) -> None:
        self.family, self.case = family, case
        with np.load(FOLDER / f"fedpft_construct_{family}.npz") as file:
            self.arrays = dict(file)
        self.write_model(folder)
        config = ModelConfig.model_validate({"name": f"hf:{folder}", "lora": {}})
        # The size of images, where it is asked for them.
        image_size = json.loads(str(self.arrays["fm_config"])).get("image_size", 0)
        encoder = load_encoder(config, image_size, ["x"], 0)
        assert encoder.tower is not None
        self.tower: Any = encoder.tower
        self.blocks: nn.ModuleList = encoder.tower.blocks
        retained, rank = self.get("layers_retained").tolist(), int(self.get("intermediate_rank"))
        self.chosen: dict[int, tuple[FeedForward, Tensor]] = choose_neurons(self.blocks, retained, rank)
        tensors = {
            f"blocks.{number}.{path}": value
            for number, (layer, neurons) in self.chosen.items()
            for path, value in layer.cut(neurons).items()
        }
        self.fixed = encoder.tower.stem(self.inputs()).detach()
        full = tune(config, encoder, 1, torch.device("cpu"))
        held = HeldModel(full, range(len(self.blocks)), tensors)
        self.pair = Pair(full, held, full.initial(0), held.initial(0))

    def write_model(self, folder: Path) -> None:
        weights = {name[3:]: torch.from_numpy(value) for name, value in self.arrays.items() if name.startswith("fm/")}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(str(self.arrays["fm_config"]))
        if self.family != "vit":
            write_tokenizer(folder)  # a text tower asks for one; the files hold ids

    def inputs(self) -> Tensor:
        if self.family == "vit":
            return torch.from_numpy(self.arrays["input/pixel_values"])
        ids, mask = (torch.from_numpy(self.arrays[f"input/{name}"]) for name in ("input_ids", "attention_mask"))
        return torch.stack([ids.where(mask > 0, -1), torch.zeros_like(ids)], 1)

    def get(self, name: str) -> Any:
        return torch.from_numpy(np.asarray(self.arrays[f"{self.case}/{name}"]))

    def embedded(self) -> Tensor:
        """The tokens before the first block."""
        tokens: Tensor = self.fixed if self.family == "vit" else self.tower.embed(self.fixed)[0]
        return tokens

    def check_ends(self, model: StackedModel, params: Mapping[str, Tensor], last: Tensor, start: str) -> None:
        """Compare what follows the blocks: the last hidden state, given the last block's, and the pooler's output.

        Our features are BERT's pooler output; those of the others are the first token, from which the pooler, which
        their classifiers have not, is made here.
        """
        expected = torch.from_numpy(self.arrays[f"{start}last_hidden_state"])
        assert_close(self.tower.rest.layernorm(last) if self.family == "vit" else last, expected)
        features = model.features(params, self.fixed[None], training=False)[0]
        if self.family != "bert":
            assert_close(features, expected[:, 0])
            weight, bias = (torch.from_numpy(self.arrays[f"fm/pooler.dense.{word}"]) for word in ("weight", "bias"))
            features = torch.tanh(features @ weight.T + bias)
        assert_close(features, torch.from_numpy(self.arrays[f"{start}pooler_output"]))

    def old_name(self, name: str) -> str:
        """A proxy's name in the files."""
        number, _, path = name.removeprefix(PROXIES).partition(".")
        for new, old in OLD_VIT.items() if self.family == "vit" else ():
            path = path.replace(new, old)
        return f"encoder.layer.{number}.{path}"

    def trained(self) -> set[str]:
        return {name for name in self.pair.held_params if name.startswith(PROXIES)}

    def distil(self, alpha: float, form: str) -> tuple[Step, dict[str, Tensor]]:
        """One step of plain SGD with all inputs: what it found, and the gradient, which is what it went."""
        words = {"alpha": alpha, "form": form, "epochs": 1.0, "optimizer": "sgd", "lr": 1.0, "warmup": 0.0}
        settings = DistillSettings.model_validate({**words, "clip_norm": None})
        source: Any = SimpleNamespace(fill=len, evaluation_batch=lambda places: self.fixed[places][None])
        before = self.pair.held_params
        everything = {name: torch.ones_like(before[name], dtype=torch.bool) for name in self.trained()}
        places = np.arange(len(self.fixed))
        distiller = Distiller(self.pair, everything, source, places, settings, open_group(), seed=0, purpose="golden")
        (step,) = distiller.steps()
        return step, {name: before[name] - after for name, after in distiller.tensors.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_construction_and_hidden_states(tmp_path: Path, family: str, case: str) -> None:
    golden = Golden(family, case, tmp_path)
    pair = golden.pair
    assert sorted(golden.chosen) == [n for n in range(len(golden.blocks)) if n not in golden.get("layers_retained")]
    for number, (layer, neurons) in golden.chosen.items():
        assert torch.equal(neurons, golden.get(f"layer{number}/neuron_retained"))
        bias = pair.held_params[f"{PROXIES}{number}.{layer.inner_path}.bias"]
        assert torch.equal(bias, golden.get(f"layer{number}/intermediate.dense.bias"))
    expected = torch.from_numpy(golden.arrays["fm_hidden_states"])
    with torch.no_grad():
        whole = pair.full.states(pair.full_params, golden.fixed)
        assert_close(torch.stack([golden.embedded(), *whole]), expected)
        golden.check_ends(pair.full, pair.full_params, whole[-1], "fm_")
        small = pair.held.states(pair.held_params, golden.fixed)
        assert_close(torch.stack([golden.embedded(), *small]), golden.get("sub_hidden_states"))
        golden.check_ends(pair.held, pair.held_params, small[-1], f"{case}/sub_")
        one = int(golden.get("single_layer"))
        assert_close(pair.held.blocks[one](expected[one]), golden.get("single_layer_out"))
        assert_close(pair.full.blocks[one](expected[one]), golden.get("single_layer_out_fm"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_distillation(tmp_path: Path, family: str, case: str) -> None:
    golden = Golden(family, case, tmp_path)
    theirs = {f"encoder.{str(name).removeprefix('encoder.')}" for name in golden.arrays[f"{case}/distill/trainable"]}
    assert {golden.old_name(name) for name in golden.trained()} == theirs
    stored = {name for name in golden.arrays if name.startswith(f"{case}/distill/grad_any_alpha/")}
    largest = max((np.abs(golden.arrays[name]).max() for name in stored), default=0.0)
    for word in tags(golden.arrays, rf"{case}/distill/loss_alpha(.+)"):
        step, gradient = golden.distil(float(word.replace("p", ".")), "released")
        expected = golden.get(f"distill/loss_alpha{word}").item()
        assert step.loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
        for name in gradient if stored else ():
            grad = golden.get(f"distill/grad_any_alpha/{golden.old_name(name)}")
            assert_close(gradient[name], grad, name, scale=largest)
    assert len(stored) == (len(golden.trained()) if case == "retained_some" else 0)


def test_the_paper_form_gives_the_product_of_the_weights_its_gradient(tmp_path: Path) -> None:
    golden = Golden("vit", "retained_some", tmp_path)
    found = {form: golden.distil(1.0, form)[1] for form in ("paper", "released")}
    # d/dW1 of |W2 W1 - P|^2 / |P|^2, as one of the compressed layers in their mean.
    number, (layer, neurons) = next(iter(golden.chosen.items()))
    cut = layer.cut(neurons)
    inner, outer = (f"{path}.weight" for path in (layer.inner_path, layer.outer_path))
    whole = layer.product().detach()
    error = cut[outer] @ cut[inner] - whole
    by_hand = 2 * cut[outer].T @ error / whole.square().sum() / len(golden.chosen)
    difference = found["paper"][f"{PROXIES}{number}.{inner}"] - found["released"][f"{PROXIES}{number}.{inner}"]
    torch.testing.assert_close(difference, by_hand, rtol=1e-4, atol=1e-6)
    bias = f"{PROXIES}{number}.{layer.inner_path}.bias"
    torch.testing.assert_close(found["paper"][bias], found["released"][bias])


def test_the_released_form_counts_padding_and_the_paper_s_does_not(tmp_path: Path) -> None:
    golden = Golden("bert", "retained_some", tmp_path)
    golden.fixed[0, 0, -2:] = -1
    pair = golden.pair
    with torch.no_grad():
        whole = pair.full.states(pair.full_params, golden.fixed)
        small = pair.held.states(pair.held_params, golden.fixed)
    every = torch.ones_like(golden.fixed[:, 0], dtype=torch.bool)
    for form, counted in (("released", every), ("paper", golden.fixed[:, 0] >= 0)):
        errors = []
        for layer in golden.chosen:
            wrong, size = ((state[counted] ** 2).sum() for state in (small[layer] - whole[layer], whole[layer]))
            errors.append(wrong / size)
        assert golden.distil(0.0, form)[0].states == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
