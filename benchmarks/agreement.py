"""Whether contenders computed the same round: judged on the change of the factors, not on the factors."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.regimes import Array, Regime, lora_arrays

FP32_LIMIT = 1e-3


def load_factors(path: Path, regime: Regime) -> dict[str, Array]:
    """Factors after round 1 as a contender saved them; a wrong name or shape is an error."""
    expected = {name: array.shape for name, array in lora_arrays(regime).items()}
    with np.load(path, allow_pickle=False) as archive:
        factors = {name: archive[name] for name in archive.files}
    found = {name: array.shape for name, array in factors.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
        raise ValueError(f"{path}: {wrong[0]}: found {found.get(wrong[0])}; expected {expected.get(wrong[0])}")
    return factors


def relative_difference(factors: dict[str, Array], reference: dict[str, Array], regime: Regime) -> float:
    """The norm of the difference between two results over the norm of the reference's change in the round."""
    change = _vector(reference) - _vector(lora_arrays(regime))
    return float(np.linalg.norm(_vector(factors) - _vector(reference)) / np.linalg.norm(change))


def _vector(factors: dict[str, Array]) -> NDArray[np.float64]:
    return np.concatenate([factors[name].astype(np.float64).ravel() for name in sorted(factors)])
