"""Quick convolutions are convolutions: values, both gradients, and which way is chosen."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.kernels.build import available
from fedsim.models.networks import few_pixels
from fedsim.models.networks.convolutions import QuickConv2d, replace_convolutions

# Images, channels in and out, height, width, kernel, stride, padding.
SHAPES = [
    (3, 4, 5, 2, 2, (3, 3), (1, 1), (1, 1)),
    (2, 4, 5, 1, 1, (3, 3), (1, 1), (1, 1)),
    (2, 3, 4, 4, 4, (3, 3), (2, 2), (1, 1)),
    (2, 3, 4, 5, 7, (3, 3), (2, 1), (0, 1)),
    (2, 3, 4, 4, 3, (1, 1), (2, 2), (0, 0)),
    (1, 2, 3, 6, 6, (5, 2), (3, 2), (2, 0)),
    (2, 3, 4, 2, 2, (3, 3), (1, 1), (2, 2)),
]


def plain(net: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, net.weight, net.bias, net.stride, net.padding)


def draw(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_pixels, "WEIGHTS_PER_PIXEL", 0)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("smallest", [0, 4, 1000], ids=["to the weights", "as it is", "always"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(
    shape: tuple[int, int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int]],
    bias: bool,
    smallest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float64, against PyTorch's, whatever the two ways forth and to the inputs are."""
    monkeypatch.setattr(few_pixels, "SMALLEST_MAP", smallest)
    num_images, inputs, outputs, height, width, kernel, stride, padding = shape
    net = QuickConv2d(inputs, outputs, kernel, stride, padding, bias=bias).double()
    x = draw((num_images, inputs, height, width)).requires_grad_()
    found, expected = net(x), plain(net, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    grad = draw(tuple(found.shape)) + 1
    leaves = [x, *net.parameters()]
    for own, other in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("always")
def test_several_clients_have_weights_of_their_own() -> None:
    net = QuickConv2d(4, 5, 3, padding=1, bias=False).double()
    weights, x = draw((3, *net.weight.shape)), draw((3, 2, 4, 2, 2))
    together = torch.vmap(lambda weight, own: torch.func.functional_call(net, {"weight": weight}, (own,)))(weights, x)
    alone = torch.stack([F.conv2d(own, weight, padding=1) for own, weight in zip(x, weights, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_which_way_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many channels over few pixels: the last layers of a ResNet-18 on small images; the first ones are filtered."""

    def way(net: nn.Conv2d, x: Tensor) -> str:
        return type(net(x).grad_fn.next_functions[0][0]).__name__

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    last, first = QuickConv2d(512, 512, 3, padding=1), QuickConv2d(64, 64, 3, padding=1)
    assert way(last, torch.zeros(16, 512, 2, 2)) == "ProductsBackward"
    if available(torch.float32):
        assert way(first, torch.zeros(16, 64, 16, 16)) == "WinogradBackward"
        torch.testing.assert_close(first(x := draw((16, 64, 16, 16)).float()), plain(first, x))
    stem = QuickConv2d(3, 64, 7, 2, 3)
    assert type(stem(torch.zeros(16, 3, 64, 64)).grad_fn).__name__ == "ConvolutionBackward0"


def test_bf16_products_have_fp32_gradients() -> None:
    """They lie as near to fp32 as PyTorch's own under autocast, but for a rounding."""
    net, x = QuickConv2d(256, 256, 3, padding=1), torch.randn(2, 256, 2, 2)
    exact = plain(net, x)
    with torch.autocast("cpu", torch.bfloat16):
        found, usual = net(x), plain(net, x)
    assert found.dtype == usual.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.5 * (usual - exact).norm()
    found.float().square().sum().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.dtype == torch.float32


def test_only_plain_convolutions_are_replaced() -> None:
    """Grouped, dilated and otherwise padded ones stay, and so do a library's own kinds."""

    class Own(nn.Conv2d):
        pass

    others = [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.ConvTranspose2d(4, 4, 3),
        Own(4, 4, 3),
    ]
    inside = nn.Conv2d(4, 4, 3)
    kinds = [type(other) for other in others]
    replace_convolutions(nn.Sequential(nn.Sequential(inside), *others))
    assert type(inside) is QuickConv2d
    assert [type(other) for other in others] == kinds
