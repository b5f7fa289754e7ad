"""The ranks that ``launch.py plan`` starts: they train some blocks, one rank alone and then all at once, and meet.

    python -m fedsim.verbs.planning.measure CONFIG [KEY=VALUE]...

Rank 0 prints one line of JSON, a ``Calibration``. Nothing is written, and everything trained is thrown away.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.algorithms.base import ServerState
from fedsim.build import build_simulation
from fedsim.comm.group import Group, open_group
from fedsim.comm.launcher import Place
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.measure.costs import held_tensors, round_load
from fedsim.phase import meet
from fedsim.runfolder.records import RoundRecord
from fedsim.runfolder.trust import load_own
from fedsim.schedule.block_size import activation_bytes
from fedsim.schedule.clock import Hands
from fedsim.schedule.cohort import Cohort
from fedsim.schedule.pace import Pace
from fedsim.server import run_round
from fedsim.simulation import Simulation
from fedsim.verbs.planning.calibration import Calibration, fitted
from fedsim.verbs.planning.trials import choose_trials, make_trial, phase_named, train, work_of
from fedsim.verbs.trial import evaluation_seconds, with_steps

#: The costs of a round are the mean over the cohorts of so many, where not everybody takes part in each.
NUM_COHORTS = 8
REPEATS = 5
SIDES = {"cpu": 1024, "cuda": 8192}


def apart(group: Group, rank: int = 0, num_ranks: int = 1) -> Group:
    """Return the group of a rank that waits for nobody, whatever place among how many it takes itself to have."""
    return Group(Place(rank, num_ranks, 0, "", 0, group.launcher), group.device, "none", None)


def measure(config: Config, group: Group) -> Calibration:
    """Return the calibration; every rank calls this, and rank 0's counts."""
    if config.is_asynchronous:
        raise UserError("clock.aggregation", "asynchronous rounds", "rounds that wait for their clients")
    if config.privacy is not None:  # nothing is written here
        config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"observe": True})})
    sim = build_simulation(config, apart(group))
    state = sim.initial_state()
    rounds = range(1, 1 + (NUM_COHORTS if config.clients.num_per_round < config.clients.count else 1))
    sim.clock.start(Hands(), lambda: round_load(sim))
    cohorts = [sim.clock.cohort(round) for round in rounds]
    first = next((cohort for cohort in cohorts if cohort.clients), None)
    if first is None:
        raise UserError("clients.per_round", f"no client in {len(cohorts)} rounds", "some, to measure them")

    # One rank alone decides how much there is time for; then all train the same at once, and meet.
    found = measure_alone(sim, state, cohorts, first) if group.is_server else None
    words = group.broadcast(None if found is None else [asdict(found[0]), *found[1:]])
    lone, chosen, seconds = Calibration.read(words[0]), words[1], words[2]
    trials = [make_trial(sim, phase_named(sim, name), first, place, steps) for name, place, steps in chosen]
    for name, place, _ in chosen:
        make_trial(sim, phase_named(sim, name), first, place, 1).seconds(state, first)  # what is done once
    group.broadcast("all are ready")
    together = sum(trial.seconds(state, first) for trial in trials)
    slowdown = fmean(group.gather_to_all(together / sum(seconds)))
    latency, meeting, sent = meeting_seconds(replace(sim, group=group), state, first)
    peaks = group.gather_to_all(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return replace(
        lone,
        processes=group.num_ranks,
        slowdown=max(1.0, slowdown) if group.num_ranks > 1 else 1.0,
        latency_seconds=latency,
        meeting_seconds=meeting,
        sent_bytes=sent,
        rank_bytes=max(peaks),
    )


def measure_alone(
    sim: Simulation, state: ServerState, cohorts: list[Cohort], first: Cohort
) -> tuple[Calibration, list[tuple[str, int, int]], list[float]]:
    """Return what one rank measures while the others wait; with the trials, so that they can repeat them, and seconds.

    A trial is told as its phase, the place of its block in the cohort ``first``, and the steps of each client at most.
    """
    config, device, threads = sim.config, sim.group.device, torch.get_num_threads()
    trials, seconds = choose_trials(sim, state, first)
    phases, errors = [], []
    for phase in sim.algorithm.phases(1):
        own = [place for place, trial in enumerate(trials) if trial.phase == phase]
        rows = np.array([trials[place].features for place in own], dtype=np.float64)
        costs, error = fitted(phase.name, rows, np.array([seconds[place] for place in own]))
        phases.append(costs)
        errors.append(error)
    serial, record = serial_seconds(sim, state, len(first.blocks(sim.per_block)))
    on_gpu, cores = device.type == "cuda", len(os.sched_getaffinity(0))
    num_elements = sim.images.num_elements * max(phase.models for phase in sim.algorithm.phases(1))
    found = Calibration(
        phases=phases,
        fit=fmean(errors),
        cohorts=[[work_of(sim, client) for client in cohort.clients] for cohort in cohorts],
        num_clients=len(sim.sizes),
        per_block=sim.per_block,
        serial_seconds=serial,
        evaluation_seconds=evaluation_seconds(sim, state),
        processes=1,
        processors=torch.cuda.device_count() if on_gpu else max(1, cores // threads),
        threads=threads,
        slowdown=1.0,
        latency_seconds=0.0,
        meeting_seconds=0.0,
        sent_bytes=0,
        up_bytes=record.row["bytes_up"],
        down_bytes=record.row["bytes_down"],
        rank_bytes=0,
        device_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else 0,
        state_bytes=state_bytes(sim, state, first),
        model_bytes=sum(tensor.nbytes for tensor in held_tensors(sim.model)),
        data_bytes=sim.images.num_bytes,
        activation_bytes=activation_bytes(config, num_elements, sim.held.num_layers),
        operations=count_operations(sim, state, first),
        precision=config.model.precision,
        rate=matrix_rate(device, config.model.precision),
    )
    return found, [(trial.phase.name, trial.block.start, trial.features[0]) for trial in trials], seconds


def serial_seconds(sim: Simulation, state: ServerState, num_blocks: int) -> tuple[float, RoundRecord]:
    """Return the seconds of a round on a rank that has no block, without waiting, and the round's record."""
    found = []
    log: Any = SimpleNamespace(progress=str)
    for _ in range(REPEATS):
        # Equal ranks get blocks in their order, so the last of more ranks than blocks gets none.
        idle = apart(sim.group, num_blocks, num_blocks + 1)
        pace = Pace(sim.config.train, sim.sizes, idle.num_ranks)
        one = replace(sim, group=idle, pace=pace, store=sim.store.emptied("plan"))
        record = RoundRecord(one, 1)
        run_round(one, state, record, log)
        record.close()
        found.append((record.timing["seconds"], record))
    return median(seconds for seconds, _ in found), found[-1][1]


def meeting_seconds(sim: Simulation, state: ServerState, cohort: Cohort) -> tuple[float, float, int]:
    """Return the seconds in which all ranks add up one number, and all of a round, and the bytes of that."""
    group, one = sim.group, torch.zeros(1, dtype=torch.int64)
    sums = [train(sim, state, phase, cohort, []) for phase in sim.algorithm.phases(1)]

    def meet_all() -> None:
        for some in sums:
            meet(group, some)

    sent = group.bytes_sent
    meet_all()
    sent = group.bytes_sent - sent
    return timed(lambda: group.sum_exact(one), group), timed(meet_all, group), sent


def timed(act: Callable[[], object], group: Group) -> float:
    """Return the median seconds of something that all ranks begin together."""
    found = []
    for _ in range(REPEATS):
        group.broadcast("together")
        started = time.perf_counter()
        act()
        found.append(time.perf_counter() - started)
    return median(found)


def state_bytes(sim: Simulation, state: ServerState, cohort: Cohort) -> int:
    """Return the bytes that a client keeps between rounds, from the first one after a step of every phase."""
    one = with_steps(replace(sim, store=sim.store.emptied("plan")), 1)
    for phase in sim.algorithm.phases(1):
        train(one, state, phase, cohort, [range(1)])
    return sum(one.store.sizes().values())


class Calls(TorchDispatchMode):
    """Counts what PyTorch is asked to compute inside the ``with``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def count_operations(sim: Simulation, state: ServerState, cohort: Cohort) -> int:
    """Return how many operations a step of a block calls, what is done once left out."""
    numbers: list[int] = []
    for num_steps in (1, 2):
        with Calls() as calls:
            limited = with_steps(replace(sim, store=sim.store.emptied("plan")), num_steps)
            train(limited, state, sim.algorithm.phases(1)[0], cohort, cohort.blocks(sim.per_block)[:1])
        numbers.append(calls.number)
    return numbers[1] - numbers[0]


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of the fastest of a few products of large matrices."""
    dtype, side = torch.bfloat16 if precision == "bf16" else torch.float32, SIDES[device.type]
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        found.append(time.perf_counter() - started)
    return 2 * side**3 / min(found)


def main() -> None:
    """Measure, and print what was found."""
    try:
        config = load_own(Path(sys.argv[1]), sys.argv[2:])
        with open_group() as group:
            found = measure(config, group)
            if group.is_server:
                print(json.dumps(asdict(found)), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
