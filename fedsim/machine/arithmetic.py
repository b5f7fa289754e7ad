"""How this process computes: what the config leaves open about numbers, decided once and for all ranks alike."""

import os

import torch

from fedsim.errors import UserError


def set_arithmetic(precision: str, deterministic: bool, device: torch.device) -> None:
    """Make fp32 mean fp32, and equal runs give equal bits.

    ``precision`` tf32 lets a GPU's fp32 products and convolutions drop 13 of the 23 bits after the point; PyTorch's own
    default does so for convolutions. ``deterministic`` forbids GPU kernels whose results depend on the order in
    which threads finish. UserError for tf32 on a CPU, which has no such arithmetic.
    """
    # Gradients of nearly certain predictions are denormal numbers, which a CPU handles many times slower.
    torch.set_flush_denormal(True)
    if device.type == "cpu":
        if precision == "tf32":
            raise UserError("model.precision", "tf32 on a CPU", "fp32 or bf16, or a GPU")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # cuBLAS reads it when it is first used; with this much memory of its own it keeps to one order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False
    # What is allocated empty is always written before it is read; filling it as well would cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # its stub lacks it
