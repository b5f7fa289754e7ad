"""What a round will cost in time and memory, from a few steps that are taken for that and thrown away."""

import resource
import time
from dataclasses import replace
from datetime import timedelta

import torch

from fedsim.algorithms.base import Phase, ServerState
from fedsim.client import BlockTrainer
from fedsim.measure.scores import evaluation_rows
from fedsim.schedule.cohort import Cohort, num_local_steps
from fedsim.simulation import Simulation

#: Steps of the two trials; what every local pass does once, such as laying out weights, is in both. The first is not
#: counted: it reads images and compiles, once in a run. Of the others the faster is: a machine has other work, too.
FEW, MORE = 1, 3
TRIALS = (MORE, FEW, MORE, FEW, MORE)
GIB = 2**30


def trial_rows(sim: Simulation, state: ServerState, cohort: Cohort) -> list[tuple[str, str]]:
    """Return rows on the seconds of a round on this machine, by one rank, and on the memory that it took here.

    A block of the clients with most steps takes a few of them, from copies of everything that a run keeps.
    """
    blocks = cohort.blocks(sim.per_block)
    phases = sim.algorithm.phases(1)
    num_steps = sum(num_local_steps(sim.config.train, sim.sizes[client]) for client in cohort.clients)
    training = sum(step_seconds(sim, state, cohort, phase) * num_steps for phase in phases) if blocks else 0.0
    # Clients are measured on images of their own, which are about as many, before and after the communication.
    evaluation = evaluation_seconds(sim, state) * (3 if sim.config.evaluate.clients else 1)
    num_evaluations = -(-sim.config.rounds // sim.config.evaluate.every)
    whole = timedelta(seconds=round(training * sim.config.rounds + evaluation * num_evaluations))
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = [
        ("seconds per round", f"about {training:.2g} of training and {evaluation:.2g} of evaluation, by one rank here"),
        ("whole run", f"about {whole} by one rank here; training is shared out, at most one rank per block"),
        ("memory", f"{spent / GIB:.2f} GiB of this host at most, of each rank"),
    ]
    if sim.group.device.type == "cuda":
        on_device = torch.cuda.max_memory_allocated(sim.group.device)
        rows.append(("GPU memory", f"{on_device / GIB:.2f} GiB at most, of each rank"))
    return rows


def step_seconds(sim: Simulation, state: ServerState, cohort: Cohort, phase: Phase) -> float:
    """Return a client's seconds of one step, of the first block's together by their number."""
    first = cohort.blocks(sim.per_block)[0]
    clients = cohort.clients[first.start : first.stop]
    seconds: dict[int, list[float]] = {FEW: [], MORE: []}
    for num_steps in TRIALS:
        trainer = with_steps(sim, num_steps).trainer
        started = time.perf_counter()
        trainer.train(clients, cohort, state, phase, [{} for _ in clients])
        seconds[num_steps].append(time.perf_counter() - started)
    steps = min(seconds[MORE][1:]) - min(seconds[FEW])
    return max(0.0, steps / (MORE - FEW) / len(clients))


def with_steps(sim: Simulation, num_steps: int) -> Simulation:
    """Return a simulation whose clients take so many steps in each phase, and that shares all else with this one."""
    train = sim.config.train.model_copy(update={"steps": num_steps, "epochs": None})
    config = sim.config.model_copy(update={"train": train})
    trainer = BlockTrainer(config, sim.task, sim.held, sim.algorithm, sim.images, sim.dataset, sim.parts)
    trainer.agreement = sim.trainer.agreement
    return replace(sim, config=config, trainer=trainer)


def evaluation_seconds(sim: Simulation, state: ServerState) -> float:
    """Return the seconds of an evaluation, from one batch; the second time, since a prefix is computed once."""
    size = sim.config.evaluate.batch_size
    places = sim.dataset.val[:size]
    words = (sim.task, sim.model, state.params, sim.images, places, size, sim.group)
    evaluation_rows(*words)
    started = time.perf_counter()
    evaluation_rows(*words)
    num_images = sum(len(vars(sim.dataset)[split]) for split in sim.config.evaluate.splits)
    return (time.perf_counter() - started) * num_images / max(1, len(places))
