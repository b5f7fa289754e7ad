"""The compiled low-rank layer, and a residual sum with its norm, against PyTorch's operators in float64."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.kernels import build
from fedsim.kernels.frozen import FrozenProduct, plain
from fedsim.kernels.lora import CompiledLowRank, suits
from fedsim.kernels.low_rank import LowRankLinear
from fedsim.kernels.rows import FrozenNorm

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SHARE = {torch.float32: 2e-6, torch.bfloat16: 0.02}
SCALING = 1.5


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    atol = SHARE[dtype] * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=atol)


def product(dtype: torch.dtype, slices: int, out_width: int, width: int) -> FrozenProduct:
    stream = torch.Generator().manual_seed(1)
    weight = torch.randn(slices * out_width, width, generator=stream) / width**0.5
    return FrozenProduct(weight.to(dtype), torch.randn(slices * out_width, generator=stream).to(dtype))


def run(
    function: type[torch.autograd.Function], frozen: FrozenProduct, tensors: Sequence[Tensor], targets: tuple[int, ...]
) -> list[Tensor]:
    """Output, and the gradients of what requires one."""
    x, a, b = tensors
    out: Tensor = function.apply(x, frozen, a, b, targets, SCALING)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    return [out, *torch.autograd.grad(out, wanted, grad.to(x.dtype).to(out.dtype))]


def check(
    clients: int,
    rows: int,
    width: int,
    out_width: int,
    targets: tuple[int, ...],
    rank: int,
    dtype: torch.dtype,
    shared: str = "",
    frozen: str = "",
) -> list[Tensor]:
    """Compare with LowRankLinear in float64; ``shared`` and ``frozen``: those of x, a and b."""
    stream = torch.Generator().manual_seed(3)
    own = {name: 1 if name in shared else clients for name in "ab"}
    x = torch.randn(clients, rows, width, generator=stream).to(dtype)
    a = torch.randn(own["a"], len(targets), rank, width, generator=stream) / width**0.5
    b = torch.randn(own["b"], len(targets), out_width, rank, generator=stream) / rank**0.5
    tensors = [tensor.requires_grad_(name not in frozen) for name, tensor in zip("xab", (x, a, b), strict=True)]
    layer = product(dtype, 3, out_width, width)
    found = run(CompiledLowRank, layer, tensors, targets)
    # The frozen part's output is rounded once in both, the gradient that comes back too.
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]
    bias = None if layer.bias is None else layer.bias.double()
    x64, a64, b64 = exact
    out = F.linear(x64, plain(layer.weight).double(), bias).unflatten(2, (3, -1))
    low = torch.einsum("kmd,kgrd,kgor->kmgo", x64, *(f.expand(clients, *f.shape[1:]) for f in (a64, b64))) * SCALING
    out = out.index_add(2, torch.tensor(targets), low).flatten(2)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = [tensor for tensor in exact if tensor.requires_grad]
    expected = [out, *torch.autograd.grad(out, wanted, grad.to(dtype).double())]
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs, dtype)
    return found


@TYPES
@pytest.mark.parametrize(
    ("clients", "rows", "width", "out_width", "targets", "rank"),
    [
        (1, 1, 2, 2, (0,), 1),
        (3, 7, 6, 10, (0, 2), 3),
        (2, 75, 30, 70, (1,), 4),
        (2, 145, 64, 64, (0, 1, 2), 8),
        (5, 72, 200, 16, (2,), 17),
    ],
)
def test_the_layer_and_its_gradients(
    clients: int, rows: int, width: int, out_width: int, targets: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    check(clients, rows, width, out_width, targets, rank, dtype)


@TYPES
@pytest.mark.parametrize(
    ("shared", "frozen"),
    [("a", "a"), ("b", "b"), ("", "x"), ("a", "xa"), ("ab", "ab"), ("a", ""), ("b", ""), ("ab", "x")],
)
def test_factors_that_clients_share_and_inputs_without_gradients(shared: str, frozen: str, dtype: torch.dtype) -> None:
    check(3, 20, 16, 8, (0, 1), 2, dtype, shared, frozen)


@TYPES
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = check(2, 150, 32, 48, (0, 2), 4, dtype)
        torch.set_num_threads(3)
        # Without the frozen product, whose library may split its sums.
        for ours, theirs in zip(one[2:], check(2, 150, 32, 48, (0, 2), 4, dtype)[2:], strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_odd_widths_in_fp32_alone() -> None:
    assert suits(product(torch.float32, 3, 5, 7), 5)
    assert not suits(product(torch.bfloat16, 3, 5, 8), 5)
    assert not suits(product(torch.bfloat16, 3, 6, 7), 6)
    check(2, 9, 7, 5, (0, 1), 3, torch.float32)


def test_as_the_layer_in_pytorch() -> None:
    stream = torch.Generator().manual_seed(4)
    shapes = (2, 11, 12), (2, 2, 4, 12), (2, 2, 6, 4)
    tensors = [torch.randn(shape, generator=stream).requires_grad_() for shape in shapes]
    layer = product(torch.float32, 3, 6, 12)
    for ours, theirs in zip(
        run(CompiledLowRank, layer, tensors, (0, 2)), run(LowRankLinear, layer, tensors, (0, 2)), strict=True
    ):
        assert_near(ours, theirs, torch.float32)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@TYPES
@pytest.mark.parametrize("width", [7, 32, 200])
def test_the_norm_of_a_sum(width: int, dtype: torch.dtype, needs: tuple[bool, bool]) -> None:
    stream = torch.Generator().manual_seed(7)
    norm = nn.LayerNorm(width).requires_grad_(False)
    nn.init.normal_(norm.weight, generator=stream)
    nn.init.normal_(norm.bias, generator=stream)
    x = torch.randn(3, 5, width, generator=stream).requires_grad_(needs[0])
    branch = torch.randn(3, 5, width, generator=stream).to(dtype).requires_grad_(needs[1])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        total, normal = FrozenNorm(norm).of_sum(x, branch)
    assert torch.equal(total, x + branch)
    assert normal.dtype == dtype
    inputs = [tensor for tensor in (x, branch) if tensor.requires_grad]
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, branch)]
    wanted = [tensor for tensor, need in zip(exact, needs, strict=True) if need]
    sum64 = exact[0] + exact[1]
    normal64 = F.layer_norm(sum64, (width,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert_near(normal, normal64, dtype)
    grads = [torch.randn(3, 5, width, generator=stream) for _ in range(2)]
    found = torch.autograd.grad([total, normal], inputs, [grads[0], grads[1].to(dtype)])
    expected = torch.autograd.grad([sum64, normal64], wanted, [grads[0].double(), grads[1].to(dtype).double()])
    for ours, theirs, tensor in zip(found, expected, inputs, strict=True):
        assert ours.dtype == tensor.dtype
        assert_near(ours, theirs, dtype)
