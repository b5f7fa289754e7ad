"""The compiled passes beside PyTorch's operators: milliseconds for one layer's way forward and back, one thread.

OMP_NUM_THREADS=1 python -m benchmarks.kernels
"""

import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.regimes import BATCH_SIZE, LORA_RANK, MLP_RATIO, REGIMES, Regime
from fedsim.kernels.attention import CompiledAttention
from fedsim.kernels.frozen import FrozenProduct
from fedsim.kernels.lora import CompiledLowRank
from fedsim.kernels.low_rank import LowRankLinear
from fedsim.kernels.rows import FrozenNorm, Gelu
from fedsim.machine.memory import keep_freed_memory

# Clients of a block, as fedsim chooses them on a CPU.
PER_BLOCK = {"small": 17, "medium": 2, "clip": 1}
REPEATS = 30
TARGETS = (0, 1, 2)

Pass = Callable[[], Tensor]


def milliseconds(run: Pass, inputs: list[Tensor]) -> float:
    """The median over forward and backward passes."""
    grad = torch.randn_like(run())
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        torch.autograd.grad(run(), inputs, grad)
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds)


def attention(regime: Regime, rows: int, dtype: torch.dtype) -> tuple[Pass, Pass, list[Tensor]]:
    tokens, heads = regime.num_patches + 1, regime.num_heads
    projected = torch.randn(rows // tokens, tokens, 3, heads, regime.width // heads, dtype=dtype, requires_grad=True)

    def plain() -> Tensor:
        q, k, v = projected.transpose(1, 3).unbind(2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return lambda: CompiledAttention.apply(None, projected, None), plain, [projected]


def lora(regime: Regime, rows: int, dtype: torch.dtype) -> tuple[Pass, Pass, list[Tensor]]:
    clients, width = PER_BLOCK[regime.name], regime.width
    frozen = FrozenProduct(torch.randn(3 * width, width, dtype=dtype) / width**0.5, torch.randn(3 * width, dtype=dtype))
    x = torch.randn(clients, rows // clients, width, dtype=dtype, requires_grad=True)
    a = torch.randn(clients, 3, LORA_RANK, width, requires_grad=True)
    b = torch.randn(clients, 3, width, LORA_RANK, requires_grad=True)

    def plain() -> Tensor:
        out: Tensor = LowRankLinear.apply(x, frozen, a.to(dtype), b.to(dtype), TARGETS, 1.0)
        return out

    return lambda: CompiledLowRank.apply(x, frozen, a, b, TARGETS, 1.0), plain, [x, a, b]


def gelu(regime: Regime, rows: int, dtype: torch.dtype) -> tuple[Pass, Pass, list[Tensor]]:
    x = torch.randn(rows, MLP_RATIO * regime.width, dtype=dtype, requires_grad=True)
    return lambda: Gelu()(x), lambda: F.gelu(x), [x]


def sum_and_norm(regime: Regime, rows: int, dtype: torch.dtype) -> tuple[Pass, Pass, list[Tensor]]:
    x = torch.randn(rows, regime.width, requires_grad=True)
    branch = torch.randn(rows, regime.width, dtype=dtype, requires_grad=True)
    norm = FrozenNorm(nn.LayerNorm(regime.width).requires_grad_(False))

    def compiled() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return norm.of_sum(x, branch)[1]

    def plain() -> Tensor:
        return F.layer_norm(x + branch, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)

    return compiled, plain, [x, branch]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    shown = Table("regime", "type", "pass", "compiled, ms", "PyTorch, ms")
    for name, dtype in itertools.product(PER_BLOCK, (torch.float32, torch.bfloat16)):
        regime = REGIMES[name]
        rows = PER_BLOCK[name] * BATCH_SIZE * (regime.num_patches + 1)
        for make in (attention, lora, gelu, sum_and_norm):
            compiled, plain, inputs = make(regime, rows, dtype)
            figures = (f"{milliseconds(run, inputs):.2f}" for run in (compiled, plain))
            shown.add_row(name, str(dtype).removeprefix("torch."), make.__name__, *figures)
    Console().print(shown)


if __name__ == "__main__":
    main()
