"""Clients' numbers as whole multiples of a grid, added up: on a CPU compiled, fedsim/kernels/sums.cpp, and elsewhere
PyTorch's, with the same bits.

Shapes: K clients, P numbers of each.
"""

import torch
from torch import Tensor

from fedsim.kernels.build import available, call


def scaled(values_KP: Tensor, scales_K: Tensor) -> Tensor:
    """Return the values times each client's scale, float64 (K,), as float64 (K, P)."""
    out_KP = torch.empty(values_KP.shape, dtype=torch.float64, device=values_KP.device)
    return torch.mul(values_KP, scales_K[:, None], out=out_KP)


def compiles(values_KP: Tensor) -> bool:
    """Whether ``add_multiples`` takes these values."""
    is_known = values_KP.dtype in (torch.float32, torch.float64) and values_KP.stride(1) == 1
    return is_known and values_KP.device.type == "cpu" and available(torch.float32)


def add_multiples(values_KP: Tensor, scales_K: Tensor, sums_P: Tensor) -> tuple[int, int]:
    """Add what is ``scaled``, to the nearest whole numbers, onto ``sums_P``, int64 and contiguous.

    Returns how many numbers are unlike zero before they are rounded, and how many after.
    """
    counts = torch.empty(2, dtype=torch.int64)
    is_double = values_KP.dtype == torch.float64
    sizes = *values_KP.shape, values_KP.stride(0)
    scales_K = scales_K.double().contiguous()
    call("add_multiples", torch.float32, values_KP, scales_K, sums_P, counts, is_double, *sizes)
    sent, found = counts.tolist()
    return sent, found
