"""Batches of unequal sizes through a network that mixes the images of a batch.

What normalises over the batch must not see the places that a smaller batch leaves empty, so rows with equal batch
sizes go together.

Shapes: R models side by side, B images of the one that has most.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedsim.models.stacked import Counting, StackedModel


def ragged_features(
    model: StackedModel,
    params: Mapping[str, Tensor],
    own: Collection[str],
    fixed: Tensor,
    sizes_R: Sequence[int],
    *,
    training: bool,
    counting: Counting | None = None,
) -> Tensor:
    """Return what the classifier sees, (R, B, ...), zero at the places that a row leaves empty.

    ``params``: those named in ``own`` with an axis of rows, of which running statistics change in place. ``fixed``
    (R, B, ...): the inputs' prefixes, of which row r fills the first ``sizes_R[r]``.
    """
    if len(set(sizes_R)) == 1 or not model.mixes_images(training=training):
        return model.features(params, fixed, training=training, counting=counting)
    features: Tensor | None = None
    for size in sorted(set(sizes_R)):
        rows = [row for row, filled in enumerate(sizes_R) if filled == size]
        some = {name: value[rows] if name in own else value for name, value in params.items()}
        places = counting and replace(counting, places=counting.places[rows, :size])
        part = model.features(some, fixed[rows, :size], training=training, counting=places)
        for name in own:
            if model.specs[name].kind in ("buffer", "count"):
                params[name][rows] = some[name]
        if features is None:
            features = part.new_zeros(*fixed.shape[:2], *part.shape[2:])
        features[rows, :size] = part
    assert features is not None, "there is a row"
    return features
