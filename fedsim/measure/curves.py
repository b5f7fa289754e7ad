"""What a question of yes and no is answered like: curves, points on them, and whether probabilities mean what they say.

Shapes: n images to which the question is put.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.tasks.task import Decision
from fedsim.tasks.weighted import Values

SPECIFICITIES = (0.8, 0.9, 0.95)
BINS = 15
# A share that is at least another one, for two that are the same but for rounding.
ROOM = 1e-12
Thresholds = Mapping[float, float]


def answered(one: Decision, measured_on: str, thresholds: Thresholds) -> dict[str, Any]:
    """Return a question's numbers: counts, areas, rates at the answers given and at fixed specificities, calibration.

    ``thresholds``: scores by the specificity that validation has at them, beside those that the set's own curve has.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # late: takes a second to import

    answers = {
        "images": len(one.truth),
        "positives": int(one.truth.sum()),
        "auroc": float(roc_auc_score(one.truth, one.score)) if is_open(one) else float("nan"),
        "average_precision": float(average_precision_score(one.truth, one.score)) if is_open(one) else float("nan"),
        **rates(one.truth, one.answer),
    }
    points = [
        operating_point(one, asked, threshold, source)
        for source, found in ((measured_on, fixed_specificity(one)), ("val", thresholds))
        for asked, threshold in found.items()
    ]
    return {**answers, "operating_points": points, "calibration": reliability(probability(one.score), one.truth)}


def is_open(one: Decision) -> bool:
    """Whether some of the images are a yes and some a no."""
    return bool(one.truth.any() and not one.truth.all())


def rates(truth: npt.NDArray[np.bool_], answer: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return sensitivity, specificity and predictive values, nan where there is nothing to count."""

    def share(of: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> float:
        return float(of[among].mean()) if among.any() else float("nan")

    return {
        "sensitivity": share(answer, truth),
        "specificity": share(~answer, ~truth),
        "positive_predictive_value": share(truth, answer),
        "negative_predictive_value": share(~truth, ~answer),
    }


def fixed_specificity(one: Decision) -> dict[float, float]:
    """Return by specificity the lowest score from which on a yes is said and so many of the images that are none pass.

    Empty where all images are a yes, or all a no.
    """
    if not is_open(one):
        return {}
    from sklearn.metrics import roc_curve  # late, as above

    false, _, scores = roc_curve(one.truth, one.score, drop_intermediate=False)
    # Sensitivity grows along the curve, so the last point that is specific enough has the most.
    return {asked: float(scores[np.flatnonzero(1 - false >= asked - ROOM)[-1]]) for asked in SPECIFICITIES}


def operating_point(one: Decision, asked: float, threshold: float, source: str) -> dict[str, Any]:
    """Return what comes of saying yes from a score on, which the set ``source`` chose for the specificity ``asked``."""
    found = rates(one.truth, one.score >= threshold)
    return {
        "specificity_asked": asked,
        "threshold_from": source,
        "threshold": as_probability(threshold),
        "sensitivity": found["sensitivity"],
        "specificity": found["specificity"],
    }


def curves(one: Decision) -> dict[str, dict[str, list[float]]]:
    """Return the corners of the ROC curve and the points of precision and recall; none where the question is settled.

    A threshold is the least probability of a yes, nan where there is none.
    """
    if not is_open(one):
        return {}
    from sklearn.metrics import precision_recall_curve, roc_curve  # late, as above

    false, true, scores = roc_curve(one.truth, one.score)
    precision, recall, cuts = precision_recall_curve(one.truth, one.score, drop_intermediate=True)
    return {
        "roc": {
            "threshold": [as_probability(score) for score in scores],
            "false_positive_rate": false.tolist(),
            "true_positive_rate": true.tolist(),
        },
        "precision_recall": {
            "threshold": [*(as_probability(score) for score in cuts), float("nan")],
            "precision": precision.tolist(),
            "recall": recall.tolist(),
        },
    }


def reliability(chance: Values, truth: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the expected calibration error and the points that it is made of (Guo et al., ICML 2017, equation 3).

    ``chance`` (n,) is what is said, ``truth`` (n,) what came of it. Bins are equal parts of 0..1, each with its upper
    end, the first with 0 as well; empty ones are left out.
    """
    bins = np.maximum(np.ceil(chance * BINS).astype(np.int64) - 1, 0)
    counts = np.bincount(bins, minlength=BINS)
    said, came = (np.bincount(bins, values, BINS) / np.maximum(counts, 1) for values in (chance, truth))
    error = float((counts * np.abs(said - came)).sum() / len(chance)) if len(chance) else float("nan")
    points = [
        {"from": at / BINS, "to": (at + 1) / BINS, "images": int(counts[at]), "said": said[at], "came": came[at]}
        for at in np.flatnonzero(counts).tolist()
    ]
    return {"expected_calibration_error": error, "points": points}


def probability(score: Values) -> Values:
    """Return p of log(p / (1 - p))."""
    from scipy.special import expit  # type: ignore[import-untyped]  # no stubs; late, as above

    return np.asarray(expit(score))


def as_probability(score: float) -> float:
    """Return the probability of one score; nan of infinity, which no image has."""
    return float(probability(np.array(score))) if np.isfinite(score) else float("nan")
