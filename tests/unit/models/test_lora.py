"""LoRA layers, stacked or shared, against dense weights computed one client at a time."""

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import LoraConfig
from fedsim.errors import UserError
from fedsim.kernels.frozen import plain
from fedsim.models.lora import LoRALinear, add_lora
from fedsim.models.lora_start import initial_factor

K, N, TOKENS, D, OUT, R = 3, 2, 4, 6, 5, 2
SCALING = 1.5


def dense(layer: LoRALinear, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One client: (W + scaling * B A on the targeted slices) x + bias."""
    weight = plain(layer.base.weight).clone()
    for place, slice_ in enumerate(layer.slices):
        weight[slice_ * OUT : (slice_ + 1) * OUT] += SCALING * b[place] @ a[place]
    return x @ weight.T + layer.base.bias.detach()


@pytest.mark.parametrize("a_is_shared", [False, True])
@pytest.mark.parametrize("b_is_shared", [False, True])
@pytest.mark.parametrize(("num_slices", "slices"), [(3, (0, 1, 2)), (3, (0, 2)), (3, (1,)), (1, (0,))])
def test_against_dense(num_slices: int, slices: tuple[int, ...], a_is_shared: bool, b_is_shared: bool) -> None:
    stream = torch.Generator().manual_seed(0)
    layer = LoRALinear(nn.Linear(D, num_slices * OUT), num_slices, slices, SCALING)
    a = torch.randn(K, len(slices), R, D, generator=stream)
    b = torch.randn(K, len(slices), OUT, R, generator=stream)
    num_clients = 1 if a_is_shared and b_is_shared else K
    x = torch.randn(num_clients * N, TOKENS, D, generator=stream)
    layer.lora_a = a[0] if a_is_shared else a
    layer.lora_b = b[0] if b_is_shared else b
    with torch.no_grad():
        found = layer(x)
    assert found.shape == (num_clients * N, TOKENS, num_slices * OUT)
    for client in range(num_clients):
        own = slice(client * N, (client + 1) * N)
        own_a, own_b = a[0 if a_is_shared else client], b[0 if b_is_shared else client]
        torch.testing.assert_close(found[own], dense(layer, x[own], own_a, own_b), rtol=1e-5, atol=1e-5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)
        self.proj = nn.Linear(D, D)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(D, 8)})


def test_targets() -> None:
    root = nn.ModuleList([Block(), Block()])
    layers = add_lora(root, "blocks", LoraConfig(r=R, lora_alpha=3.0, target=("v", "fc1", "q")))
    assert [layer.path for layer in layers] == [f"blocks.{n}.{word}" for n in (0, 1) for word in ("qkv", "mlp.fc1")]
    fused, plain = layers[:2]
    assert fused.module.slices == (0, 2)
    assert fused.module.scaling == SCALING
    assert fused.shapes == {"blocks.0.qkv.lora_a": (2, R, D), "blocks.0.qkv.lora_b": (2, D, R)}
    assert plain.shapes == {"blocks.0.mlp.fc1.lora_a": (1, R, D), "blocks.0.mlp.fc1.lora_b": (1, 8, R)}
    assert root[1].qkv is layers[2].module
    assert type(root[0].proj) is nn.Linear


@pytest.mark.parametrize("target", [("fc9",), ("q", "fc9")])
def test_unknown_target(target: tuple[str, ...]) -> None:
    root = nn.ModuleList([Block()])
    with pytest.raises(UserError, match=r"model\.lora\.target: found fc9; expected q, k, v .* fc1, proj, qkv"):
        add_lora(root, "blocks", LoraConfig(target=target))


def test_first_factors() -> None:
    a = initial_factor("x.lora_a", (3, 50, 16), 0)
    assert a.abs().max() <= 0.25
    assert a.abs().max() > 0.249
    assert abs(a.mean()) < 0.01
    assert not initial_factor("x.lora_b", (3, 16, 50), 0).any()
    assert torch.equal(a, initial_factor("x.lora_a", (3, 50, 16), 0))
    assert not torch.equal(a, initial_factor("x.lora_a", (3, 50, 16), 1))
    assert not torch.equal(a, initial_factor("y.lora_a", (3, 50, 16), 0))
