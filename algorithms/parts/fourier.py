"""The Fourier transform of weights, and the exchange of its low-frequency amplitudes (PRR-FL, section 2.1).

A weight tensor is taken as matrices, of which the two-dimensional discrete Fourier transform is computed in their type.
Frequencies are counted from 0 at the corner, negative ones from the end. Two forms of the low-frequency window:

``paper``: frequencies from -b to b, with b = floor(size * fraction / 2) along each axis. The window is symmetric, so
that the changed spectrum is Hermitian and the inverse is real, whatever the size; half of the spectrum is enough to
know all of it. The constant part is always inside, all is inside at fraction 1.
``released``: frequencies from -b to b - 1, as in the published code. Nothing where b is 0 along an axis, never all of
an axis of odd size; the inverse has an imaginary part, which is dropped.

Shapes: K clients, G matrices in a tensor, H rows, W columns of a matrix, h and w rows and columns of the window.
"""

from collections.abc import Iterator
from itertools import product
from types import EllipsisType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Form = Literal["paper", "released"]
#: How many of an axis' frequencies lie in a window: of those from 0 on, and of the negative ones.
Ends = tuple[int, int]


def to_matrices(weights_K: Tensor) -> Tensor:
    """Return the matrices (K, G, H, W) of convolutions, linear layers or LoRA factors.

    A convolution (K, N, C, D1, D2) is one matrix (D2 N, C D1), the transpose of the paper's, which is copied faster; a
    linear weight (K, H, W) is one as it is; LoRA factors (K, G, H, W) are G of them.
    """
    if weights_K.dim() == 5:
        num_clients, num_out, num_in, height, width = weights_K.shape
        rows = weights_K.permute(0, 4, 1, 2, 3)
        return rows.reshape(num_clients, 1, width * num_out, num_in * height)
    return weights_K if weights_K.dim() == 4 else weights_K[:, None]


def from_matrices(matrices: Tensor, like: Tensor) -> Tensor:
    """Undo ``to_matrices`` for weights of the shape and type of ``like``."""
    if like.dim() == 5:
        num_clients, num_out, num_in, height, width = like.shape
        matrices = matrices.view(num_clients, width, num_out, num_in, height).permute(0, 2, 3, 4, 1)
    return matrices.reshape(like.shape).to(like.dtype)


def low_amplitudes(matrices: Tensor, fraction: float, form: Form) -> Tensor:
    """Return the amplitudes (..., h, w) in the window of matrices (..., H, W): what a client sends."""
    spectrum = _spectrum(matrices, form)
    rows, columns = window(matrices.shape[-2], matrices.shape[-1], fraction, form)
    found = spectrum.real.new_empty(*spectrum.shape[:-2], sum(rows), sum(columns))
    for of_window, of_spectrum in _corners(rows, columns):
        found[of_window] = _amplitudes(spectrum[of_spectrum])
    return found


def with_low_amplitudes(matrices: Tensor, amplitudes: Tensor, fraction: float, form: Form) -> Tensor:
    """Return matrices (..., H, W) with these amplitudes (..., h, w) in the window.

    Phases, and amplitudes outside the window, stay each matrix's own. What is transformed back is the change alone:
    matrices that have these amplitudes already stay as they are, bit for bit.
    """
    spectrum = _spectrum(matrices, form)
    change = torch.zeros_like(spectrum)
    for of_window, of_spectrum in _corners(*window(matrices.shape[-2], matrices.shape[-1], fraction, form)):
        low = spectrum[of_spectrum]
        own = _amplitudes(low)
        missing = amplitudes[of_window].to(own.dtype) - own
        if own.numel() and own.amin() == 0:
            # Where there is no amplitude there is no phase either: zero, by convention.
            low, own = (value.masked_fill(own == 0, 1) for value in (low, own))
        torch.mul(low, missing.div_(own), out=change[of_spectrum])
    return matrices + _inverse(change, matrices, form)


def window(height: int, width: int, fraction: float, form: Form) -> tuple[Ends, Ends]:
    """Return how many rows and columns of the spectrum lie in the window, at its start and at its end.

    The ``paper`` form's columns are those of the half spectrum of a real matrix, W // 2 + 1 in all.
    """
    half_height, half_width = (int(size * fraction / 2) for size in (height, width))
    if form == "paper":
        return (half_height + 1, min(half_height, height - half_height - 1)), (half_width + 1, 0)
    if min(half_height, half_width) == 0:
        return (0, 0), (0, 0)
    return (half_height, half_height), (half_width, half_width)


def _corners(rows: Ends, columns: Ends) -> Iterator[tuple[tuple[EllipsisType | slice, ...], ...]]:
    """Where the parts of a window lie in what is sent, and in the spectrum."""
    for row, column in product(_ends(rows), _ends(columns)):
        yield tuple((..., *places) for places in zip(row, column, strict=True))


def _ends(counts: Ends) -> list[tuple[slice, slice]]:
    """An axis' first and last places, in what is sent and in the spectrum."""
    first, last = counts
    return [(slice(first), slice(first)), (slice(first, first + last), slice(-last, None))][: 2 if last else 1]


def _spectrum(matrices: Tensor, form: Form) -> Tensor:
    """The spectrum (..., H, W), or for the ``paper`` form the half of it that a real matrix needs."""
    spectrum: Tensor = torch.fft.rfft2(matrices) if form == "paper" else torch.fft.fft2(matrices)
    return spectrum


def _inverse(spectrum: Tensor, like: Tensor, form: Form) -> Tensor:
    back = torch.fft.irfft2 if form == "paper" else torch.fft.ifft2
    inverse: Tensor = back(spectrum, s=like.shape[-2:]).real
    return inverse


def _amplitudes(spectrum: Tensor) -> Tensor:
    """Absolute values; on a CPU numpy's, which take a ninth of the time of PyTorch's."""
    return torch.from_numpy(np.abs(spectrum.numpy())) if spectrum.device.type == "cpu" else spectrum.abs()
