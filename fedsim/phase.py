"""One phase of a round: train this rank's blocks, then meet the other ranks.

Two kinds of numbers leave a block. What the method and its layers let out is released: averaged, added up or gathered,
given to every rank's ``post_aggregate``, counted in bytes. What the simulator alone sees is observed: losses, seconds,
norms, sums of products of factors for the diagnostics. They travel side by side and are never mixed.

Shapes: K clients of the cohort.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Groups, Payload, Phase, ServerState, Update
from fedsim.algorithms.parts.by_products import ByProducts
from fedsim.algorithms.parts.own_ranks import scales_of
from fedsim.comm.exact import NUM_COUNTS, ExactSum
from fedsim.comm.group import Group
from fedsim.comm.rows import as_int64, from_int64
from fedsim.measure.client_scores import ClientScores
from fedsim.measure.costs import payload_of
from fedsim.measure.factor_sums import Factors, FactorSums, Trained, block_products, block_spans, client_factors
from fedsim.measure.traffic import Size, sent_by_client
from fedsim.method_checks import check_kept, check_payload
from fedsim.models.specs import ParamSpec
from fedsim.privacy.secured_phase import SecuredCosts, SecuredPhase, require_messages, require_sums, sends
from fedsim.schedule.cohort import Cohort
from fedsim.schedule.ranks import assign_blocks
from fedsim.simulation import Simulation
from fedsim.training.diverged import has_diverged, require_few, without

NONE_OLDER: Mapping[range, ServerState] = {}


@dataclass(frozen=True)
class Observed:
    """What the simulator sees of a phase, the same on every rank.

    ``losses``, ``seconds``, ``squared_norms``: float64 (K,) in the cohort's order; the norms are of the changes that
    clients send to be averaged, but for running statistics. ``busy``: every rank's seconds from the last meeting to its
    training. ``factors``: those of LoRA, added up; none where clients have ``diverged`` and are left out, whose losses
    are nan. ``below_grid``: share of the numbers sent, unlike zero, that the exact sum could not hold. ``sent``: by a
    client. ``context``: of no client, for its shapes. ``secured``: what secure aggregation took on this rank, if any.
    """

    losses: Tensor
    squared_norms: Tensor
    seconds: Tensor
    busy: list[float]
    factors: FactorSums
    below_grid: float
    sent: Size
    context: Groups
    secured: SecuredCosts | None
    diverged: tuple[int, ...] = ()


class Sums:
    """What the blocks of a rank add up to."""

    def __init__(
        self,
        cohort: Cohort,
        group: Group,
        specs: Mapping[str, ParamSpec],
        secured: SecuredPhase | None = None,
        scales: Tensor | None = None,
        max_diverged: float = 0.0,
    ) -> None:
        """``scales`` (K,): of the clients' products of factors beside the server's; None: one."""
        self.max_diverged = max_diverged
        self.cohort = cohort
        self.scales = torch.ones(len(cohort.clients), dtype=torch.float64) if scales is None else scales
        self.secured = secured
        #: The clients whose messages arrive, and the weights (K,) that they then have in a mean, the others zero.
        self.arrived = cohort.clients if secured is None else secured.stayed
        self.weights = cohort.weights_among(self.arrived)
        self.specs = specs
        num_terms = max(1, len(cohort.clients))
        self.released = ExactSum(num_terms, masks=None if secured is None else secured.masks)
        self.observed = ExactSum(num_terms, "the clients from", counting=False)
        # Losses, squared norms and seconds, zero but for this rank's clients.
        self.table = torch.zeros(3, len(cohort.clients), dtype=torch.float64)
        self.busy = torch.zeros(group.num_ranks, dtype=torch.float64)
        self.busy[group.rank] = group.seconds_since_meeting
        self.rows: dict[str, Tensor] = {}
        self.payload = Payload()
        self.context: Groups = {}
        self.layers: dict[str, Trained] = {}

    def add(self, places: Sequence[int], update: Update, raw: Payload, payload: Payload, losses: Tensor) -> None:
        """Take in the clients at some places of the cohort; without any it tells names and shapes of everything.

        ``payload``: what is released; ``raw``: the same before the layers, which is observed.
        """
        self._release(update, payload)
        at = torch.tensor(places, dtype=torch.int64)
        for name, value in flattened(payload.gather).items():
            if name not in self.rows:
                self.rows[name] = value.new_zeros(len(self.cohort.clients), *value.shape[1:])
            self.rows[name][at] = value
        self.table[0, at] = losses
        self.table[1, at] = squared_norms(raw, len(update.clients), self.specs)
        self.payload = payload
        self.context = {group: {n: v[:0] for n, v in tensors.items()} for group, tensors in update.context.items()}

    def leave_out(self, block: range, is_out: Sequence[bool]) -> list[int]:
        """Note who has diverged, by a squared norm that is none, and return the places of the others."""
        self.table[:2, block.start : block.stop][:, torch.tensor(is_out)] = math.nan
        return [place for place, out in zip(block, is_out, strict=True) if not out]

    def observe_factors(
        self, places: Sequence[int], factors: Mapping[str, Factors], *, products: bool, spans: bool
    ) -> None:
        """Take in a block's LoRA factors, and add up of these what is wanted."""
        first = [self.cohort.clients[place] for place in places[:1]] or [0]
        weights, scales = (values[torch.tensor(places, dtype=torch.int64)] for values in (self.weights, self.scales))
        if products:
            self.observed.add_sum(block_products(factors, weights, scales), first)
        if spans:
            self.observed.add_shares(block_spans(factors, weights), first)
        self.layers = {layer: own.trained for layer, own in factors.items()}

    def _release(self, update: Update, payload: Payload) -> None:
        clients, weights = update.clients, update.weights
        mean, total = flattened(payload.mean), flattened(payload.total)
        if len(self.arrived) < len(self.cohort.clients):
            # The whole message of a client that is lost is lost, with its peaks.
            here = [place for place, client in enumerate(clients) if client in self.arrived]
            clients, weights = tuple(clients[place] for place in here), weights[here]
            mean, total = ({name: value[here] for name, value in part.items()} for part in (mean, total))
        self.released.add_mean(mean, weights, clients)
        self.released.add_sum(total, clients)


def share_blocks(sim: Simulation, cohort: Cohort, blocks: Sequence[range]) -> list[list[range]]:
    """Return which of the blocks each rank trains, and bring there what their clients keep; every rank calls this."""
    shares = assign_blocks(sim.pace.expected_seconds(cohort, blocks), sim.pace.expected_busy())
    plan = [[blocks[index] for index in share] for share in shares]
    if sim.store.is_used:
        sim.store.move({cohort.clients[p]: rank for rank, own in enumerate(plan) for block in own for p in block})
    return plan


def train_blocks(
    sim: Simulation,
    state: ServerState,
    phase: Phase,
    cohort: Cohort,
    mine: Sequence[range],
    scores: ClientScores,
    begun: Mapping[range, ServerState] = NONE_OLDER,
) -> Sums:
    """Train the blocks ``mine``, ranges of positions in the cohort, and add up what they let out.

    ``begun``: the server's states that blocks began from, where that is not ``state``.
    """
    secured = secured_phase(sim, state, phase, cohort)
    scales = scales_of(sim.algorithm.facts, cohort.clients)
    sums = Sums(cohort, sim.group, sim.held.specs, secured, scales, sim.config.clients.max_diverged)
    # A method on sums of products says itself what becomes of them.
    has_products = not isinstance(sim.algorithm, ByProducts)
    # A rank without blocks trains one without clients.
    for number, block in enumerate(mine or [range(0)]):
        if number and sim.group.leave.breaks_off:
            break
        started = time.perf_counter()
        clients, start = cohort.clients[block.start : block.stop], begun.get(block, state)
        with sim.store.open(clients) as kept:
            before = [dict(own) for own in kept]
            update, losses = sim.trainer.train(clients, cohort, start, phase, kept)
            places: Sequence[int] = block
            if sums.max_diverged and any(is_out := has_diverged(update)):
                places = sums.leave_out(block, is_out)
                update, losses = without(update, losses, before, is_out)
            payload = sim.algorithm.pre_aggregate(update)
            check_payload(sim.algorithm, payload, len(update.clients))
            check_kept(sim.algorithm, kept)
            raw = payload
            for layer in sim.layers:
                payload = layer.pre_aggregate(start, update, payload)
            if secured is not None:
                require_sums(sim.algorithm, payload)
            scores.measure_before(block, places, update, start.params)
            factors = client_factors(sim.algorithm, update, raw)
        sums.add(places, update, raw, payload, losses)
        sums.observe_factors(places, factors, products=has_products, spans=sim.evaluates(state.round + 1))
        sums.table[2, block.start : block.stop] = (time.perf_counter() - started) / max(1, len(clients))
    return sums


def meet(group: Group, sums: Sums) -> tuple[Aggregate, Observed]:
    """Bring the ranks' sums together: a maximum that decides on the grids of the exact sums, then one sum.

    Numbers of single clients and ranks travel as their bits, and are zero on all other ranks. ToldToLeave, on every
    rank, where one was asked to leave and the round may be given up.
    """
    released, observed = sums.released, sums.observed
    peaks = [released.peaks, observed.peaks, torch.tensor([group.leave.is_asked], dtype=torch.float64)]
    *agreed, asked = group.max_exact(torch.cat(peaks)).split([len(part) for part in peaks])
    group.leave.agree(bool(asked))
    released.agree(agreed[0])
    observed.agree(agreed[1])
    sums_here = released.parts
    device = sums_here[0].device
    rows = [value.contiguous().view(-1).view(torch.uint8) for value in sums.rows.values()]
    numbers = torch.cat([sums.table.flatten(), sums.busy]).view(torch.int64)
    parts = [sums_here, [value.to(device) for value in observed.parts], [numbers.to(device)], [as_int64(rows, device)]]
    # One copy of what may be as large as the model.
    reduced = group.sum_exact(torch.cat(list(chain.from_iterable(parts))))
    exact, seen, numbers, gathered = reduced.split([sum(map(len, some)) for some in parts])
    num_clients = len(sums.cohort.clients)
    numbers = numbers.cpu().view(torch.float64)
    losses, norms, seconds, busy = numbers.split([num_clients] * 3 + [len(sums.busy)])
    exact, costs = unmasked(sums, exact)
    # Only now is it known whose weights should sum to one.
    diverged = require_few(sums.cohort.clients, norms.isnan(), sums.max_diverged)
    arrived = tuple(client for client in sums.arrived if client not in diverged)
    stay = ~norms.isnan() if diverged else slice(None)
    values = released.read(exact, sums.cohort.growth(arrived))
    rows_of = {name: value[stay] for name, value in from_int64(gathered, sums.rows).items()}
    aggregate = Aggregate(
        arrived,
        regrouped(sums.payload.mean, values),
        regrouped(sums.payload.total, values),
        regrouped(sums.payload.gather, rows_of),
    )
    return aggregate, Observed(
        losses=losses,
        squared_norms=norms.nan_to_num(0.0),
        seconds=seconds,
        busy=busy.tolist(),
        factors=FactorSums({}, {}) if diverged else FactorSums(sums.layers, observed.read(seen)),
        below_grid=released.below_grid(exact),
        sent=sent_by_client(sums.payload, sums.specs),
        context=sums.context,
        secured=costs,
        diverged=diverged,
    )


def secured_phase(sim: Simulation, state: ServerState, phase: Phase, cohort: Cohort) -> SecuredPhase | None:
    """Return the protocol's run of a phase, if the config wants it and clients send something."""
    settings = None if sim.config.privacy is None else sim.config.privacy.secure_aggregation
    if settings is None or not cohort.clients:
        return None
    # A round's phase may train what clients keep to themselves; a method without any other is refused.
    phases = sim.algorithm.phases(state.round + 1)
    payloads = {some.name: payload_of(sim, state, some) for some in phases}
    for payload in payloads.values():
        require_sums(sim.algorithm, payload)
    require_messages(sim.algorithm, list(payloads.values()))
    if not sends(payloads[phase.name]):
        return None
    return SecuredPhase(settings, sim.config.seed, state.round + 1, phase.name, cohort.clients)


def unmasked(sums: Sums, exact: Tensor) -> tuple[Tensor, SecuredCosts | None]:
    """Return what the ranks have added up without masks, and what that took."""
    if sums.secured is None:
        return exact, None
    unmasking = sums.secured.unmask()
    exact = sums.released.unmask(exact, unmasking.take_away)
    return exact, sums.secured.costs(len(exact) - NUM_COUNTS, unmasking)


def squared_norms(payload: Payload, num_clients: int, specs: Mapping[str, ParamSpec]) -> Tensor:
    """Return each client's squared norm over what it sends as changes of parameters, float64 (K,).

    Running statistics are left out: a count of batches says nothing of how far clients drift apart.
    """
    changes = drifting(payload.mean, specs).values()
    rows = [value.reshape(num_clients, math.prod(value.shape[1:])) for value in changes]
    total = torch.zeros(num_clients, dtype=torch.float64)
    for row in rows:
        total += torch.linalg.vector_norm(row, dim=1, dtype=torch.float64).square().cpu()
    return total


def drifting(mean: Groups, specs: Mapping[str, ParamSpec]) -> dict[str, Tensor]:
    """Return what of a payload's or aggregate's mean tells how far the clients drift apart."""
    return {name: value for name, value in mean.get(PARAMS, {}).items() if specs[name].kind != "buffer"}


def flattened(groups: Groups) -> dict[str, Tensor]:
    """Return groups of tensors under one naming."""
    return {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}


def regrouped(groups: Groups, values: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the values of the names that ``groups`` has, in its groups."""
    return {group: {name: values[f"{group}/{name}"] for name in tensors} for group, tensors in groups.items()}
