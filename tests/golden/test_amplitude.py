"""Amplitude normalisation against HarmoFL's released code and the moving average it means (harmofl_amp.npz).

The release keeps whole spectra, we keep the half that determines a real image: columns 0 to W // 2. Amplitudes reach
101; a few times the rounding of float32 is allowed for, and for images ten times what the vectors showed themselves.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.config.amplitude import AmplitudeNormConfig
from fedsim.models.amplitude import AmplitudeNorm, low_frequencies
from tests.golden.clip import load, tags

GOLDEN = load("harmofl_amp")
IMAGES = {"rtol": 0, "atol": 2e-6}
AMPLITUDES = {"rtol": 1e-6, "atol": 1e-5}
RUNNING: dict[str, dict[str, Any]] = {
    # An integer momentum: 0.1 becomes 0, 1 stays.
    "process_m0p1": {"form": "released"},
    "process_m1": {"form": "released", "momentum": 1.0},
    "INTENDED_float_momentum_m0p1": {"low_freq_fraction": 0.0},
    "INTENDED_float_momentum_m0p9": {"low_freq_fraction": 0.0, "momentum": 0.9},
}

every_case = pytest.mark.parametrize("case", tags(GOLDEN, r"(case\d+)/"))


def half(amplitudes: Tensor) -> Tensor:
    return amplitudes[..., : amplitudes.shape[-1] // 2 + 1]


def make_norm(images: Tensor, **words: Any) -> AmplitudeNorm:
    return AmplitudeNorm(AmplitudeNormConfig(**words), *images.shape[-3:])


def fixed_norm(target: Tensor, **words: Any) -> AmplitudeNorm:
    """A target of the release has no symmetry; dropping the imaginary part has the effect of making it symmetric."""
    mirrored = target.flip(-2, -1).roll((1, 1), (-2, -1))
    norm = make_norm(target, **words)
    norm.load_state_dict({"amplitude": half((target + mirrored) / 2), "is_fixed": torch.tensor(True)})
    return norm


@every_case
@pytest.mark.parametrize("form", RUNNING)
def test_running_target(case: str, form: str) -> None:
    batches = GOLDEN[f"{case}/batches"]
    norm = make_norm(batches, **RUNNING[form])
    for number, batch in enumerate(batches):
        out = norm(batch)
        torch.testing.assert_close(norm.amplitude, half(GOLDEN[f"{case}/{form}/running_amp{number}"]), **AMPLITUDES)
        torch.testing.assert_close(out, GOLDEN[f"{case}/{form}/out{number}"], **IMAGES)


@every_case
def test_fixed_target(case: str) -> None:
    target = GOLDEN[f"{case}/fixed/running_amp_in"]
    norm = fixed_norm(target, form="released")
    before = norm.amplitude.clone()
    for number, batch in enumerate(GOLDEN[f"{case}/batches"]):
        torch.testing.assert_close(norm(batch), GOLDEN[f"{case}/fixed/out{number}"], **IMAGES)
    assert torch.equal(norm.amplitude, before)
    nothing = fixed_norm(torch.zeros_like(target), form="released")
    out = nothing(GOLDEN[f"{case}/batches"][0])
    torch.testing.assert_close(out, GOLDEN[f"{case}/fixed_zero_amp/out"], **IMAGES)


@every_case
@pytest.mark.parametrize("fraction", GOLDEN["L_values"].tolist())
def test_window_of_low_frequencies(case: str, fraction: float) -> None:
    words = f"L{fraction:g}".replace(".", "p")
    target, batches = GOLDEN[f"{case}/fixed/running_amp_in"], GOLDEN[f"{case}/batches"]
    amplitude = torch.fft.rfft2(batches[0, 0].double()).abs()
    mutated = torch.where(low_frequencies(*target.shape[1:], fraction), half(target).double(), amplitude)
    torch.testing.assert_close(amplitude, half(GOLDEN[f"{case}/extract_amp/out"]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mutated, half(GOLDEN[f"{case}/mutate/{words}"]), rtol=1e-12, atol=1e-12)
    out = fixed_norm(target, low_freq_fraction=fraction)(batches[-1])
    torch.testing.assert_close(out.double(), GOLDEN[f"{case}/normalize/{words}"], **IMAGES)


@every_case
def test_module_leaves_the_callers_images_alone(case: str) -> None:
    """On a CPU the release changes them in place; a second forward pass gives the same as its does."""
    batch = GOLDEN[f"{case}/batches"][0]
    before = batch.clone()
    norm = make_norm(batch, form="released")
    torch.testing.assert_close(norm(batch), GOLDEN[f"{case}/AmpNorm/out_first"], **IMAGES)
    torch.testing.assert_close(norm.amplitude, half(GOLDEN[f"{case}/AmpNorm/running_amp_first"]), **AMPLITUDES)
    assert GOLDEN[f"{case}/AmpNorm/input_changed_in_place"]
    assert torch.equal(batch, before)
    torch.testing.assert_close(norm(batch), GOLDEN[f"{case}/AmpNorm/out_second_same_tensor"], **IMAGES)
    torch.testing.assert_close(norm.amplitude, half(GOLDEN[f"{case}/AmpNorm/running_amp_second"]), **AMPLITUDES)
