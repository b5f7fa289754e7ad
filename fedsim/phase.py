"""One phase of a round: train this rank's blocks, add up exactly what the clients send, meet the other ranks.

Shapes: K clients of the cohort.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from algorithms.base import Aggregate, Payload, Phase, ServerState, Update
from comm import ExactSum
from fedsim.cohort import Cohort
from fedsim.figures import ClientFigures
from fedsim.method_checks import check_kept, check_payload
from fedsim.simulation import Simulation


@dataclass(frozen=True)
class Outcome:
    """What a phase gave, the same on every rank but for ``gathered``.

    ``losses``, ``seconds``: float64 (K,) in the cohort's order. ``squared_norm``: weighted mean over the clients of
    the squared norm of what they send to be averaged, see ``of_parameters``. ``below_grid``: share of the numbers
    unlike zero that the exact sum could not hold. ``bytes_up``: what all clients together
    sent, floats counted as float32.
    ``gathered``: tensors (K, ...) on the server, empty on the other ranks.
    """

    aggregate: Aggregate
    losses: Tensor
    seconds: Tensor
    squared_norm: float
    below_grid: float
    bytes_up: int
    gathered: Mapping[str, Tensor]


def train_phase(
    sim: Simulation,
    state: ServerState,
    phase: Phase,
    cohort: Cohort,
    plan: Sequence[Sequence[range]],
    figures: ClientFigures | None = None,
) -> Outcome:
    """Train and aggregate; ``plan`` lists the blocks of every rank as ranges of positions in the cohort.

    ``figures`` takes in, if given, what the clients' models are worth before the aggregation.
    """
    total = ExactSum(len(cohort.clients))
    busy = torch.zeros(sim.group.num_ranks, dtype=torch.float64)
    busy[sim.group.rank] = sim.group.seconds_since_meeting
    losses, seconds, squared_norms = torch.zeros(3, len(cohort.clients), dtype=torch.float64)
    gathered: list[dict[str, Tensor]] = []
    # An idle rank trains a block without clients: it tells the names and shapes of the sums.
    for block in plan[sim.group.rank] or [range(0)]:
        started = time.perf_counter()
        clients = cohort.clients[block.start : block.stop]
        weights = cohort.weights[block.start : block.stop]
        with sim.store.open(clients) as states:
            update, block_losses = sim.trainer.train(clients, weights, state, phase, states)
            payload = sim.algorithm.pre_aggregate(replace(update, cohort=cohort.clients))
            check_payload(sim.algorithm, payload, len(clients))
            check_kept(sim.algorithm, states)
            if figures is not None:
                figures.measure_before(block, update, states, state.params)
        total.add_mean(payload.mean, weights, clients)
        total.add_sum(payload.total, clients)
        gathered.append({**payload.gather, **averaged_factors(sim, update, payload)})
        losses[block.start : block.stop] = block_losses
        squared_norms[block.start : block.stop] = sum_of_squares(of_parameters(sim, payload.mean), len(clients))
        seconds[block.start : block.stop] = (time.perf_counter() - started) / max(1, len(clients))

    # Which grids the sums are on follows from their largest elements on any rank.
    total.agree(sim.group.max_exact(total.peaks))
    # Then one collective: exact sums, and per client and rank numbers as bits, which are zero on other ranks.
    summed = total.flat
    table = torch.cat([losses, squared_norms, seconds, busy])
    reduced = sim.group.sum_exact(torch.cat([summed, table.view(torch.int64).to(summed.device)]))
    table = reduced[len(summed) :].cpu().view(torch.float64)
    losses, squared_norms, seconds, busy = table.split([len(cohort.clients)] * 3 + [len(busy)])
    reduced = reduced[: len(summed)]
    values = total.read(reduced)
    sim.remember_seconds(cohort, seconds, busy.tolist())
    return Outcome(
        Aggregate(
            cohort.clients,
            {name: values[name] for name in payload.mean},
            {name: values[name] for name in payload.total},
        ),
        losses,
        seconds,
        float((cohort.weights * squared_norms).sum()),
        total.below_grid(reduced),
        num_bytes(payload) * len(cohort.clients),
        gather(sim, gathered, plan),
    )


def sum_of_squares(tensors_K: Mapping[str, Tensor], num_clients: int) -> Tensor:
    """Return each client's squared norm over all tensors, float64 (K,)."""
    # Without clients -1 would be ambiguous, so a scalar per client gets its second axis by name.
    if not tensors_K:
        return torch.zeros(num_clients, dtype=torch.float64)
    squares = [value.double().reshape(num_clients, math.prod(value.shape[1:])) for value in tensors_K.values()]
    return torch.cat(squares, dim=1).square().sum(1)


def of_parameters(sim: Simulation, mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what of a payload's or aggregate's mean tells how far the clients drift apart.

    That is the parameters by their own names, but for running statistics: a count of batches says nothing.
    """
    specs = sim.held.specs
    return {name: value for name, value in mean.items() if name in specs and specs[name].kind != "buffer"}


def averaged_factors(sim: Simulation, update: Update, payload: Payload) -> dict[str, Tensor]:
    """Return the trained LoRA factors that are averaged one by one, for the diagnostics of their aggregation."""
    factors = {name for name, spec in sim.held.specs.items() if spec.kind in ("lora_a", "lora_b")}
    return {name: update.after[name] for name in update.after if name in factors & payload.mean.keys()}


def num_bytes(payload: Payload) -> int:
    """Return the bytes that one client sends, floats as float32."""
    tensors = [*payload.mean.values(), *payload.total.values(), *payload.gather.values()]
    return sum(
        math.prod(value.shape[1:]) * min(8 if value.is_complex() else 4, value.element_size()) for value in tensors
    )


def gather(
    sim: Simulation, blocks: Sequence[Mapping[str, Tensor]], plan: Sequence[Sequence[range]]
) -> dict[str, Tensor]:
    """Collect rows of all ranks on the server, back in the cohort's order."""
    positions = torch.tensor([p for blocks_of_rank in plan for block in blocks_of_rank for p in block])
    counts = [sum(len(block) for block in blocks_of_rank) for blocks_of_rank in plan]
    # Sorted, since every rank may have read its names from a checkpoint in another order.
    columns = {name: torch.cat([block[name] for block in blocks]) for name in sorted(blocks[0])}
    if not columns:
        return {}
    # One message for all tensors, whatever their types: their bytes side by side.
    rows = torch.cat([value.contiguous().flatten(1).view(torch.uint8) for value in columns.values()], dim=1)
    everyone = sim.group.gather_rows(rows, counts)
    if everyone is None:
        return {}
    order = positions.argsort().to(everyone.device)
    widths = [math.prod(value.shape[1:]) * value.element_size() for value in columns.values()]
    return {
        name: part.index_select(0, order).view(value.dtype).reshape(-1, *value.shape[1:])
        for (name, value), part in zip(columns.items(), everyone.split(widths, dim=1), strict=True)
    }
