"""What the server adds to frozen weights: in the layer's products, whichever computes them, and in an exported adapter.

Shapes: K clients, G adapted of S slices, R rank, D input width, O width of a slice.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from fedsim.kernels.frozen import plain
from fedsim.models.encoders import library_model
from fedsim.models.export import export_peft, with_shifts_in_factors
from fedsim.models.lora import LoRALinear
from fedsim.runfolder.adapter import export_adapter
from tests.helpers import IMAGE_SIZE, LORA, TINY_VIT, play, simulate
from tests.submodels import tiny_submodel

K, N, TOKENS, D, O, R, SCALING = 3, 2, 4, 8, 6, 2, 1.5  # noqa: E741  # as in the shapes' legend
SLICES = (0, 2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(dtype: torch.dtype = torch.float32) -> LoRALinear:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(D, 3 * O).to(dtype).requires_grad_(False), 3, SLICES, SCALING)
    layer.lora_a, layer.lora_b = drawn(K, 2, R, D, seed=1), drawn(K, 2, O, R, seed=2)
    return layer


def shifted_weight(layer: LoRALinear, shift: Tensor) -> Tensor:
    """W + s shift on the adapted slices, in the weights' type."""
    weight = plain(layer.base.weight).float().clone()
    for place, index in enumerate(SLICES):
        weight[index * O : (index + 1) * O] += SCALING * shift[place]
    return weight.to(layer.base.weight.dtype)


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("start", "stop"), [(0, 3), (0, 1), (1, 3), (1, 2)])
def test_it_is_a_layer_with_other_weights(
    dtype: torch.dtype, start: int, stop: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and all gradients are those of a layer that was made with the sum."""
    if not is_compiled:
        monkeypatch.setattr("fedsim.models.lora.compiled.suits", lambda *_: False)
    shift = drawn(2, O, D, seed=3)
    layer, other = layer_of(dtype), layer_of(dtype)
    source = nn.Linear(D, 3 * O).to(dtype)
    source.weight.data, source.bias = shifted_weight(layer, shift), layer.base.bias
    other.base = type(other.base)(source)
    layer.shift_by(shift)
    found = []
    for one in (layer, other):
        assert one.lora_a is not None
        assert one.lora_b is not None
        leaves = [drawn(K * N, TOKENS, D, seed=4), one.lora_a, one.lora_b]
        for leaf in leaves:
            leaf.requires_grad_()
        out = one.slices_of(leaves[0], start, stop)
        asked = leaves if (start, stop) != (1, 2) else leaves[:1]
        found.append([out, *torch.autograd.grad((out.float() * drawn(*out.shape, seed=5)).sum(), asked)])
    for value, expected in zip(*found, strict=True):
        assert torch.equal(value, expected)


def test_products_are_made_anew_when_the_shift_changes() -> None:
    layer, x = layer_of(), drawn(K * N, TOKENS, D)
    untouched = layer.product(0, 3)
    without = layer(x)
    shift = torch.zeros(2, O, D)
    layer.shift_by(shift)
    assert layer.product(0, 3) is untouched, "nothing was added"
    shift += 0.1
    layer.shift_by(shift)
    first = layer.product(0, 3)
    assert first is not untouched
    layer.shift_by(shift)
    assert layer.product(0, 3) is first
    torch.testing.assert_close(plain(first.weight), shifted_weight(layer, shift))
    layer.shift_by(2 * shift)
    torch.testing.assert_close(plain(layer.product(0, 3).weight), shifted_weight(layer, 2 * shift))
    layer.shift_by(None)
    assert layer.product(0, 3) is untouched
    assert torch.equal(layer(x), without)


def test_a_model_with_shifts_shares_the_network() -> None:
    sim = simulate([4], 1)
    other = sim.model.with_shifts()
    assert other.net is sim.model.net
    added = other.specs.keys() - sim.model.specs.keys()
    assert added == {f"blocks.{number}.attn.qkv.shift" for number in (0, 1)}
    assert all(other.specs[name].kind == "shift" and other.specs[name].shape == (3, 32, 32) for name in added)
    state = other.initial(0)
    assert not any(bool(state[name].any()) for name in added)
    assert simulate([4], 1, model={**sim.config.model.model_dump(), "lora": None, "train": "head"}).model.with_shifts()


def test_a_sub_model_has_them_too() -> None:
    words = {**TINY_VIT, "lora": LORA, "submodel": {"folder": tiny_submodel(48)}}
    sim = simulate([8, 8], 2, model=words, algorithm={"name": "flora"})
    names = [name for name, spec in sim.held.specs.items() if spec.kind == "shift"]
    assert names == [name for name, spec in sim.model.specs.items() if spec.kind == "shift"]
    end = play(sim, 1)[0]
    assert all(bool(end.params[name].any()) for name in names)


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_factors_take_a_shift_in(rank: int) -> None:
    shift = torch.stack([drawn(O, rank, seed=6) @ drawn(rank, D, seed=7), torch.zeros(O, D)])
    params = {"x.lora_a": drawn(2, R, D), "x.lora_b": drawn(2, O, R), "x.shift": shift, "head.bias": drawn(3)}
    found, added = with_shifts_in_factors(params)
    assert added == rank
    assert found["x.lora_a"].shape == (2, R + rank, D)
    expected = params["x.lora_b"] @ params["x.lora_a"] + shift
    torch.testing.assert_close(found["x.lora_b"] @ found["x.lora_a"], expected, rtol=1e-5, atol=1e-5)
    assert set(found) == {"x.lora_a", "x.lora_b", "head.bias"}


@pytest.mark.filterwarnings("error::UserWarning:peft")  # peft warns of missing or unknown factors
@pytest.mark.parametrize("start", [{}, {"init_lora_weights": "pissa"}, {"use_rslora": True}])
@pytest.mark.parametrize("name", ["flora", "fedex_lora", "fedmomentum"])
def test_an_exported_adapter_has_what_the_server_added(name: str, start: dict[str, Any], tmp_path: Path) -> None:
    model = {**TINY_VIT, "lora": {**LORA, **start}}
    sim = simulate([40, 30], 2, model=model, algorithm={"name": name}, train={"lr": 0.2, "epochs": 2})
    state = play(sim, 3)[0]
    export_adapter(tmp_path / "adapter", sim, state.params, {"round": 3, "val": {}, "test": {}})
    base: Any = library_model(sim.config.model, IMAGE_SIZE, sim.model.encoder.seed).eval()
    pixels = drawn(4, 3, IMAGE_SIZE, IMAGE_SIZE, seed=8)
    with torch.no_grad():
        library = base(pixels)
        ours = sim.model.features(state.params, sim.model.freeze(pixels)[None], training=False)[0]
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(pixels)
    torch.testing.assert_close(loaded, ours, rtol=1e-4, atol=1e-4)
    bare = {n: torch.zeros_like(v) if n.endswith("shift") else v for n, v in state.params.items()}
    with torch.no_grad():
        without = sim.model.features(bare, sim.model.freeze(pixels)[None], training=False)[0]
    assert (ours - without).norm() > 1e-3 * (ours - library).norm() > 0, "the shift counts"
    assert "The server has changed the frozen weights" in (tmp_path / "adapter/README.md").read_text()
    assert "frozen_weights" in (tmp_path / "adapter/about.json").read_text()


def test_without_a_shift_nothing_is_said(tmp_path: Path) -> None:
    sim = simulate([8], 1)
    model = SimpleNamespace(config=sim.config.model, encoder=sim.model.encoder)
    export_peft(tmp_path / "adapter", sim.initial_state().params, model)
    assert "changed the frozen" not in (tmp_path / "adapter/README.md").read_text()
