"""What is public about a run, from its method and its clients."""

import math
from collections.abc import Sequence

from fedsim.algorithms.base import Algorithm
from fedsim.config.experiment import Config
from fedsim.privacy.ledger import PublicFacts
from fedsim.schedule.cohort import num_local_steps


def public_facts(config: Config, algorithm: Algorithm, sizes: Sequence[int]) -> PublicFacts:
    """Return what a run's privacy is accounted from; ``sizes``: the number of training images of each client."""
    numbers = []
    for phase in algorithm.phases(1):
        trained = {name: spec for name, spec in algorithm.specs.items() if spec.kind in phase.kinds}
        sent = algorithm.sent(trained)  # type: ignore[arg-type]  # chooses by name, whatever the values are
        numbers.append(phase.models * sum(math.prod(trained[name].shape) for name in sent))
    numbers = [count for count in numbers if count]
    steps = tuple(num_local_steps(config.train, size) if size else 0 for size in sizes)
    return PublicFacts(tuple(sizes), steps, phases=len(numbers), numbers=max(numbers, default=0))
