"""START HERE. ``run`` is the whole program and ``run_round`` one communication round; read them like pseudocode.

Asynchronous rounds, where the config has a clock for them, lie in ``buffered.py``: the same parts, another order.

Every rank runs this file. Each computes the same server state from the same aggregate, so the state is never
sent; rank 0 alone writes the run folder.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.algorithms.parts.abilities import Aligning
from fedsim.buffered import asynchronous
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.comm.leave import ToldToLeave, hearing
from fedsim.config.experiment import Config
from fedsim.distill.alignment import align
from fedsim.machine.sealed import digest_tensors
from fedsim.measure.client_scores import ClientScores
from fedsim.measure.costs import costs, round_load
from fedsim.measure.global_model import global_model
from fedsim.measure.scores import evaluate, measure_split, worth
from fedsim.measure.spending import spending
from fedsim.method_checks import check_phases, check_state
from fedsim.models.tuned_tower import TunedModel
from fedsim.phase import meet, share_blocks, train_blocks
from fedsim.runfolder.adapter import export_adapter
from fedsim.runfolder.partition import describe_partition
from fedsim.runfolder.pictures import draw_predictions
from fedsim.runfolder.records import RoundRecord
from fedsim.runfolder.runlog import RunLog
from fedsim.runfolder.start import first_state
from fedsim.simulation import Simulation
from fedsim.storage.checkpoint import Checkpoints, Progress, server_tensors
from fedsim.storage.store import scratch_folder


def run(config: Config, out: Path, resume: bool) -> dict[str, Any]:
    """Run the experiment in the folder ``out`` and return its results, the content of results.json.

    ``resume`` continues from the last checkpoint in ``out``, or starts where there is none. ToldToLeave where a signal
    asks to end sooner; the last round's state is saved then.
    """
    with (
        open_group() as group,
        hearing(group.leave.ask),  # also while the folder is left: a signal may come twice
        RunLog(out, config, group, resume) as log,
        scratch_folder(out, group) as scratch,
    ):
        sim = build_simulation(log.config, group, scratch, log.progress)
        config = sim.config  # says what the file left open
        log.record_config(config)
        log.record_inputs(sim.dataset, sim.model.encoder)
        describe_partition(sim, log)
        checkpoints = Checkpoints(out / "checkpoints", config, group)
        state, progress = start_or_resume(sim, checkpoints, log, resume)
        # A round waits for its clients; under an asynchronous clock it is one step of the server.
        sim.clock.start(progress.clock, lambda: round_load(sim))
        take_round = asynchronous(sim) if config.is_asynchronous else run_round
        log.open_trackers(config)
        best_by = sim.task.decisive(config.evaluate.best_by)
        first, last = state.round + 1, sim.last_round

        while state.round < last and not out_of_patience(config, progress):
            log.start_round(state.round + 1)
            record = RoundRecord(sim, state.round + 1)
            # What clients keep has changed by the middle of a round, and so has the clock.
            changes = sim.store.is_used or config.clock is not None
            group.leave.may_break_off = checkpoints.saved_round == state.round or not changes
            try:
                state = take_round(sim, state, record, log)
            except ToldToLeave:
                break
            record.row |= spending(sim, state) | sim.clock.row
            # It says that several were in the first round, too.
            if sim.trainer.agreement is not None and state.round == first and config.observes:
                log.message(f"a step in one batch is each client's own to {sim.trainer.agreement:.0e}")

            # Measure the new global model, and keep it if it is the best so far.
            if sim.evaluates(state.round):
                num_inputs = sum(len(vars(sim.dataset)[split]) for split in config.evaluate.splits)
                log.progress(f"evaluation: {num_inputs} {sim.dataset.unit}")
                with record.evaluating():
                    model = global_model(sim, state)
                    record.measure(evaluate(sim, model.params, config.evaluate.splits), model.chosen)
                if note_evaluation(best_by, progress, record):
                    checkpoints.save_best(state, sim.store, progress)

            # The log comes before the checkpoint: a resumed run drops the rows that no checkpoint covers.
            log.end_round(record)
            is_last = state.round == last or out_of_patience(config, progress)
            if is_last or state.round % config.checkpoint.every == 0:
                checkpoints.save(state, sim.store, progress, log.seals)
            if group.leave.is_agreed:
                break
        if state.round < last and not out_of_patience(config, progress):
            leave(sim, state, progress, checkpoints, log)
        return finish(sim, state, progress, checkpoints, log)


def run_round(sim: Simulation, state: ServerState, record: RoundRecord, log: RunLog) -> ServerState:
    """Run one communication round and return the server's new state."""
    round = state.round + 1
    # Every rank draws the same clients and cuts the same blocks; only who trains a block depends on the ranks.
    cohort = sim.clock.cohort(round)
    if not cohort.clients and not sim.layers:
        # Noise hides that nobody was there; without it nothing happens.
        return replace(state, round=round)
    blocks = cohort.blocks(sim.per_block)
    plan = share_blocks(sim, cohort, blocks)
    mine = plan[sim.group.rank]

    phases = sim.algorithm.phases(round)
    check_phases(sim.algorithm, phases)
    measures = sim.evaluates(round) and sim.config.evaluate.clients
    scores = ClientScores(sim, state, cohort, mine, phases[-1] if measures else None)
    for phase in phases:
        size = f": {len(blocks)} blocks of up to {sim.per_block} clients" if sim.config.observes else ""
        log.progress(f"phase {phase.name}{size}")
        sums = train_blocks(sim, state, phase, cohort, mine, scores)
        released, observed = meet(sim.group, sums)
        if observed.diverged:
            who = ", ".join(map(str, observed.diverged))
            log.message(f"round {round}: left out, since their training diverged: clients {who}")
        for layer in reversed(sim.layers):
            state, released = layer.post_aggregate(state, phase, released)
        # Same input, same output on every rank: the new state needs no broadcast.
        before, state = state, sim.algorithm.post_aggregate(state, released)
        check_state(sim.algorithm, before, state)
        for block in mine if sim.algorithm.returns_aggregate else []:
            # Who was left out keeps what it kept.
            own = cohort.clients[block.start : block.stop]
            with sim.store.open([client for client in own if client not in observed.diverged]) as kept:
                sim.algorithm.receive(state, kept, released)
        record.add_phase(phase, cohort, before, state, released, observed)
        record.add_schedule(plan, observed)
        sim.pace.remember(cohort, observed.seconds, observed.busy)
    if isinstance(sim.algorithm, Aligning) and sim.algorithm.aligns_after(round):
        # The sub-model that clients are given next is brought closer to the full model again.
        started = time.perf_counter()
        state, steps = align(sim, sim.algorithm, state, released, log.progress)
        record.add_alignment(steps, time.perf_counter() - started)
    scores.measure_after(state)
    record.add_scores(scores)
    return replace(state, round=round)


def start_or_resume(
    sim: Simulation, checkpoints: Checkpoints, log: RunLog, resume: bool
) -> tuple[ServerState, Progress]:
    """Return the state to go on from: the last checkpoint's, or the initial one."""
    saved = checkpoints.load() if resume else None
    if saved is None:
        log.truncate(0)
        state, progress = first_state(sim), Progress()
    else:
        log.truncate(saved.state.round, saved.log)
        state, progress = saved.state.to(sim.group.device), saved.progress
        sim.store.adopt(saved.clients)
    sim.group.check_equal("the server's state at the start", digest_tensors(server_tensors(state)))
    return state, progress


def note_evaluation(best_by: str, progress: Progress, record: RoundRecord) -> bool:
    """Update ``progress`` with the round's validation and say whether it is the best so far, by the metric ``best_by``.

    A metric that is not a number is never better; of equal ones the earlier round stays the best.
    """
    value = worth(record.row["val"], best_by)
    is_best = not math.isnan(value) and (progress.best_value is None or value > progress.best_value)
    if is_best:
        progress.best_round, progress.best_value = record.row["round"], value
        progress.best_metrics = {split: record.row[split] for split in ("val", "test")}
    progress.evaluations_since_best = 0 if is_best else progress.evaluations_since_best + 1
    return is_best


def out_of_patience(config: Config, progress: Progress) -> bool:
    """Whether the last ``evaluate.patience`` evaluations brought nothing better."""
    patience = config.evaluate.patience
    return patience is not None and progress.evaluations_since_best >= patience


def leave(sim: Simulation, state: ServerState, progress: Progress, checkpoints: Checkpoints, log: RunLog) -> NoReturn:
    """End before the last round, as a signal has asked for: save what is not saved yet, and raise ToldToLeave."""
    if checkpoints.saved_round != state.round:
        checkpoints.save(state, sim.store, progress, log.seals)
    raise ToldToLeave(f"told to leave: round {state.round} of {sim.config.rounds} is saved, --resume goes on from it")


def finish(
    sim: Simulation, state: ServerState, progress: Progress, checkpoints: Checkpoints, log: RunLog
) -> dict[str, Any]:
    """Check that all ranks agree, export the best and the last model, and write and return the results."""
    digest = digest_tensors(server_tensors(state))
    sim.group.check_equal("the server's state at the end", digest)
    last = global_model(sim, state).params
    is_last = progress.best_round in (0, state.round)
    best = last if is_last else best_model(sim, checkpoints)
    measured = dict(progress.best_metrics)
    if sim.config.evaluate.test == "at_end":
        log.progress(f"test: {len(sim.dataset.test)} {sim.dataset.unit}")
        measured["test"] = measure_split(sim, best, "test")
    results = {
        "status": "finished" if state.round == sim.config.rounds else "stopped early",
        "rounds": state.round,
        "best_round": progress.best_round,
        "best_by": sim.task.decisive(sim.config.evaluate.best_by),
        **measured,
        **spending(sim, state),
        "state_sha256": sim.store.digest(digest),
        "costs": costs(sim),
    }
    if sim.group.is_server and isinstance(sim.model, TunedModel):
        row = log.last_row()
        export_adapter(log.folder / "adapter_last", sim, last, row)
        row = row | measured if is_last else {"round": progress.best_round, **measured}
        export_adapter(log.folder / "adapter", sim, best, row)
    if sim.group.is_server and sim.dataset.masks is not None:
        draw_predictions(sim, best, log.folder / "predictions.png")
    log.finish(results)
    return results


def best_model(sim: Simulation, checkpoints: Checkpoints) -> Mapping[str, Tensor]:
    """Return the global model of the best round, from its checkpoint."""
    saved = checkpoints.load("best")
    assert saved is not None, "the best round was saved"
    store = sim.store.emptied("best")
    store.adopt(saved.clients)
    return global_model(sim, saved.state.to(sim.group.device), store).params
