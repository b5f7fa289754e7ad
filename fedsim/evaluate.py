"""Measuring the global model: class scores computed by all ranks together, metrics computed once.

Shapes: N images of a split, C classes.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comm import Group
from fedsim.images import ImageSource
from fedsim.models.stacked import StackedModel


def class_scores(
    model: StackedModel,
    params: Mapping[str, Tensor],
    images: ImageSource,
    places: np.ndarray,
    batch_size: int,
    group: Group,
) -> Tensor:
    """Return the scores (N, C) of the images at ``places``, the same on every rank.

    The batches are the same for any number of ranks; rank r computes every num_ranks-th of them.
    """
    scores = torch.zeros(len(places), model.num_classes)
    starts = range(0, len(places), batch_size)
    with torch.no_grad():
        for start in starts[group.rank :: group.num_ranks]:
            batch = places[start : start + batch_size]
            logits = model.forward(params, images.evaluation_batch(batch), training=False)
            scores[start : start + len(batch)] = logits[0].float().cpu()
    return group.sum_disjoint(scores)


def classification_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss, accuracy, balanced accuracy, macro recall, precision, F1 and AUROC, all but loss in 0..1.

    ``scores`` (N, C) before the softmax, ``labels`` (N,). Macro averages run over the classes that occur in
    labels or predictions; balanced accuracy and AUROC (one against the rest) over those that occur in labels.
    AUROC is nan where the labels hold a single class; scores that are not finite make every metric nan.
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score  # late: takes a second to import

    names = ("accuracy", "balanced_accuracy", "recall", "precision", "f1", "auroc", "loss")
    if not torch.isfinite(scores).all():
        return dict.fromkeys(names, float("nan"))
    truth = labels.cpu().numpy()
    predicted = scores.argmax(1).numpy()
    probabilities = scores.double().softmax(1).numpy()
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    present = np.unique(truth)
    hits = [float((predicted[truth == c] == c).mean()) for c in present]
    areas = [roc_auc_score(truth == c, probabilities[:, c]) for c in present] if len(present) > 1 else []
    values = (
        float((predicted == truth).mean()),
        float(np.mean(hits)),
        float(recall),
        float(precision),
        float(f1),
        float(np.mean(areas)) if areas else float("nan"),
        float(F.cross_entropy(scores.double(), labels.cpu())),
    )
    return dict(zip(names, values, strict=True))
