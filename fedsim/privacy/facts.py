"""What is public about a run, from its method and its clients.

Shapes: K = 0 clients, M models of a client.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Algorithm, Payload, Phase, ServerState, Update
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.privacy.ledger import PublicFacts
from fedsim.schedule.cohort import num_local_steps


def public_facts(config: Config, algorithm: Algorithm, sizes: Sequence[int]) -> PublicFacts:
    """Return what a run's privacy is accounted from; ``sizes``: the number of training images of each client.

    All rounds are taken to have as many phases, and as large messages, as any has. A phase in which nothing is sent is
    no release.
    """
    rounds: list[Sequence[Phase]] = []
    for round in range(1, config.rounds + 1):
        if (phases := algorithm.phases(round)) not in rounds:
            rounds.append(phases)
    numbers = [[count_numbers(nobodys_payload(algorithm, phase)) for phase in phases] for phases in rounds]
    largest = max(count for counts in numbers for count in counts)
    trainings = max(len(counts) for counts in numbers)
    releases = max(sum(count > 0 for count in counts) for counts in numbers)
    steps = tuple(num_local_steps(config.train, size) if size else 0 for size in sizes)
    return PublicFacts(tuple(sizes), steps, trainings, releases, largest)


def check_messages(config: Config, algorithm: Algorithm) -> None:
    """UserError where clients send more than what they have learned, which clipping, weights and noise would spoil."""
    name = config.algorithm.name
    if algorithm.assumes_true_sums is not None:
        found = f"on whole messages with {name}: {algorithm.assumes_true_sums}"
        raise UserError("privacy.mechanism", found, "record, or another method")
    for phase in algorithm.phases(1):
        sent = nobodys_payload(algorithm, phase).mean.get(PARAMS, {})
        statistics = [param for param in sent if algorithm.specs[param].kind == "buffer"]
        if statistics:
            found = f"on whole messages with {statistics[0]}, a statistic of the images, among what {name} sends"
            raise UserError("privacy.mechanism", found, "a network without running statistics, or fedbn")


def nobodys_payload(algorithm: Algorithm, phase: Phase) -> Payload:
    """Return what clients send in a phase of the first round, with no client in it: the shapes are those of any."""
    nothing = torch.zeros(())
    params = {name: nothing.expand(spec.shape) for name, spec in algorithm.specs.items()}
    state = ServerState(0, params, dict(algorithm.init_server(params)))
    models = (phase.models,) if phase.models > 1 else ()
    trained = {name: spec for name, spec in algorithm.specs.items() if spec.kind in phase.kinds}
    update = Update(
        round=1,
        phase=phase,
        clients=(),
        cohort=(),
        weights=torch.zeros(0, dtype=torch.float64),
        before={name: params[name] for name in trained},
        after={name: torch.zeros(0, *models, *spec.shape) for name, spec in trained.items()},
        context=algorithm.begin(state, phase, []).context,
        kept=[],
        num_steps=torch.zeros(0, dtype=torch.int64),
        lr=algorithm.facts.train.lr,
        momentum=algorithm.facts.train.momentum,
    )
    return algorithm.pre_aggregate(update)


def count_numbers(payload: Payload) -> int:
    """Return how many numbers one client sends."""
    groups = [*payload.mean.values(), *payload.total.values(), *payload.gather.values()]
    values: list[Tensor] = [value for group in groups for value in group.values()]
    return sum(math.prod(value.shape[1:]) * (2 if value.is_complex() else 1) for value in values)
