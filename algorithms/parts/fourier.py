"""The Fourier transform of weights, and the exchange of its low-frequency amplitudes (PRR-FL, section 2.1).

A weight tensor is taken as matrices, of which the two-dimensional discrete Fourier transform is computed in float64.
Frequencies are counted from 0 at the corner, negative ones from the end. Two forms of the low-frequency window:

``paper``: frequencies from -b to b, with b = floor(size * fraction / 2) along each axis. The window is symmetric, so
that the changed spectrum is Hermitian and the inverse is real, whatever the size; half of the spectrum is enough to
know all of it. The constant part is always inside, all is inside at fraction 1.
``released``: frequencies from -b to b - 1, as in the published code. Nothing where b is 0 along an axis, never all of
an axis of odd size; the inverse has an imaginary part, which is dropped.

Shapes: K clients, G matrices in a tensor, H rows, W columns of a matrix, h and w rows and columns of the window.
"""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["paper", "released"]


def to_matrices(weights_K: Tensor) -> Tensor:
    """Return the matrices (K, G, H, W) of convolutions, linear layers or LoRA factors.

    A convolution (K, N, C, D1, D2) is one matrix (C D1, D2 N); a linear weight (K, H, W) is one as it is; LoRA
    factors (K, G, H, W) are G of them.
    """
    if weights_K.dim() == 5:
        num_clients, num_out, num_in, height, width = weights_K.shape
        rows = weights_K.permute(0, 2, 3, 4, 1)
        return rows.reshape(num_clients, 1, num_in * height, width * num_out)
    return weights_K if weights_K.dim() == 4 else weights_K[:, None]


def from_matrices(matrices: Tensor, like: Tensor) -> Tensor:
    """Undo ``to_matrices`` for weights of the shape and type of ``like``."""
    if like.dim() == 5:
        num_clients, num_out, num_in, height, width = like.shape
        matrices = matrices.view(num_clients, num_in, height, width, num_out).permute(0, 4, 1, 2, 3)
    return matrices.reshape(like.shape).to(like.dtype)


def low_amplitudes(matrices: Tensor, fraction: float, form: Form) -> Tensor:
    """Return the amplitudes (..., h, w) in the window of matrices (..., H, W), float64: what a client sends."""
    rows, columns = window(matrices.shape[-2], matrices.shape[-1], fraction, form)
    amplitudes: Tensor = _transform(matrices, form)[..., rows[:, None], columns].abs()
    return amplitudes


def with_low_amplitudes(matrices: Tensor, amplitudes: Tensor, fraction: float, form: Form) -> Tensor:
    """Return matrices (..., H, W) with these amplitudes (..., h, w) in the window, float64.

    Phases, and amplitudes outside the window, stay each matrix's own.
    """
    shape = matrices.shape[-2:]
    rows, columns = window(shape[0], shape[1], fraction, form)
    spectrum = _transform(matrices, form)
    low = spectrum[..., rows[:, None], columns]
    size = low.abs()
    # Where there is no amplitude there is no phase either: zero, by convention.
    spectrum[..., rows[:, None], columns] = torch.where(size > 0, low * (amplitudes / size), amplitudes)
    inverse: Tensor = torch.fft.irfft2(spectrum, s=shape) if form == "paper" else torch.fft.ifft2(spectrum).real
    return inverse


def window(height: int, width: int, fraction: float, form: Form) -> tuple[Tensor, Tensor]:
    """Return the rows (h,) and columns (w,) of the spectrum that lie in the window, int64.

    The ``paper`` form's columns are those of the half spectrum of a real matrix, W // 2 + 1 in all.
    """
    half_height, half_width = (int(size * fraction / 2) for size in (height, width))
    if form == "released":
        if min(half_height, half_width) == 0:
            half_height = half_width = 0
        rows, columns = ([f % s for f in range(-b, b)] for s, b in ((height, half_height), (width, half_width)))
    else:
        rows = sorted({frequency % height for frequency in range(-half_height, half_height + 1)})
        columns = list(range(half_width + 1))
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)


def _transform(matrices: Tensor, form: Form) -> Tensor:
    """The spectrum (..., H, W), or for the ``paper`` form the half of it that a real matrix needs."""
    transform = torch.fft.rfft2 if form == "paper" else torch.fft.fft2
    spectrum: Tensor = transform(matrices.double())
    return spectrum
