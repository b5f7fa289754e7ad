"""Metrics of many weightings of the same images at once, as a bootstrap asks for them.

A weight says how often an image counts: whole numbers, 0 for one that is left out. Every value is the one that
scikit-learn has for the images so repeated.

Shapes: W weightings, N images, C classes.
"""

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def sums_by(keys: npt.NDArray[np.int64], num_keys: int, weights: npt.NDArray[np.generic]) -> Values:
    """Return the sum of the weights (W, N) over the images of every key, (W, num_keys); ``keys`` (N,)."""
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    found = np.zeros((len(weights), num_keys))
    if len(present):
        found[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return found


def confusions(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], num_classes: int, weights: Weights
) -> Values:
    """Return the confusion matrices (W, C, C): how often class i (second axis) was taken for class j (third)."""
    found = sums_by(truth * num_classes + predicted, num_classes**2, weights)
    return found.reshape(len(weights), num_classes, num_classes)


def metrics_of_confusions(confusions_WCC: Values) -> dict[str, Values]:
    """Return accuracy, balanced accuracy, macro recall, precision and F1, (W,); see ``classification_metrics``."""
    hits, true, predicted = confusions_WCC.diagonal(0, 1, 2), confusions_WCC.sum(2), confusions_WCC.sum(1)
    occurs, present = true + predicted > 0, true > 0
    recalls, precisions, f1 = (
        part / np.maximum(whole, 1) for part, whole in ((hits, true), (hits, predicted), (2 * hits, true + predicted))
    )
    return {
        "accuracy": hits.sum(1) / true.sum(1),
        "balanced_accuracy": mean_where(present, recalls),
        "recall": mean_where(occurs, recalls),
        "precision": mean_where(occurs, precisions),
        "f1": mean_where(occurs, f1),
    }


def by_score(scores: Values, truth: npt.NDArray[np.bool_], weights: Weights) -> tuple[Values, Values]:
    """Return how many positives and negatives have each of the L scores that occur, from the lowest up, (W, L) both.

    ``scores`` and ``truth`` (N,).
    """
    levels, level = np.unique(scores, return_inverse=True)
    positives, negatives = (sums_by(level[side], len(levels), weights[:, side]) for side in (truth, ~truth))
    return positives, negatives


def aurocs(positives: Values, negatives: Values) -> Values:
    """Return the area under the ROC curve (W,): how often a positive has the higher score, ties counting half.

    From what ``by_score`` counts. Nan for a weighting that leaves positives or negatives out.
    """
    below = negatives.cumsum(1) - negatives / 2
    with np.errstate(invalid="ignore"):
        return np.asarray((positives * below).sum(1) / (positives.sum(1) * negatives.sum(1)))


def average_precisions(positives: Values, negatives: Values) -> Values:
    """Return the average precision (W,): precision at each score, weighted by the recall that it adds.

    From what ``by_score`` counts. Nan where ``aurocs`` is, so that both are means over the same findings.
    """
    found, wrong = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (positives, negatives))
    area = (positives * found / np.maximum(found + wrong, 1)).sum(1) / np.maximum(positives.sum(1), 1)
    return np.where((positives.sum(1) > 0) & (negatives.sum(1) > 0), area, np.nan)


def mean_where(counts: npt.NDArray[np.bool_], values: Values) -> Values:
    """Return the mean (W,) of ``values`` (W, C) where ``counts`` (W, C); nan for a row where nothing does."""
    number = counts.sum(1)
    total = np.where(counts, values, 0.0).sum(1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def mean_of_known(values: Values) -> Values:
    """Return the mean (W,) of those of ``values`` (W, C) that are numbers."""
    return mean_where(~np.isnan(values), values)
