"""What a round takes on so many ranks, worked out from a calibration. Imports no torch.

R ranks, B blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from fedsim.schedule.ranks import assign_blocks, loads, lower_bound
from fedsim.verbs.planning.calibration import Calibration, PhaseCosts, features
from fedsim.verbs.planning.gpus import (
    LAUNCH_SECONDS,
    NETWORK,
    NETWORK_LATENCY_SECONDS,
    NETWORK_OF_CPUS,
    Gpu,
)


@dataclass(frozen=True)
class Prediction:
    """Of a round on ``ranks`` ranks: seconds in all and of its parts, and bytes.

    ``training``: of the rank that is at it longest; ``bound``: what no plan for the same blocks is below; ``serial``:
    what every rank does by itself; ``meeting``: adding up. ``evaluation``: of a round that is evaluated, not in
    ``seconds``. ``rank_bytes``: of each rank's host memory, ``device_bytes`` of its GPU's; ``sent_bytes``: that each
    rank brings to the meetings.
    """

    ranks: int
    nodes: int
    blocks: int
    training: float
    bound: float
    serial: float
    meeting: float
    evaluation: float
    rank_bytes: int
    device_bytes: int
    sent_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds of a round without its evaluation."""
        return self.training + self.serial + self.meeting


@dataclass(frozen=True)
class Machine:
    """Where ranks run: how many of a node have a processor of their own, and what they share of the rest."""

    phases: Sequence[PhaseCosts]
    per_block: int
    processors: float
    slowdown: float
    latency: float
    seconds_per_byte: float
    device_bytes: int


def predict(found: Calibration, ranks: int, nodes: int = 1, gpu: Gpu | None = None, per_block: int = 0) -> Prediction:
    """Return what a round takes on ranks like those that were measured, or on ``gpu``, one for each rank.

    ``nodes``: which share the ranks evenly. ``per_block``: clients of a block on GPUs.
    """
    per_node = math.ceil(ranks / nodes)
    machine = here(found, per_node, nodes) if gpu is None else there(found, gpu, nodes, per_block)
    training = bound = 0.0
    for phase in machine.phases:
        rounds = [phase.of(features(clients, machine.per_block)).tolist() for clients in found.cohorts]
        training += fmean(busiest(costs, ranks, per_node, machine.processors) for costs in rounds)
        bound += fmean(lower_bound(costs, [0.0] * ranks) for costs in rounds)
    waiting = max(1.0, per_node / machine.processors)
    # Each rank's own numbers are in the sums beside what was measured.
    sent = found.sent_bytes + 8 * (ranks - found.processes) * len(found.phases)
    hops = math.log2(ranks) if ranks > 1 else 0.0
    # Of a ring each rank sends and takes nearly twice what it brings.
    wire = 2 * (ranks - 1) / ranks * sent * machine.seconds_per_byte
    num_shares = min(ranks, machine.processors * nodes)
    return Prediction(
        ranks=ranks,
        nodes=nodes,
        blocks=len(features(found.cohorts[0], machine.per_block)),
        training=training * machine.slowdown,
        bound=bound * machine.slowdown,
        serial=found.serial_seconds * waiting * machine.slowdown,
        meeting=(hops * machine.latency * 2 * len(found.phases) + wire) * waiting,
        evaluation=found.evaluation_seconds / num_shares * machine.slowdown,
        rank_bytes=found.rank_bytes + math.ceil(found.num_clients / ranks) * found.state_bytes,
        device_bytes=machine.device_bytes,
        sent_bytes=sent if ranks > 1 else 0,
    )


def here(found: Calibration, per_node: int, nodes: int) -> Machine:
    """Return the machine that was measured, as each of ``nodes``.

    Ranks slow each other down evenly until as many train as were measured at once, and no further.
    """
    others = min(per_node, found.processors, found.processes) - 1
    slowdown = 1 + (found.slowdown - 1) * others / max(1, found.processes - 1)
    latency, per_byte = 0.0, 0.0
    if found.processes > 1:
        latency = found.latency_seconds / math.log2(found.processes)
        share = 2 * (found.processes - 1) / found.processes
        per_byte = max(0.0, found.meeting_seconds - 2 * len(found.phases) * found.latency_seconds)
        per_byte /= share * found.sent_bytes
    if nodes > 1:
        latency, per_byte = latency + NETWORK_LATENCY_SECONDS, max(per_byte, 1 / NETWORK_OF_CPUS)
    return Machine(found.phases, found.per_block, found.processors, slowdown, latency, per_byte, found.device_bytes)


def there(found: Calibration, gpu: Gpu, nodes: int, per_block: int) -> Machine:
    """Return GPUs that reach the same share of their rate of products as the processor here does of its own.

    And that spend on each operation of a step no less than what starting it takes.
    """
    faster = gpu.rates[found.precision] / found.rate
    launching = found.operations * LAUNCH_SECONDS
    phases = [
        replace(phase, step=phase.step / faster + launching, image=phase.image / faster, client=phase.client)
        for phase in found.phases
    ]
    latency, rate = (NETWORK_LATENCY_SECONDS, NETWORK) if nodes > 1 else (LAUNCH_SECONDS, gpu.link)
    device_bytes = found.model_bytes + found.data_bytes + found.activation_bytes * per_block
    return Machine(phases, per_block, math.inf, 1.0, latency, 1 / rate, device_bytes)


def busiest(costs: Sequence[float], ranks: int, per_node: int, processors: float) -> float:
    """Return when the last rank has trained its blocks; the ranks of a node share its processors evenly."""
    own = loads(costs, [0.0] * ranks, assign_blocks(costs, [0.0] * ranks))
    return max(shared(own[start : start + per_node], processors) for start in range(0, ranks, per_node))


def shared(works: Sequence[float], processors: float) -> float:
    """Return when the last of some works is done that run side by side on processors, each on one at a time."""
    done, now = 0.0, 0.0
    left = len(works)
    for work in sorted(works):
        now += (work - done) * max(1.0, left / processors)
        done, left = work, left - 1
    return now
