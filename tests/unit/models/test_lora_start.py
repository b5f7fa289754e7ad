"""How factors begin, beside peft's own on the same weights, and that what is exported loads there."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import LoraConfig, ModelConfig
from fedsim.errors import UserError
from fedsim.kernels.frozen import plain
from fedsim.models.build import build_models
from fedsim.models.encoders import library_model
from fedsim.models.export import export_peft
from fedsim.models.lora import LoraLayer, add_lora
from fedsim.models.lora_start import initial_factor
from fedsim.models.tuned_tower import TunedTower
from tests.helpers import TINY_VIT

D, WIDTH, R, ALPHA = 12, 10, 4, 6.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(D, WIDTH)
        self.qkv = nn.Linear(D, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc1(x)
        return out


def layer_of(target: str, init: str, **words: Any) -> tuple[LoraLayer, nn.Linear]:
    """A layer with LoRA, and what it was made of."""
    torch.manual_seed(0)
    root = nn.ModuleList([Block()])
    source = copy.deepcopy(root[0].get_submodule("fc1" if target == "fc1" else "qkv"))
    words = {"r": R, "lora_alpha": ALPHA, "target": (target,), "init_lora_weights": init, **words}
    (layer,) = add_lora(root, "blocks", LoraConfig(**words))
    assert isinstance(source, nn.Linear)
    return layer, source


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_is_taken_out_of_a_weight_is_what_peft_takes(init: str, use_rslora: bool) -> None:
    layer, source = layer_of("fc1", init, use_rslora=use_rslora)
    root = Block()
    root.fc1 = copy.deepcopy(source)
    config = peft.LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        target_modules=["fc1"],
        init_lora_weights=init,
        use_rslora=use_rslora,  # type: ignore[arg-type]  # peft 0.21 takes olora as well
    )
    theirs: Any = peft.get_peft_model(root, config).base_model.model.fc1
    assert layer.module.start is not None
    a, b = (factor[0] for factor in layer.module.start)
    their_a, their_b = theirs.lora_A["default"].weight.data, theirs.lora_B["default"].weight.data
    # A singular vector may be turned round on both sides.
    torch.testing.assert_close(b @ a, their_b @ their_a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.T @ a, their_a.T @ their_a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b @ b.T, their_b @ their_b.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain(layer.module.base.weight), theirs.base_layer.weight.data, rtol=1e-4, atol=1e-5)
    assert layer.module.scaling == pytest.approx(theirs.scaling["default"])
    assert not torch.allclose(plain(layer.module.base.weight), source.weight, atol=1e-2)


@pytest.mark.parametrize("init", ["true", "gaussian", "orthogonal", "pissa", "olora"])
@pytest.mark.parametrize("target", ["fc1", "v"])
def test_the_output_is_at_first_what_it_was(target: str, init: Any) -> None:
    """Of a fused layer the slices that are not targeted stay as they are."""
    layer, source = layer_of(target, True if init == "true" else init)
    x = torch.randn(5, 7, D)
    layer.bind(layer.initial(True if init == "true" else init, 0))
    with torch.no_grad():
        torch.testing.assert_close(layer.module(x), source(x), rtol=1e-4, atol=1e-5)
    if target == "v":
        assert torch.equal(plain(layer.module.base.weight)[: 2 * WIDTH], source.weight[: 2 * WIDTH])


def test_a_fused_layers_slices_are_matrices_of_their_own() -> None:
    layer, source = layer_of("v", "pissa")
    values = torch.linalg.svdvals(source.weight[2 * WIDTH :])
    left = torch.linalg.svdvals(plain(layer.module.base.weight)[2 * WIDTH :])
    torch.testing.assert_close(left[: WIDTH - R], values[R:], rtol=1e-4, atol=1e-5)


def test_a_rank_above_the_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.lora\.r: found 11 with init_lora_weights: pissa; expected at most 10"):
        layer_of("fc1", "pissa", r=11)


def test_gaussian() -> None:
    a = initial_factor("x.lora_a", (3, 8, 400), 0, "gaussian")
    assert a.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert a.mean().abs() < 0.01
    assert not initial_factor("x.lora_b", (3, 400, 8), 0, "gaussian").any()
    assert torch.equal(a, initial_factor("x.lora_a", (3, 8, 400), 0, "gaussian"))
    assert not torch.equal(a, initial_factor("x.lora_a", (3, 8, 400), 1, "gaussian"))


def test_orthogonal() -> None:
    """As peft's: A and B lie in two halves of the ranks, each of the size of normal numbers over 10."""
    a, b = (
        initial_factor(f"x.lora_{letter}", shape, 0, "orthogonal")
        for letter, shape in (("a", (2, 6, 300)), ("b", (2, 200, 6)))
    )
    torch.testing.assert_close(b @ a, torch.zeros(2, 200, 300), rtol=0, atol=1e-6)
    assert torch.linalg.matrix_rank(a).tolist() == torch.linalg.matrix_rank(b).tolist() == [3, 3]
    for factor in (a, b):
        # Six ranks hold three normal numbers.
        assert factor.square().mean().item() == pytest.approx(0.01 * 3 / 6, rel=0.1)


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", "pissa", "olora"])
def test_what_is_exported_gives_the_trained_outputs(
    tmp_path: Path, init: Any, use_rslora: bool, use_dora: bool
) -> None:
    """On the library's own weights, though those that trained lack what the factors began with."""
    words = {"init_lora_weights": init, "use_rslora": use_rslora, "use_dora": use_dora}
    lora = {"r": R, "lora_alpha": ALPHA, "target": ["q", "v", "fc1"], **words}
    config = ModelConfig.model_validate({**TINY_VIT, "lora": lora})
    model, _ = build_models(config, 14, ["a", "b"], 4, torch.device("cpu"))
    assert isinstance(model, TunedTower)
    params, stream = model.initial(4), torch.Generator().manual_seed(9)
    params = {
        name: value + 0.02 * torch.randn(value.shape, generator=stream) if "lora" in name else value
        for name, value in params.items()
    }
    export_peft(tmp_path, params, model)
    images = torch.rand(3, 3, 14, 14, generator=stream)
    pixels = (images - torch.tensor(model.encoder.mean).view(3, 1, 1)) / torch.tensor(model.encoder.std).view(3, 1, 1)
    base: Any = library_model(config, 14, seed=4).eval()
    with torch.no_grad():
        features = model.features(params, model.prefix(images)[None], training=False)[0]
        untouched = base(pixels)
        adapted: Any = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
        torch.testing.assert_close(adapted(pixels), features, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(untouched, features, atol=1e-2)
