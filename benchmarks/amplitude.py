"""Amplitude normalisation of a batch beside a loop over its images with numpy.fft, the same numbers from both.

    python -m benchmarks.amplitude [--device cuda] [--threads 1]

Both make the batch's mean amplitude the target, put it under every image's own phases and transform back. The loop
works in float64, as HarmoFL's released code does, and once in the images' own float32. Milliseconds for the batch,
the best of several runs.

B images, C channels, H rows, W columns.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.machine import description
from fedsim.config.amplitude import AmplitudeNormConfig
from fedsim.machine.memory import keep_freed_memory
from fedsim.models.amplitude import AmplitudeNorm

SHAPE = (128, 3, 96, 96)


def loop(images: np.ndarray) -> np.ndarray:
    """Normalise images (B, C, H, W) one by one."""
    spectra = [np.fft.fft2(image) for image in images]
    target = np.mean([np.abs(spectrum) for spectrum in spectra], axis=0)
    return np.stack([np.fft.ifft2(target * np.exp(1j * np.angle(spectrum))).real for spectrum in spectra])


def batched(images: torch.Tensor) -> torch.Tensor:
    """Normalise images (B, C, H, W) at once, as the first batch of a training."""
    result: torch.Tensor = AmplitudeNorm(AmplitudeNormConfig(), *images.shape[1:]).to(images.device)(images)
    return result


def best_milliseconds(work: Callable[[], object], runs: int) -> float:
    """The fastest of several runs."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch; numpy.fft has one")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()

    # Whole grey values in 0..1, as from a file, each image with its own brightness and contrast.
    stream = np.random.default_rng(0)
    grey = stream.uniform(60, 200, (SHAPE[0], 1, 1, 1)) + stream.uniform(5, 50, (SHAPE[0], 1, 1, 1)) * stream.normal(
        size=SHAPE
    )
    images = (grey.clip(0, 255).round() / 255).astype(np.float32)
    on_device = torch.from_numpy(images).to(arguments.device)

    expected = loop(images.astype(np.float64))
    difference = float(np.abs(batched(on_device).cpu().numpy() - expected).max())
    assert difference < 1e-5, difference
    ours = best_milliseconds(lambda: batched(on_device).cpu(), arguments.runs)
    rows = {
        "loop over images, numpy.fft, float64": best_milliseconds(
            lambda: loop(images.astype(np.float64)), arguments.runs
        ),
        "loop over images, numpy.fft, float32": best_milliseconds(lambda: loop(images), arguments.runs),
        f"one batch, torch.fft, float32, {arguments.device}": ours,
    }
    facts = description()
    versions = f"torch {facts['versions']['torch']}, numpy {np.__version__}, commit {facts['commit']}"
    print(f"{facts['cpu']}, {versions}, {arguments.threads} threads of torch")
    print(f"images {SHAPE}; largest difference from the loop in float64 {difference:.1e}")
    print("| | ms | of ours |")
    print("|---|---|---|")
    for name, milliseconds in rows.items():
        print(f"| {name} | {milliseconds:.1f} | {milliseconds / ours:.1f} |")


if __name__ == "__main__":
    main()
