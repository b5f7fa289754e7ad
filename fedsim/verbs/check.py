"""What a config will do, in numbers, without training it: the answer of ``launch.py check``."""

import math

import numpy as np

from fedsim.algorithms.base import Phase, ServerState
from fedsim.buffered import asynchronous, buffer_of, clock_of
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.data.dataset import Dataset
from fedsim.data.doubts import doubts
from fedsim.data.overlap import overlaps
from fedsim.machine.memory import own_pages
from fedsim.measure.costs import costs, payload_of, round_load
from fedsim.measure.traffic import Size, sent_by_client
from fedsim.phase import secured_phase
from fedsim.runfolder.partition import notes
from fedsim.runfolder.tracking import require_packages
from fedsim.schedule.clock import Hands
from fedsim.schedule.cohort import Cohort, num_local_steps
from fedsim.simulation import Simulation
from fedsim.verbs.trial import trial_rows

SITES_SHOWN = 8


def describe(config: Config) -> list[tuple[str, str]]:
    """Load data and model and return the plan as rows of name and text."""
    require_packages(config.track)
    with open_group() as group:
        sim = build_simulation(config, group)
    sim.clock.start(Hands(), lambda: round_load(sim))
    if config.is_asynchronous:
        asynchronous(sim)  # refuses methods
    sizes = sim.sizes
    cohort = first_cohort(sim)
    state, phases = sim.initial_state(), sim.algorithm.phases(1)
    steps = [num_local_steps(sim.config.train, sizes[client]) for client in cohort.clients]
    data = sim.dataset
    with own_pages():
        found = overlaps(data)
        warnings = doubts(data, sim.parts, found)
    rows = [
        ("data", f"{data.name}: {len(data.train)} train, {len(data.val)} val, {len(data.test)} test {data.unit}"),
        *(("remark", remark) for remark in (*data.remarks, *sim.model.encoder.remarks)),
        ("classes", ", ".join(f'"{name}"' if "," in name else name for name in data.class_names)),
        *notes(sim),
        *((one.name, one.text) for one in found),
        *site_rows(data),
        ("clients", f"{len(sizes)}, of {min(sizes)} to {max(sizes)} {data.unit}, {sizes.count(0)} without"),
        *(("warning", text) for text in warnings),
        (
            "cohort",
            f"{len(cohort.clients)} clients in {len(cohort.blocks(sim.per_block))} blocks of up to {sim.per_block}"
            + ("" if config.clock is None else ", who arrive in the first round"),
        ),
        *sim.clock.rows(),
        ("local steps", f"{min(steps, default=0)} to {max(steps, default=0)} per client and phase"),
        ("model", f"{config.model.name}, {sum(p.numel() for p in sim.model.net.parameters()):,} parameters"),
    ]
    ranks = sim.algorithm.facts.ranks
    of_rank = "" if ranks is None else f" of rank {max(ranks)}"
    if ranks is not None:
        rows.append(("LoRA ranks", ", ".join(f"{ranks.count(rank)} clients of {rank}" for rank in sorted(set(ranks)))))
    up = 0
    for phase in phases:
        trained, size = count_numbers(sim, state, phase)
        sent = size.full
        rows.append((f"phase {phase.name}", f"{trained:,} parameters trained, {sent:,} bytes sent per client{of_rank}"))
        if (secured := secured_phase(sim, state, phase, cohort)) is not None:
            needed = f"{secured.threshold} of {len(cohort.clients)} clients must stay for their sum to be unmasked"
            rows.append((f"phase {phase.name}, masked", needed))
        up += size.of_all(cohort.clients, sim.algorithm.facts.ranks)
    rows.append(("bytes per round", f"{up:,} up, as float32"))
    for name, cost in costs(sim).items():
        held = f"{cost['parameters']:,} parameters in {cost['bytes']:,} bytes"
        rows.append((f"a client's {name.replace('_', ' ')}", f"{held}, {cost['bytes_sent']:,} bytes sent per round"))
    return [*rows, *trial_rows(sim, state, cohort)]


def first_cohort(sim: Simulation) -> Cohort:
    """Return who is trained in the first round, and let the clock's time pass that it takes."""
    if sim.config.is_asynchronous:
        return buffer_of(sim, clock_of(sim).fill_buffer(1), 1).cohort
    return sim.clock.cohort(1)


def site_rows(data: Dataset) -> list[tuple[str, str]]:
    """Return the numbers of each site's images in the three splits, of the first few sites."""
    if data.sites is None:
        return []
    counts = np.stack(
        [np.bincount(data.sites[part], minlength=len(data.site_names)) for part in (data.train, data.val, data.test)]
    )
    texts = [
        f"{name} {train:,} train, {val:,} val, {test:,} test"
        for name, (train, val, test) in zip(data.site_names[:SITES_SHOWN], counts.T.tolist(), strict=False)
    ]
    more = len(data.site_names) - SITES_SHOWN
    return [("sites", "; ".join([*texts, f"and {more:,} more"] if more > 0 else texts))]


def count_numbers(sim: Simulation, state: ServerState, phase: Phase) -> tuple[int, Size]:
    """Return how many numbers one client trains in a phase of the first round, and what it sends."""
    trained = sum(math.prod(spec.shape) for spec in sim.held.specs.values() if spec.kind in phase.kinds)
    return trained * phase.models, sent_by_client(payload_of(sim, state, phase), sim.held.specs)
