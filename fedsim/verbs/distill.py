"""``launch.py distill``: cut the sub-model out of the whole model, distil it on all ranks, leave it in a folder.

The folder: config.yaml, environment.json, distillation.jsonl (a row per step, the same bits on any number of ranks),
timings.jsonl, the latest checkpoint while it goes on, and at the end submodel.safetensors and submodel.json.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from fedsim.build import check_own_code
from fedsim.comm.group import Group, open_group
from fedsim.comm.leave import ToldToLeave, hearing
from fedsim.config.distill import DistillConfig, load_distill_config
from fedsim.config.experiment import dump_config
from fedsim.data import Dataset, load_dataset
from fedsim.data.dataset import Indices
from fedsim.distill.distiller import Distiller, Pair, Step
from fedsim.errors import UserError
from fedsim.inputs.texts import input_source
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.files import naming_files
from fedsim.machine.memory import keep_freed_memory
from fedsim.machine.sealed import digest_tensors, read_sealed, write_sealed
from fedsim.models.any.apart import check_apart
from fedsim.models.encoders import Encoder, load_encoder
from fedsim.models.specs import PROXIES
from fedsim.models.submodel.folder import CONFIG_FILE, FACTS_FILE, Submodel, fingerprint, make_submodel, save_submodel
from fedsim.models.submodel.model import BLOCKS, HeldModel
from fedsim.models.tuned_tower import tune
from fedsim.runfolder.claim import claim_folder, leave_folder
from fedsim.runfolder.environment import environment, note_inputs, write_environment
from fedsim.runfolder.lock import FolderLock
from fedsim.runfolder.runlog import require_same
from fedsim.runfolder.screen import Screen
from fedsim.storage.rows import NO_ROWS, Seal, Table

CHECKPOINT_FILE = "checkpoint.json"
TABLES = ("distillation", "timings")
NUM_CHECKPOINTS = 20


@dataclass(frozen=True)
class Job:
    """What is distilled: the sub-model as it was cut, of which model, and over which inputs."""

    submodel: Submodel
    model_sha256: str
    distiller: Distiller
    dataset: Dataset
    encoder: Encoder

    @property
    def held_out(self) -> Indices:
        """The inputs that the sub-model's errors are told on."""
        return self.dataset.val


def run(config: DistillConfig, out: Path, resume: bool) -> dict[str, Any]:
    """Make the sub-model in the folder ``out`` and return the content of its submodel.json.

    ``resume`` goes on from the last checkpoint in ``out``, starts where there is none, and shows what is finished.
    ToldToLeave where a signal asks to end before the last step; all up to there is saved.
    """
    with open_group() as group, hearing(group.leave.ask), DistillLog(out, config, group, resume) as log:
        if not group.broadcast(log.is_finished):
            job = build_job(config, group)
            distiller = job.distiller
            before = distiller.measure(job.held_out)
            seals: dict[str, Seal] = {}
            if resume and (out / CHECKPOINT_FILE).exists():
                state, record = read_sealed(out / CHECKPOINT_FILE, "a distillation's checkpoint")
                seals = {name: Seal(**seal) for name, seal in record["log"].items()}
                distiller.restore(state)
            log.record_inputs(job.dataset, job.encoder)
            group.check_equal("the sub-model at the start", digest_tensors(distiller.state()))

            log.start(distiller.num_done, seals)
            for step in distiller.steps():
                # The log comes before the checkpoint: a resumed distillation drops the rows that no checkpoint covers.
                log.add(step)
                leaves = group.agrees_to_leave() and step.step < distiller.num_steps
                if leaves or step.step % max(1, distiller.num_steps // NUM_CHECKPOINTS) == 0:
                    log.save(step, distiller.state())
                if leaves:
                    where = f"step {step.step} of {distiller.num_steps}"
                    raise ToldToLeave(f"told to leave: {where} is saved, --resume goes on from it")

            group.check_equal("the sub-model at the end", digest_tensors(distiller.state()))
            after = distiller.measure(job.held_out) if distiller.num_steps else before
            errors = {"before": vars(before), "after": vars(after)}
            log.finish(job, {"steps": distiller.num_steps, "held_out": len(job.held_out), "error": errors})
        facts: dict[str, Any] = group.broadcast(log.facts())
        log.show(facts)
        return facts


def build_job(config: DistillConfig, group: Group) -> Job:
    """Load data and model, cut the sub-model out of it, and set up its distillation; the same on every rank."""
    set_arithmetic(config.model.precision, config.deterministic, group.device)
    keep_freed_memory()
    dataset = load_dataset(config.data)
    encoder = load_encoder(config.model, config.data.image_size, dataset.class_names, config.seed)
    encoder = replace(encoder, slices=dataset.num_slices)
    check_own_code(group, dataset, encoder)
    check_apart(encoder, config.model)
    if encoder.tower is None:
        raise UserError("model.name", f"{config.model.name}, which is no plain transformer", "a ViT, BERT or RoBERTa")
    submodel, digest = make_submodel(config, encoder.tower.blocks), fingerprint(encoder.tower.blocks)
    full = tune(config.model, encoder, len(dataset.class_names), group.device)
    held = HeldModel(full, range(len(full.blocks)), submodel.tensors)
    pair = Pair(full, held, full.initial(config.seed), held.initial(config.seed))
    everything = {
        name: torch.ones_like(value, dtype=torch.bool)
        for name, value in pair.held_params.items()
        if name.startswith(PROXIES)
    }
    source = input_source(config, dataset, full)
    distiller = Distiller(
        pair, everything, source, dataset.train, config.distill, group, seed=config.seed, purpose="distillation"
    )
    return Job(submodel, digest, distiller, dataset, encoder)


class DistillLog:
    """The folder of a distillation and what a person sees of it. Use as a context manager, as ``RunLog``."""

    def __init__(self, folder: Path, config: DistillConfig, group: Group, resume: bool) -> None:
        """Claim ``folder``; every rank calls this.

        UserError, on every rank, where it is something else's, or at work, or finished or not and ``resume`` is false.
        """
        self._folder = folder
        self._group = group
        self._started = time.perf_counter()
        self._wire = (0, 0)
        self._screen = Screen(0)
        self._tables = {name: Table(folder / f"{name}.jsonl", "step") for name in TABLES}
        self._lock: FolderLock | None = None
        group.decide(lambda: self._claim(config, resume))

    def _claim(self, config: DistillConfig, resume: bool) -> None:
        folder = self._folder
        with naming_files(folder):
            self._lock, is_used = claim_folder(folder, dump_config(config), resume, self._screen.message)
            try:
                if is_used:
                    require_same(load_distill_config(folder / CONFIG_FILE), config, folder / CONFIG_FILE)
                if not self.is_finished:
                    write_environment(folder / "environment.json", environment(self._group))
            except BaseException:
                self._lock.release()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave_folder(self._group, self._folder, self._lock, error)

    @property
    def is_finished(self) -> bool:
        """Whether the sub-model is there."""
        return (self._folder / FACTS_FILE).exists()

    def record_inputs(self, dataset: Dataset, encoder: Encoder) -> None:
        """As ``RunLog`` does."""
        path = self._folder / "environment.json"
        self._group.decide(lambda: note_inputs(path, dataset, encoder, self._screen.message))

    def start(self, done: int, seals: Mapping[str, Seal]) -> None:
        """Drop the rows of all steps after ``done``: they are about to be written again.

        Every rank calls this. UserError where the rows up to it are not those of ``seals``, the checkpoint's.
        """

        def cut() -> None:
            with naming_files(self._folder):
                for name, table in self._tables.items():
                    table.cut(done, seals.get(name, NO_ROWS))

        self._group.decide(cut)
        self._started = time.perf_counter()

    def add(self, step: Step) -> None:
        """Append a step's rows; they are on disk when this returns."""
        if not self._group.is_server:
            return
        wire = self._group.bytes_sent, self._group.bytes_received
        timing = {"step": step.step, "seconds": time.perf_counter() - self._started}
        timing |= {"wire_bytes_sent": wire[0] - self._wire[0], "wire_bytes_received": wire[1] - self._wire[1]}
        self._started, self._wire = time.perf_counter(), wire
        assert self._lock is not None
        self._lock.require()
        for table, row in zip(self._tables.values(), (vars(step), timing), strict=True):
            table.append([row])

    def save(self, step: Step, state: Mapping[str, Tensor]) -> None:
        """Write what a resumed distillation goes on from, and show where this one is."""
        if not self._group.is_server:
            return
        file = f"checkpoint-{step.step:06d}.safetensors"
        seals = {name: vars(table.seal) for name, table in self._tables.items()}
        write_sealed(self._folder / CHECKPOINT_FILE, file, state, {"step": step.step, "log": seals})
        self._drop_checkpoints(but=file)
        self._screen.message(
            f"step {step.step}  loss {step.loss:.3g}  states {step.states:.3g}  products {step.products:.3g}"
        )

    def finish(self, job: Job, facts: Mapping[str, Any]) -> None:
        """Write the sub-model and ``facts`` about it."""
        if not self._group.is_server:
            return
        tensors = {BLOCKS + name.removeprefix(PROXIES): value for name, value in job.distiller.tensors.items()}
        save_submodel(self._folder, replace(job.submodel, tensors=tensors), job.model_sha256, facts)
        (self._folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        self._drop_checkpoints()

    def _drop_checkpoints(self, but: str | None = None) -> None:
        for path in self._folder.glob("checkpoint-*.safetensors"):
            if path.name != but:
                path.unlink()

    def facts(self) -> dict[str, Any] | None:
        """Return the content of submodel.json; None on the other ranks."""
        return read_sealed(self._folder / FACTS_FILE, "a sub-model's facts")[1] if self._group.is_server else None

    def show(self, facts: Mapping[str, Any]) -> None:
        """Show how far the sub-model was and is from the whole model, and where it is."""
        if not self._group.is_server:
            return
        before, after = (facts["error"][when] for when in ("before", "after"))
        for name, what in (("states", "hidden states"), ("products", "products of matrices")):
            self._screen.message(f"relative error of the {what}: {before[name]:.3g} before, {after[name]:.3g} after")
        self._screen.message(f"{facts['steps']} steps; errors over {facts['held_out']} held-out inputs")
        self._screen.message(f"for a run's config: model.submodel: {{folder: {self._folder}}}")
