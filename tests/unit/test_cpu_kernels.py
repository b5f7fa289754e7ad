"""Forward and backward passes written by hand, against what autograd makes of the plain formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.models import cpu_attention, frozen
from fedsim.models.cpu_attention import CpuAttention
from fedsim.models.frozen import FrozenLinear, FrozenProduct
from fedsim.models.lora import LowRankLinear

STREAM = torch.Generator().manual_seed(5)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=STREAM, dtype=torch.float64, requires_grad=True)


def plain_attention(projected: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = projected.permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / projected.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()[:, None, None]


@pytest.mark.parametrize("mask", [None, MASK], ids=["all tokens", "texts of different lengths"])
@pytest.mark.parametrize("group_elements", [1, 2 * 2 * 5**2, 2**18], ids=["an image", "two images", "all"])
def test_attention_and_its_gradient(group_elements: int, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "GROUP_ELEMENTS", group_elements)
    projected, grad = draw(3, 5, 3, 2, 4), draw(3, 5, 2, 4).detach()
    torch.testing.assert_close(CpuAttention.apply(projected, mask), plain_attention(projected, mask))
    (own,) = torch.autograd.grad(CpuAttention.apply(projected, mask), projected, grad)
    (expected,) = torch.autograd.grad(plain_attention(projected, mask), projected, grad)
    torch.testing.assert_close(own, expected)


def test_attention_in_bf16_stays_near_fp32() -> None:
    projected = draw(3, 5, 3, 2, 4).detach().bfloat16().requires_grad_()
    out = CpuAttention.apply(projected, None)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain_attention(projected.float()), rtol=0.02, atol=0.02)


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


def test_some_rows_of_a_frozen_linear() -> None:
    frozen = FrozenLinear(torch.nn.Linear(24, 40))
    x = torch.randn(7, 24, generator=STREAM)
    torch.testing.assert_close(frozen.product(8, 24).forward(x), frozen(x)[:, 8:24])
    assert frozen.product(8, 24) is frozen.product(8, 24)


def test_softmax_backward_of_short_rows_in_bf16() -> None:
    probabilities, grad = (draw(6, 17).detach().softmax(-1).bfloat16() for _ in range(2))
    found = cpu_attention.softmax_backward(grad, probabilities)
    p, g = probabilities.double(), grad.double()
    expected = p * (g - (p * g).sum(-1, keepdim=True))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=1e-4)


def test_without_support_for_a_type_the_plain_products_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    linear = torch.nn.Linear(24, 40).requires_grad_(False).bfloat16()
    monkeypatch.setattr(frozen, "pack", lambda _: pytest.fail("packed all the same"))
    x = draw(5, 24).detach().bfloat16().requires_grad_()
    out = FrozenLinear(linear)(x)
    torch.testing.assert_close(out, linear(x))
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, 40, dtype=torch.bfloat16) @ linear.weight)
