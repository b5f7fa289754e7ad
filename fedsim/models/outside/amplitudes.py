"""Amplitude normalisation beside what was trained: its target, its words, and its source, which needs no fedsim.

Shapes: N images of C channels, H rows and W columns, V = W // 2 + 1.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.machine.files import write_atomic, write_json
from fedsim.models import amplitude
from fedsim.models.amplitude import ROUNDING, AmplitudeNorm

START = "amplitude_norm."
#: The function that normalises images, in Python.
NORMALISED = 'runpy.run_path(FOLDER + "/amplitude_norm.py")["loaded"](FOLDER)'


def write_amplitude_norm(folder: Path, params: Mapping[str, Tensor], config: ModelConfig, image_size: int) -> None:
    """Write amplitude_norm.safetensors, .json and .py where the model normalises amplitudes."""
    if config.amplitude_norm is None:
        return
    target = {
        name.removeprefix(START): value.detach().cpu() for name, value in params.items() if name.startswith(START)
    }
    write_atomic(folder / "amplitude_norm.safetensors", save(target))
    write_json(folder / "amplitude_norm.json", {"norm": config.amplitude_norm.model_dump(), "size": image_size})
    write_atomic(folder / "amplitude_norm.py", Path(amplitude.__file__).read_bytes())


class RealAmplitudeNorm(nn.Module):
    """What a norm does in evaluation to images (N, C, H, W), by real products: ONNX has no complex numbers."""

    amplitude: Tensor
    inside: Tensor
    but_constant: Tensor
    rows_cos: Tensor
    rows_sin: Tensor
    columns_cos: Tensor
    columns_sin: Tensor
    back_cos: Tensor
    back_sin: Tensor

    def __init__(self, norm: AmplitudeNorm, width: int) -> None:
        super().__init__()
        self.has_target = bool(norm.is_fixed) or bool(norm.amplitude.any())
        height, num_columns = norm.inside.shape
        rows = angles(torch.arange(height), torch.arange(height), height)
        columns = angles(torch.arange(width), torch.arange(num_columns), width)
        # Frequencies that the half spectrum leaves out are those of the other sign.
        counts = torch.full((num_columns, 1), 2.0, dtype=torch.float64)
        counts[0] = 1
        if width % 2 == 0:
            counts[-1] = 1
        matrices = {
            "rows_cos": rows.cos(),
            "rows_sin": rows.sin(),
            "columns_cos": columns.cos(),
            "columns_sin": columns.sin(),
            "back_cos": counts * columns.cos().mT / (height * width),
            "back_sin": counts * columns.sin().mT / (height * width),
        }
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.float())
        self.register_buffer("amplitude", norm.amplitude)
        self.register_buffer("inside", norm.inside)
        but_constant = torch.ones(height, num_columns)
        but_constant[0, 0] = 0
        self.register_buffer("but_constant", but_constant)

    def forward(self, images: Tensor) -> Tensor:
        if not self.has_target:
            return images
        mean = images.mean((-2, -1), keepdim=True)
        centred = images - mean
        real, imaginary = centred @ self.columns_cos, -(centred @ self.columns_sin)
        real, imaginary = (
            self.rows_cos @ real + self.rows_sin @ imaginary,
            self.rows_cos @ imaginary - self.rows_sin @ real,
        )
        size = (real * real + imaginary * imaginary).sqrt()
        has_phase = size > ROUNDING * images.abs().sum((-2, -1), keepdim=True)
        scale = torch.where(self.inside & has_phase, self.amplitude / torch.where(has_phase, size, 1.0), 1.0)
        scale = scale * self.but_constant
        real, imaginary = real * scale, imaginary * scale
        real, imaginary = (
            self.rows_cos @ real - self.rows_sin @ imaginary,
            self.rows_cos @ imaginary + self.rows_sin @ real,
        )
        constant = self.amplitude[:, :1, :1] / (images.shape[-2] * images.shape[-1])
        return real @ self.back_cos - imaginary @ self.back_sin + torch.where(mean < 0, -constant, constant)


def angles(first: Tensor, second: Tensor, period: int) -> Tensor:
    """2 pi times the products of two rows of whole numbers over a period, float64."""
    return (2 * torch.pi / period) * (first[:, None] * second % period).double()
