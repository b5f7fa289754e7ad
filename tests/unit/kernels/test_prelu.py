"""PReLU's compiled way back, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.kernels import build
from fedsim.kernels.rows import PRELU_NUMBERS, PRelu, replace_prelu

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 3e-6), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "every other"])
def test_prelu(dtype: torch.dtype, share: float, layout: str) -> None:
    stream = torch.Generator().manual_seed(5)
    x = torch.randn(3, 7, 2 * 13, 23, generator=stream).to(dtype)
    x = x[:, :, ::2] if layout == "every other" else x[:, :, 1::2].contiguous()
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels last" else x
    x[0, 0, 0] = 0
    assert x.numel() > PRELU_NUMBERS
    net = PRelu(init=0.3).to(dtype)
    out = net(x.requires_grad_())
    exact_x, slope = x.detach().double().requires_grad_(), net.weight.detach().double().requires_grad_()
    expected = F.prelu(exact_x, slope)
    grad = torch.randn(out.shape, generator=stream).to(dtype)
    wanted = torch.autograd.grad(expected, [exact_x, slope], grad.double())
    for found, exact in zip([out, *torch.autograd.grad(out, [x, net.weight], grad)], [expected, *wanted], strict=True):
        assert found.dtype == dtype
        atol = share * exact.abs().max().item()
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=atol)


def test_prelu_with_a_slope_for_every_channel_stays() -> None:
    net = nn.Sequential(nn.PReLU(), nn.PReLU(4))
    replace_prelu(net)
    assert [type(part) for part in net] == [PRelu, nn.PReLU]


def test_prelu_of_several_clients_and_under_autocast() -> None:
    stream = torch.Generator().manual_seed(5)
    x, slopes = torch.randn(3, 2, 5, generator=stream), torch.tensor([[0.1], [0.2], [0.3]])
    net = PRelu()
    found = torch.vmap(lambda own, slope: torch.func.functional_call(net, {"weight": slope}, (own,)))(x, slopes)
    assert torch.equal(found, torch.where(x > 0, x, slopes[:, None] * x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x), nn.PReLU()(x))
