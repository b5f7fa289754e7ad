"""How many clients train as one batch when the config leaves it open.

The number depends on the config and on the kind of device, never on the number of ranks, and is written into the
run folder's config.yaml, so that a repeated run cuts the same blocks anywhere.
"""

from collections.abc import Sequence

import numpy as np

from fedsim.config import Config
from fedsim.models.stacked import StackedModel


def choose_block_size(config: Config, model: StackedModel, parts: Sequence[np.ndarray]) -> int:
    """Return ``clients.per_block``, or for ``auto`` a size that suits the device."""
    del model, parts
    if config.clients.per_block != "auto":
        return config.clients.per_block
    return min(4, config.clients.count)
