"""Winograd's filtering is a convolution: values and both gradients, in any shape that it takes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.kernels import build, winograd
from fedsim.kernels.winograd import Winograd

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))
Shape = tuple[int, int, int, int, int, int]

# Images, channels in and out, height, width, padding.
SHAPES: list[Shape] = [
    (2, 16, 32, 8, 8, 1),
    (1, 16, 16, 1, 1, 1),
    (3, 32, 16, 5, 7, 1),  # tiles beyond both edges
    (2, 16, 48, 6, 4, 0),
    (2, 48, 16, 4, 5, 2),
    (1, 16, 96, 3, 2, 1),  # two strips of 48
    (2, 64, 128, 9, 9, 1),
    (20, 16, 16, 17, 18, 1),  # more tiles than are taken together
    (40, 256, 64, 6, 6, 1),
]


def draw(shape: Shape) -> tuple[Tensor, Tensor]:
    """Inputs and weights, channels last."""
    num_images, channels, outputs, height, width, _ = shape
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(num_images, channels, height, width, generator=stream)
    weight = torch.randn(outputs, channels, 3, 3, generator=stream) / (9 * channels) ** 0.5
    return x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last)


def three(x: Tensor, weight: Tensor, padding: int, grad: Tensor | None, quick: bool) -> list[Tensor]:
    """The convolution and the gradients of its inputs and weights."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    found = Winograd.apply(x, weight, padding) if quick else F.conv2d(x, weight, padding=padding)
    grad = torch.ones_like(found) if grad is None else grad
    return [found, *torch.autograd.grad(found, (x, weight), grad)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: Shape) -> None:
    """Beside float64: as near as fp32 is, whatever the layout of what comes in."""
    x, weight = draw(shape)
    grad = torch.randn(F.conv2d(x, weight, padding=shape[-1]).shape, generator=torch.Generator().manual_seed(1))
    exact = three(x.double(), weight.double(), shape[-1], grad.double(), quick=False)
    for own_x, own_weight in ((x, weight), (x.contiguous(), weight.contiguous())):
        found = three(own_x, own_weight, shape[-1], grad, quick=True)
        for own, other in zip(found, exact, strict=True):
            assert own.shape == other.shape
            assert (own - other).norm() < 3e-6 * other.norm()


def test_every_place_of_the_kernel_meets_its_pixel() -> None:
    """Exactly, since all of the few numbers are powers of two."""
    x = torch.zeros(1, 16, 5, 6)
    x[0, 3, 2, 2] = 4
    weight = torch.zeros(16, 16, 3, 3)
    weight[5, 3] = 2.0 ** torch.arange(9).view(3, 3)
    expected = torch.zeros(1, 16, 5, 6)
    expected[0, 5, 1:4, 1:4] = 4 * weight[5, 3].flip(0, 1)
    assert torch.equal(winograd.convolution(x, weight, 1), expected)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, weight = draw((20, 16, 128, 17, 18, 1))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(three(x, weight, 1, None, quick=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for some in found[1:] for one, other in zip(found[0], some, strict=True))


def test_several_clients_have_weights_of_their_own() -> None:
    pairs = [draw((2, 32, 32, 8, 8, 1)), draw((2, 32, 32, 8, 8, 1))]
    pairs[1] = pairs[1][0] + 1, pairs[1][1] - 1
    x, weight = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    together = torch.vmap(lambda own, weight: Winograd.apply(own, weight, 1))(x, weight)
    alone = torch.stack([F.conv2d(own, weight, padding=1) for own, weight in pairs])
    torch.testing.assert_close(together, alone)


def test_where_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 x 3 and stride 1 over whole vectors of channels, in fp32, where there is enough to do, on wide registers."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def suits(
        kernel: int = 3, stride: int = 1, padding: tuple[int, int] = (1, 1), channels: int = 64, side: int = 16
    ) -> bool:
        x, weight = torch.zeros(16, channels, side, side), torch.zeros(64, channels, kernel, kernel)
        return winograd.suits(x, weight, (stride, stride), padding)

    assert suits()
    assert not any((suits(kernel=1), suits(stride=2), suits(padding=(1, 0)), suits(padding=(3, 3))))
    assert not any((suits(channels=40), suits(channels=16), suits(side=3), suits(channels=32, side=4)))
    x, weight = torch.zeros(16, 64, 16, 16), torch.zeros(64, 64, 3, 3)
    assert not winograd.suits(x.double(), weight.double(), (1, 1), (1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not suits()
