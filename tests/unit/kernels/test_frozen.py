"""Products with frozen weights and with LoRA factors, against what autograd makes of the plain formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.kernels.frozen import FrozenLinear, FrozenProduct, can_pack, plain
from fedsim.kernels.low_rank import LowRankLinear

STREAM = torch.Generator().manual_seed(5)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=STREAM, dtype=torch.float64, requires_grad=True)


SCALING = 0.7
TARGETS = {"all slices": (0, 1, 2), "q and v": (0, 2), "v": (2,)}


def plain_low_rank(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, targets: tuple[int, ...]
) -> Tensor:
    """The same from whole matrices: one adapted weight per client."""
    clients = []
    for k in range(len(x)):
        update = torch.zeros_like(weight)
        for place, target in enumerate(targets):
            product = b[k % len(b), place] @ a[k % len(a), place]
            update = update.index_add(0, torch.arange(len(product)) + target * len(product), SCALING * product)
        clients.append(F.linear(x[k], weight + update, bias))
    return torch.stack(clients)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("shared", ["neither", "a", "b"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_low_rank_linear_and_its_gradients(targets: tuple[int, ...], shared: str, has_bias: bool) -> None:
    num_clients, rows, width, out, rank = 2, 7, 5, 4, 3
    x, grad = draw(num_clients, rows, width), draw(num_clients, rows, 3 * out).detach()
    weight, bias = draw(3 * out, width).detach(), draw(3 * out).detach() if has_bias else None
    product = FrozenProduct(weight, bias)
    a = draw(1 if shared == "a" else num_clients, len(targets), rank, width)
    b = draw(1 if shared == "b" else num_clients, len(targets), out, rank)
    torch.testing.assert_close(
        LowRankLinear.apply(x, product, a, b, targets, SCALING), plain_low_rank(x, weight, bias, a, b, targets)
    )
    # A shared factor does not train.
    a, b = a.detach() if shared == "a" else a, b.detach() if shared == "b" else b
    trained = [tensor for tensor in (x, a, b) if tensor.requires_grad]
    own = torch.autograd.grad(LowRankLinear.apply(x, product, a, b, targets, SCALING), trained, grad)
    expected = torch.autograd.grad(plain_low_rank(x, weight, bias, a, b, targets), trained, grad)
    for ours, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_frozen_linear_is_the_linear_layer(dtype: torch.dtype, has_bias: bool) -> None:
    linear = torch.nn.Linear(24, 40, bias=has_bias).requires_grad_(False).to(dtype)
    x = draw(3, 5, 24).detach().to(dtype).requires_grad_()
    grad = draw(3, 5, 40).detach().to(dtype)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    own, expected = FrozenLinear(linear)(x), linear(x)
    torch.testing.assert_close(own, expected, rtol=tolerance, atol=tolerance)
    (back,), (plain) = torch.autograd.grad(own, x, grad), torch.autograd.grad(expected, x, grad)[0]
    torch.testing.assert_close(back, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (65, 33), (192, 576)])
def test_a_packed_weight_keeps_its_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(shape[1], shape[0]).to(dtype)
    layer = FrozenLinear(linear)
    assert layer.weight.is_mkldnn == can_pack(dtype)
    assert torch.equal(plain(layer.weight), linear.weight)
    product = layer.product(0, shape[0])
    assert torch.equal(plain(product.weight), linear.weight)
    assert torch.equal(plain(product.transposed), linear.weight.T)


def test_some_rows_of_a_frozen_linear() -> None:
    frozen = FrozenLinear(torch.nn.Linear(24, 40))
    x = torch.randn(7, 24, generator=STREAM)
    torch.testing.assert_close(frozen.product(8, 24).forward(x), frozen(x)[:, 8:24])
    assert frozen.product(8, 24) is frozen.product(8, 24)


def test_without_support_for_a_type_the_plain_products_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    linear = torch.nn.Linear(24, 40).requires_grad_(False).bfloat16()
    layer = FrozenLinear(linear)
    assert not layer.weight.is_mkldnn
    x = draw(5, 24).detach().bfloat16().requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out, linear(x))
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, 40, dtype=torch.bfloat16) @ linear.weight)
