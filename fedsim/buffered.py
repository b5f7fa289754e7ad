"""Asynchronous rounds: FedBuff and FedAsync, out of the same parts as ``server.run_round``.

A round is one step of the server. A client trains from the server's state of the moment at which it was sent off, and
its change is measured against that state. It is trained when its update has arrived, in one block with others that
began from the same state: until then nothing of it exists but the fact that it is on the way.

With clients k in the buffer, their weights w_k (summing to one, by ``clients.weighting``), staleness t_k (steps of the
server since they began) and s from the config, the server's change is

    FedBuff     server_lr * sum_k w_k s(t_k) (x_k - start_k)      (Nguyen et al., 2022, algorithm 1, where w_k = 1 / K)
    FedAsync    mixing * s(t) (x - server)                        (Xie et al., 2019, algorithm 1: a buffer of one)

and what the method's server makes of it, with FedAdam a step of Adam. Running statistics are no sums of changes, of
which several old ones would make a variance negative: FedBuff changes them by
sum_k w_k s(t_k) (x_k - server).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from fedsim.algorithms.base import PARAMS, Aggregate, Payload, ServerState
from fedsim.algorithms.parts.abilities import Aligning
from fedsim.config.clock import FedAsync
from fedsim.errors import UserError
from fedsim.measure.client_scores import ClientScores
from fedsim.measure.costs import payload_of
from fedsim.method_checks import check_state
from fedsim.phase import meet, share_blocks, train_blocks
from fedsim.runfolder.records import RoundRecord
from fedsim.runfolder.runlog import RunLog
from fedsim.schedule.buffer import BufferedClock, weight_of
from fedsim.schedule.clock import Flight
from fedsim.schedule.cohort import Cohort, client_weights, num_local_steps
from fedsim.simulation import Simulation


def run_buffered_round(sim: Simulation, state: ServerState, record: RoundRecord, log: RunLog) -> ServerState:
    """Run one step of the server and return its new state."""
    round, clock = state.round + 1, clock_of(sim)
    # Every rank lets the same time pass, and finds the same clients in the buffer.
    flights = clock.fill_buffer(round)
    states = {**state.older, state.round: replace(state, older={})}
    if flights:
        state = aggregate(sim, state, states, buffer_of(sim, flights, round), record, log)
    # Of the older states those stay that a client on the way began from.
    older = {origin: states[origin] for origin in sorted(clock.origins(round + 1))}
    return replace(state, round=round, older=older)


class Buffer(NamedTuple):
    """A full buffer: clients by the state that they began from, the weights of their mean, and sum_k w_k s(t_k)."""

    flights: Sequence[Flight]
    cohort: Cohort
    blocks: Mapping[range, int]
    discount: float


def buffer_of(sim: Simulation, flights: Sequence[Flight], round: int) -> Buffer:
    """Put what has arrived in order: ``blocks`` says after which round each began."""
    config, how = sim.config, clock_of(sim).how
    steps = {one.client: num_local_steps(config.train, sim.sizes[one.client]) for one in flights}
    # Within a state the order of a synchronous cohort.
    ordered = sorted(flights, key=lambda one: (one.round, -steps[one.client], -sim.sizes[one.client], one.client))
    clients = tuple(one.client for one in ordered)
    weights = client_weights(config.clients, sim.sizes, clients)
    discounts = [weight_of(round - 1 - one.round, how.staleness) for one in ordered]
    discounted = weights * torch.tensor(discounts, dtype=torch.float64)
    # One, exactly, where nothing is stale.
    discount = discounted.sum() / weights.sum()
    blocks, start = dict[range, int](), 0
    for origin in sorted({one.round for one in ordered}):
        end = start + sum(one.round == origin for one in ordered)
        blocks |= {range(at, min(at + sim.per_block, end)): origin for at in range(start, end, sim.per_block)}
        start = end
    return Buffer(ordered, Cohort(clients, discounted / discount), blocks, float(discount))


def aggregate(
    sim: Simulation,
    state: ServerState,
    states: Mapping[int, ServerState],
    buffer: Buffer,
    record: RoundRecord,
    log: RunLog,
) -> ServerState:
    """Train the clients of a buffer, each from its own of the ``states``, and return the server's after the step."""
    cohort, blocks = buffer.cohort, list(buffer.blocks)
    (phase,) = sim.algorithm.phases(state.round + 1)
    plan = share_blocks(sim, cohort, blocks)
    mine = plan[sim.group.rank]
    measures = sim.evaluates(state.round + 1) and sim.config.evaluate.clients
    scores = ClientScores(sim, state, cohort, mine, phase if measures else None)
    log.progress(f"buffer of {len(cohort.clients)}: {len(blocks)} blocks of up to {sim.per_block} clients")
    begun = {block: states[origin] for block, origin in buffer.blocks.items()}
    released, observed = meet(sim.group, train_blocks(sim, state, phase, cohort, mine, scores, begun))
    for layer in reversed(sim.layers):
        state, released = layer.post_aggregate(state, phase, released)
    before, state = state, sim.algorithm.post_aggregate(state, weighed(sim, state, states, buffer, released))
    check_state(sim.algorithm, before, state)
    record.add_phase(phase, cohort, before, state, released, observed)
    record.add_schedule(plan, observed)
    for row, flight in zip(record.client_rows, buffer.flights, strict=True):
        row |= {"staleness": before.round - flight.round, "arrived": flight.arrives}
    sim.pace.remember(cohort, observed.seconds, observed.busy)
    scores.measure_after(state)
    record.add_scores(scores)
    return state


def weighed(
    sim: Simulation, state: ServerState, states: Mapping[int, ServerState], buffer: Buffer, released: Aggregate
) -> Aggregate:
    """Return the aggregate as the server takes it, see above."""
    how, mean = clock_of(sim).how, dict(released.mean[PARAMS])
    statistics = {name for name in mean if sim.algorithm.specs[name].kind == "buffer"}
    if isinstance(how, FedAsync):
        towards, step = set(mean), dict.fromkeys(mean, how.mixing)
    else:
        towards, step = statistics, {name: 1.0 if name in statistics else how.server_lr for name in mean}
    # A client's own value is its change and where it began; the change is in the mean.
    for origin in sorted({one.round for one in buffer.flights} - {state.round}):
        began = [one.client for one in buffer.flights if one.round == origin]
        share = float(buffer.cohort.weights_of(began).sum())
        start, now = (sim.algorithm.told(some.params) for some in (states[origin], state))
        for name in towards:
            behind = start[name].double() - now[name].double()
            mean[name] = mean[name] + share * behind.to(mean[name].device)
    return replace(released, mean={PARAMS: {name: buffer.discount * step[name] * mean[name] for name in mean}})


def clock_of(sim: Simulation) -> BufferedClock:
    """The simulation's clock, which is one of asynchronous rounds."""
    assert isinstance(sim.clock, BufferedClock), "the config says so"
    return sim.clock


def asynchronous(sim: Simulation) -> Callable[[Simulation, ServerState, RoundRecord, RunLog], ServerState]:
    """Return what runs a round; UserError for a method whose clients must all begin from one and the same state."""
    if (reason := _unfit(sim)) is not None:
        how = clock_of(sim).how.name
        found = f"{sim.config.algorithm.name} with clock.aggregation: {how}, but {reason}"
        raise UserError("algorithm.name", found, "synchronous rounds, or a method whose server adds a mean change")
    return run_buffered_round


def _unfit(sim: Simulation) -> str | None:
    """Say why a method cannot have asynchronous rounds; None where it can."""
    method, state = sim.algorithm, sim.initial_state()
    if isinstance(method, Aligning):
        return "its server changes the sub-model that clients hold"
    phases = {tuple(method.phases(round)) for round in range(1, sim.config.rounds + 1)}
    if any(len(some) > 1 for some in phases):
        return "its rounds have several phases, each of which waits for the one before"
    if len(phases) > 1:
        return "its rounds differ in what they train"
    if method.shifts_base:
        return "its server changes the frozen weights that clients' factors are about"
    if method.returns_aggregate:
        return "its clients are given the aggregate of their own round"
    if method.assumes_fresh is not None:
        return method.assumes_fresh
    (phase,) = phases.pop()
    payloads = [payload_of(sim, replace(state, round=round), phase) for round in (0, 1)]
    if (beside := _beside_changes(payloads[0])) is not None:
        return f"its clients send {beside} beside changes of parameters"
    if not (sent := payloads[0].mean.get(PARAMS, {}).keys()):
        return "its clients send nothing"
    if sent != payloads[1].mean.get(PARAMS, {}).keys():
        return "what its clients send changes with the round"
    if isinstance(clock_of(sim).how, FedAsync) and (state.extra or method.facts.ranks is not None):
        return "FedAsync mixes whole models, without an optimiser on the server or ranks of the clients' own"
    return None


def _beside_changes(payload: Payload) -> str | None:
    """A group that is no mean change of parameters; None where there is none."""
    others = [*(payload.mean.keys() - {PARAMS}), *payload.total, *payload.gather]
    return repr(min(others)) if others else None
