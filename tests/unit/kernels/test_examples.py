"""Products of single examples, compiled and PyTorch's own, against gradients made one by one in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.kernels import build
from fedsim.kernels.examples import Keep, Products, Sizes, Tape
from fedsim.kernels.frozen import FrozenProduct
from fedsim.kernels.lora import CompiledLowRank
from fedsim.kernels.low_rank import LowRankLinear

needs_compiler = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))
FUNCTIONS = pytest.mark.parametrize(
    "function", [pytest.param(CompiledLowRank, marks=needs_compiler), LowRankLinear], ids=["compiled", "pytorch"]
)
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SHAPES = [
    # clients, images, tokens, width, width of a slice, adapted slices, rank
    (1, 1, 1, 2, 2, (0,), 1),
    (3, 4, 1, 16, 8, (0, 2), 3),
    (2, 5, 7, 30, 70, (1,), 4),
    (2, 3, 17, 64, 64, (0, 1, 2), 8),
    (2, 2, 33, 200, 16, (2,), 17),
]


def products_of(
    function: type[torch.autograd.Function], shape: tuple, dtype: torch.dtype, frozen: str = ""
) -> tuple[Products, Tape, dict[str, Tensor | None], dict[str, Tensor]]:
    """What a backward pass leaves on a tape, the gradients that it gives, and what went in and came back."""
    clients, images, tokens, width, out_width, targets, rank = shape
    stream = torch.Generator().manual_seed(3)
    x = torch.randn(clients, images * tokens, width, generator=stream).to(dtype)
    a = torch.randn(clients, len(targets), rank, width, generator=stream) / width**0.5
    b = torch.randn(clients, len(targets), out_width, rank, generator=stream) / rank**0.5
    weight = torch.randn(3 * out_width, width, generator=stream) / width**0.5
    if function is LowRankLinear:
        a, b = a.to(dtype), b.to(dtype)
    inputs = {name: value.requires_grad_(name not in frozen) for name, value in {"x": x, "a": a, "b": b}.items()}
    tape = Tape(Sizes([images] * clients))
    keep = Keep(tape, "layer", slice(0, len(targets)))
    product = FrozenProduct(weight.to(dtype), torch.zeros(3 * out_width, dtype=dtype))
    seen = x if function is LowRankLinear else x.flatten(0, 1)[None]
    out: Tensor = function.apply(seen, product, a, b, targets, 1.5, keep)
    grad = torch.randn(clients, images * tokens, 3 * out_width, generator=stream).to(dtype)
    out = out.view(grad.shape)
    wanted = {name: value for name, value in inputs.items() if value.requires_grad}
    found = torch.autograd.grad(out, list(wanted.values()), grad, allow_unused=True)
    ((layer, places, products),) = tape.parts
    assert (layer, places) == ("layer", slice(0, len(targets)))
    exact = {name: value.detach().double() for name, value in inputs.items()} | {"grad": grad.double()}
    return products, tape, dict(zip(wanted, found, strict=True)), exact


def one_by_one(products: Any, shape: tuple) -> tuple[Tensor, Tensor]:
    """Every example's gradients of A (K, B, G, R, D) and of B (K, B, G, O, R), from the rounded sides, in float64."""
    clients, images, tokens, _, out_width, targets, rank = shape
    x, grad, hidden, inner = (getattr(products, name).double() for name in ("x", "grad", "hidden", "inner"))
    x, grad = (side.reshape(clients, images, tokens, -1) for side in (x, grad))
    # Compiled, bf16 has an even rank; fp32 leaves the end of the buffer alone.
    whole = hidden.shape[-1] if hidden.dim() == 4 and products.x.dtype == torch.bfloat16 else rank
    count = clients * images * tokens * len(targets) * whole
    hidden, inner = (
        side.flatten()[:count].view(clients, images, tokens, len(targets), whole)[..., :rank]
        for side in (hidden, inner)
    )
    slices = grad.unflatten(3, (3, out_width))[:, :, :, list(targets)]
    grad_a = torch.einsum("kbtgr,kbtd->kbgrd", inner, x)
    grad_b = torch.einsum("kbtgo,kbtgr->kbgor", slices, hidden)
    return grad_a, grad_b


@FUNCTIONS
@TYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_and_sums(function: type[torch.autograd.Function], shape: tuple, dtype: torch.dtype) -> None:
    products, tape, grads, _ = products_of(function, shape, dtype)
    assert grads["a"] is None
    assert grads["b"] is None
    grad_a, grad_b = one_by_one(products, shape)
    squares = grad_a.flatten(2).square().sum(2) + grad_b.flatten(2).square().sum(2)
    assert tape.squares is not None
    torch.testing.assert_close(tape.squares, squares.flatten(), rtol=1e-5, atol=0)
    factors = torch.rand(shape[:2], generator=torch.Generator().manual_seed(4))
    for found, each in zip(products.sums(factors.flatten()), (grad_a, grad_b), strict=True):
        assert found is not None
        expected = (each * factors[:, :, None, None, None].double()).sum(1)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@FUNCTIONS
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_shares_are_the_usual_gradient(function: type[torch.autograd.Function], shape: tuple) -> None:
    """And what comes back to the layer's input is the same."""
    products, _, grads, exact = products_of(function, shape, torch.float32)
    _, images, _, width, out_width, targets, _ = shape
    weight = FrozenProduct(torch.zeros(3 * out_width, width), torch.zeros(3 * out_width))
    inputs = [exact[name].float().requires_grad_() for name in "xab"]
    out: Tensor = LowRankLinear.apply(*inputs[:1], weight, *inputs[1:], targets, 1.5)
    through_x, *expected = torch.autograd.grad(out, inputs, exact["grad"].float())
    sums = products.sums(torch.ones(shape[0] * images))
    for found, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    # The frozen product's share is not in what LowRankLinear of a zero weight gives back.
    assert grads["x"] is not None
    assert grads["x"].shape == through_x.shape


@FUNCTIONS
@pytest.mark.parametrize("frozen", ["a", "b", "ab", "x"])
def test_factors_that_do_not_train_count_nothing(function: type[torch.autograd.Function], frozen: str) -> None:
    shape = SHAPES[1]
    products, tape, _, _ = products_of(function, shape, torch.float32, frozen)
    sides = one_by_one(products, shape)
    trained = [side for name, side in zip("ab", sides, strict=True) if name not in frozen]
    expected = sum((side.flatten(2).square().sum(2) for side in trained), torch.zeros(shape[:2], dtype=torch.float64))
    assert tape.squares is not None
    torch.testing.assert_close(tape.squares, expected.flatten(), rtol=1e-5, atol=0)
    sums = products.sums(torch.ones(shape[0] * shape[1]))
    assert [value is None for value in sums] == [name in frozen for name in "ab"]


@needs_compiler
@TYPES
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    products, tape, _, _ = products_of(CompiledLowRank, SHAPES[3], dtype)
    factors, before = torch.rand(tape.sizes.total), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((products.squares(), *products.sums(factors)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("counts", "usual", "total"),
    [([3, 0, 2], 0, 5), ([3, 0, 2], 16, 6), ([2, 2], 4, 4), ([9, 8], 16, 18), ([1, 0], 160, 20), ([5, 6], 10, 11)],
)
def test_images_in_a_row_and_in_their_places(counts: list[int], usual: int, total: int) -> None:
    sizes = Sizes(counts, usual)
    assert (sizes.total, sizes.num_own, sizes.width) == (total, sum(counts), max(counts))
    places = torch.arange(1.0, len(counts) * max(counts) + 1).view(len(counts), -1)[..., None]
    row = sizes.gather(places)
    assert row.shape == (total, 1)
    assert row[: sum(counts), 0].tolist() == [x for own, n in zip(places, counts, strict=True) for x in own[:n, 0]]
    assert sizes.starts.tolist() == [sum(counts[:k]) for k in range(len(counts) + 1)]
    filled = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    assert torch.equal(sizes.spread(row), places * filled[..., None])
    assert torch.equal(sizes.spread(row[:, 0]), places[..., 0] * filled)
