"""The compiled passes, against the plain formulas in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from fedsim.kernels import build
from fedsim.kernels.attention import CompiledAttention, suits
from fedsim.kernels.rows import FrozenNorm, Gelu, replace_rows

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
# What an output may differ by, as a share of the largest one.
SHARE = {torch.float32: 3e-6, torch.bfloat16: 0.02}
NAN = float("nan")


@pytest.fixture
def stream() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=share * expected.abs().max().item())


def plain_attention(queries: Tensor | None, projected: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in ([] if queries is None else [queries]) + list(projected.unbind(2)))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def check_attention(queries: Tensor | None, projected: Tensor, mask: Tensor | None = None) -> None:
    """Compare outputs and gradients with those of the plain formula in float64, and the type and shape of all."""
    inputs = [part for part in (queries, projected) if part is not None]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    out = CompiledAttention.apply(queries, projected, mask)
    expected = plain_attention(None if queries is None else exact[0], exact[-1], mask)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(6)).to(out.dtype)
    found = [out, *torch.autograd.grad(out, inputs, grad)]
    wanted = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == projected.dtype
        # With one token the gradients of q and k are zero, and as near to it as that of v allows.
        share = SHARE[ours.dtype] * max(1.0, wanted[-1].abs().max().item() / max(theirs.abs().max().item(), 1e-30))
        assert_near(ours, theirs, share)


@TYPES
@pytest.mark.parametrize("tokens", [1, 17, 65, 73, 145])
@pytest.mark.parametrize("width", [2, 6, 16, 20, 64])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("queries", ["all", "the first"])
def test_attention_and_its_gradients(
    queries: str, heads: int, width: int, tokens: int, dtype: torch.dtype, stream: torch.Generator
) -> None:
    q = torch.randn(2, 1, heads, width, generator=stream).to(dtype).requires_grad_()
    projected = torch.randn(2, tokens, 3 if queries == "all" else 2, heads, width, generator=stream).to(dtype)
    check_attention(None if queries == "all" else q, projected.requires_grad_())


@TYPES
@pytest.mark.parametrize("tokens", [5, 73])
@pytest.mark.parametrize("queries", ["all", "the first"])
def test_attention_with_a_mask(queries: str, tokens: int, dtype: torch.dtype, stream: torch.Generator) -> None:
    lengths = torch.tensor([tokens, 1, tokens // 2])
    mask = (torch.arange(tokens) < lengths[:, None])[:, None, None]
    q = torch.randn(3, 1, 2, 6, generator=stream).to(dtype).requires_grad_()
    projected = torch.randn(3, tokens, 3 if queries == "all" else 2, 2, 6, generator=stream).to(dtype)
    check_attention(None if queries == "all" else q, projected.requires_grad_(), mask)


def test_odd_heads_in_fp32_alone(stream: torch.Generator) -> None:
    projected = torch.randn(2, 9, 3, 2, 5, generator=stream)
    assert [suits(projected.to(dtype), 5) for dtype in (torch.float32, torch.bfloat16, torch.float64)] == [True, 0, 0]
    check_attention(None, projected.requires_grad_())


@TYPES
def test_attention_of_strided_projections(dtype: torch.dtype, stream: torch.Generator) -> None:
    wide = torch.randn(4, 18, 3, 2, 12, generator=stream).to(dtype)
    for strided in (wide[::2, ::2, ..., ::2], wide[:2].permute(0, 1, 2, 4, 3)):
        assert not strided.is_contiguous()
        check_attention(None, strided.detach().requires_grad_())


@pytest.mark.parametrize("layout", ["a slice of the tokens", "heads swapped", "one for all"])
def test_attention_of_strided_queries(layout: str, stream: torch.Generator) -> None:
    wide = torch.randn(3, 5, 2, 4, generator=stream)
    queries = {"a slice of the tokens": wide[:, :1], "heads swapped": wide[:, :1].mT.contiguous().mT}
    queries["one for all"] = wide[:1, :1].expand(3, -1, -1, -1)
    projected = torch.randn(3, 5, 2, 2, 4, generator=stream).requires_grad_()
    check_attention(queries[layout].detach().requires_grad_(), projected)


@TYPES
def test_scores_that_are_far_apart(dtype: torch.dtype, stream: torch.Generator) -> None:
    projected = (100 * torch.randn(2, 17, 3, 2, 16, generator=stream)).to(dtype)
    found = CompiledAttention.apply(None, projected, None)
    assert_near(found, plain_attention(None, projected.double(), None), 100 * SHARE[torch.float32] + SHARE[dtype])


@TYPES
def test_attention_without_gradients(dtype: torch.dtype, stream: torch.Generator) -> None:
    projected = torch.randn(2, 145, 3, 2, 6, generator=stream).to(dtype)
    with_gradients = CompiledAttention.apply(None, projected.clone().requires_grad_(), None)
    alone = CompiledAttention.apply(None, projected, None)
    assert with_gradients.requires_grad
    assert not alone.requires_grad
    assert torch.equal(alone, with_gradients)


@TYPES
@pytest.mark.parametrize("slice", [0, 1, 2], ids=["q", "k", "v"])
def test_no_number_stays_none(slice: int, dtype: torch.dtype, stream: torch.Generator) -> None:
    projected = torch.randn(2, 17, 3, 2, 6, generator=stream).to(dtype)
    projected[1, 3, slice, 1, 2] = NAN
    found = CompiledAttention.apply(None, projected, None).isnan()
    assert torch.equal(found, plain_attention(None, projected.double(), None).isnan())


@TYPES
def test_threads_change_no_bit(dtype: torch.dtype, stream: torch.Generator, set_threads: Callable[[int], None]) -> None:
    projected = torch.randn(3, 73, 3, 3, 6, generator=stream).to(dtype).requires_grad_()
    x = torch.randn(33, 37, generator=stream).to(dtype).requires_grad_()
    rows = torch.randn(33, 37, generator=stream).requires_grad_()
    norm = FrozenNorm(drawn_norm(37, stream))
    results = []
    for threads in (1, 3):
        set_threads(threads)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outs = [CompiledAttention.apply(None, projected, None), Gelu()(x), norm(rows)]
        grads = torch.autograd.grad([out.float().square().sum() for out in outs], [projected, x, rows])
        results.append([*outs, *grads])
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


def exact_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope in float64."""
    x = x.detach().double().requires_grad_()
    y = F.gelu(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def found_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = Gelu()(x)
    assert y.dtype == x.dtype
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]


GRID = torch.linspace(-20, 20, 200_001)


def test_gelu_in_fp32() -> None:
    for found, expected in zip(found_gelu(GRID), exact_gelu(GRID), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=6e-8, atol=3e-7)


def test_gelu_in_bf16() -> None:
    """Every number below ten thousand."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    every = every[every.abs() < 1e4]
    for found, expected in zip(found_gelu(every), exact_gelu(every), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1.001 * 2**-8, atol=3e-7)


def test_gelu_is_exactly_zero_from_one_number_down() -> None:
    """Sub-models count such zeros. PyTorch's begin and end between two numbers, and in between are some of each."""
    bits = [torch.tensor(value).view(torch.int32).item() for value in (-5.45, -5.60)]
    x = torch.arange(*bits, dtype=torch.int32).view(torch.float32)  # every number of fp32 between the two
    own, plain = Gelu()(x) == 0, F.gelu(x) == 0
    edge = x[own].max()
    assert edge == pytest.approx(-5.54304, abs=1e-4)
    assert torch.equal(own, x <= edge)
    ragged = (x <= -5.4858) & (x >= -5.5432)
    assert torch.equal(own[~ragged], plain[~ragged])
    above = GRID[GRID > -5.45]
    assert torch.equal(Gelu()(above) == 0, above == 0)
    assert Gelu()(GRID[GRID < -5.60]).eq(0).all()


@TYPES
def test_gelu_of_what_is_no_number(dtype: torch.dtype) -> None:
    x = torch.tensor([NAN, torch.inf, -torch.inf, 0.0, 1.0], dtype=dtype)
    y, slope = found_gelu(x)
    assert y.isnan().tolist() == [True, False, True, False, False], "minus infinity times zero is none"
    assert y[1] == torch.inf
    assert slope[0].isnan()
    assert slope[3] == 0.5


@TYPES
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33])
def test_gelu_writes_all_and_nothing_else(count: int, dtype: torch.dtype, stream: torch.Generator) -> None:
    x = torch.randn(count, generator=stream).to(dtype)
    longer = torch.cat([x, torch.zeros(64 - count, dtype=dtype)])
    assert torch.equal(Gelu()(x), Gelu()(longer)[:count])
    every_second = torch.stack([x, x], 1)[:, 0]
    assert torch.equal(Gelu()(every_second), Gelu()(x))


@TYPES
def test_gelu_in_place_of_an_input_that_nobody_else_reads(dtype: torch.dtype, stream: torch.Generator) -> None:
    x, grad = (torch.randn(3, 37, generator=stream).to(dtype) for _ in range(2))
    results = []
    for alone in (False, True):
        leaf = x.clone().requires_grad_()
        own = leaf * 1
        out = Gelu(alone=alone)(own)
        results.append([out.detach(), *torch.autograd.grad(out, leaf, grad)])
        assert torch.equal(own.detach(), x) is not alone
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def drawn_norm(width: int, stream: torch.Generator) -> nn.LayerNorm:
    norm = nn.LayerNorm(width).requires_grad_(False)
    norm.weight.copy_(torch.randn(width, generator=stream))
    norm.bias.copy_(torch.randn(width, generator=stream))
    return norm


@TYPES
@pytest.mark.parametrize("width", [1, 7, 16, 192, 200])
@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("layout", ["rows", "strided"])
def test_frozen_norm(layout: str, mean: float, width: int, dtype: torch.dtype, stream: torch.Generator) -> None:
    norm = drawn_norm(width, stream)
    wide = mean + torch.randn(3, 5, 2 * width, generator=stream)
    x = (wide[..., ::2] if layout == "strided" else wide[..., :width].contiguous()).detach().requires_grad_()
    grad = torch.randn(3, 5, width, generator=stream).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = FrozenNorm(norm)(x)
    assert out.dtype == dtype
    exact = x.detach().double().requires_grad_()
    expected = F.layer_norm(exact, (width,), norm.weight.double(), norm.bias.double(), norm.eps)
    (back,), (exact_back,) = torch.autograd.grad(out, x, grad), torch.autograd.grad(expected, exact, grad.double())
    assert back.dtype == torch.float32
    # The mean's last bit, in standard deviations of the row.
    share = SHARE[torch.float32] + 3e-7 * mean
    assert_near(out, expected, share + (2**-8 if dtype == torch.bfloat16 else 0))
    scale = exact_back.abs().max().item() + (norm.eps**-0.5 if width == 1 else 0)
    # What the way back keeps is rounded as the output is.
    kept = 2**-8 if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(back.double(), exact_back, rtol=0, atol=(share + kept) * scale)


def test_which_modules_are_replaced() -> None:
    block = nn.Module()
    block.norm1, block.norm2, block.other = nn.LayerNorm(4), nn.LayerNorm(4), nn.LayerNorm(4)
    block.plain, block.unbiased = nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm(4, bias=False)
    block.mlp = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.GELU("tanh"), nn.ReLU())
    block.first = nn.Sequential(nn.GELU(), nn.Linear(4, 4))
    block.timm = Mlp(4, 4)
    block.act = nn.GELU()
    weight = block.norm1.weight
    replace_rows(block, ("norm1", "norm2", "plain", "unbiased", "absent"))
    replaced = {name: type(module) for name, module in block.named_children() if not isinstance(module, nn.Sequential)}
    assert replaced == dict.fromkeys(["norm1", "norm2"], FrozenNorm) | {"act": Gelu, "timm": Mlp} | dict.fromkeys(
        ["other", "plain", "unbiased"], nn.LayerNorm
    )
    assert [type(module) for module in block.mlp] == [nn.Linear, Gelu, nn.GELU, nn.ReLU]
    alone = {name: module.alone for name, module in block.named_modules() if isinstance(module, Gelu)}
    assert alone == {"mlp.1": True, "first.0": False, "timm.act": True, "act": False}
    assert block.norm1.weight is weight
    assert block.norm1.eps == nn.LayerNorm(4).eps
