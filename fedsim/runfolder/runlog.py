"""The run folder. Rank 0 writes it; on the other ranks every method does nothing.

metrics.jsonl and clients.jsonl hold only what follows from the config, the same bits for any number of ranks;
every second and every byte on the wire goes to timings.jsonl.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from fedsim.comm.group import Group
from fedsim.config.base import Words
from fedsim.config.experiment import Config, as_computed, dump_config, with_block_size, with_noise
from fedsim.config.mistakes import show
from fedsim.config.plain_yaml import flatten
from fedsim.configure import load_config
from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.kernels import build
from fedsim.machine.files import naming_files, write_atomic, write_json
from fedsim.models.tower import Encoder
from fedsim.runfolder.claim import claim_folder, leave_folder
from fedsim.runfolder.environment import environment, note_inputs, write_environment
from fedsim.runfolder.lock import FolderLock
from fedsim.runfolder.messages import ENDED, keep_message
from fedsim.runfolder.scalars import Scalars
from fedsim.runfolder.screen import Screen, metrics_table
from fedsim.runfolder.tracking import Tracker, close_trackers, numbers_of, open_trackers, require_packages, tell
from fedsim.storage.rows import NO_ROWS, Seal, Table, read_rows

TABLES = ("metrics", "clients", "timings")
#: Most signs of what is kept of an error.
MOST_SAID = 500


class Round(Protocol):
    """What ``end_round`` takes: the rows of one round for the three tables."""

    row: dict[str, Any]
    client_rows: list[dict[str, Any]]
    timing: dict[str, Any]

    def close(self) -> None:
        """Complete ``timing``."""


class RunLog:
    """The files of one run and what a person sees of it. Use as a context manager, which holds the folder's lock."""

    def __init__(self, folder: Path, config: Config, group: Group, resume: bool) -> None:
        """Claim ``folder``; every rank calls this.

        UserError, on every rank, where it is another run's, or at work, or this one's and ``resume`` is false.
        """
        self.folder = folder
        self._group = group
        self._is_writer = group.is_server
        self._screen = Screen(config.rounds, config.evaluate.best_by)
        self._tables = {name: Table(folder / f"{name}.jsonl") for name in TABLES}
        self._scalars = Scalars(folder / "tensorboard")
        self._trackers: list[Tracker] = []
        self._lock: FolderLock | None = None
        per_block, noise_multiplier = group.decide(lambda: self._claim(config, resume)) or (None, None)
        #: The run's config, with what the run has settled on where it is resumed.
        self.config = with_noise(with_block_size(config, per_block), noise_multiplier)

    def _claim(self, config: Config, resume: bool) -> tuple[int | None, float | None] | None:
        folder, group = self.folder, self._group
        require_packages(config.track)
        with naming_files(folder):
            self._lock, is_used = claim_folder(folder, dump_config(config), resume, self.message)
            try:
                settled = require_same_run(config, folder / "config.yaml") if is_used else None
                write_environment(folder / "environment.json", environment(group))
            except BaseException:
                self._lock.release()
                raise
        plural = "" if group.num_ranks == 1 else "s"
        self.message(f"{folder}: {group.num_ranks} rank{plural}, backend {group.backend}, device {group.device}")
        if config.model.lora is not None and group.device.type == "cpu" and (reason := build.problem()) is not None:
            self.message(
                f"LoRA trains with PyTorch's own operators, which are slower than fedsim's compiled ones: {reason}"
            )
        return settled

    def record_config(self, config: Config) -> None:
        """Rewrite config.yaml, now that what the config left open is decided."""
        if self._is_writer:
            write_atomic(self.folder / "config.yaml", dump_config(config).encode())

    def record_inputs(self, dataset: Dataset, encoder: Encoder) -> None:
        """Note digests of data and weights in environment.json, show what there is to say. Every rank calls this."""
        self._group.decide(lambda: note_inputs(self.folder / "environment.json", dataset, encoder, self.message))

    @property
    def seals(self) -> dict[str, Seal]:
        """What a checkpoint keeps of the tables."""
        return {name: table.seal for name, table in self._tables.items()}

    def truncate(self, round: int, seals: Mapping[str, Seal] | None = None) -> None:
        """Drop the rows of all rounds after ``round``: the run goes on from there and writes them again.

        Every rank calls this. UserError where the rows up to it are not those of ``seals``, the checkpoint's.
        """

        def cut() -> None:
            with naming_files(self.folder):
                for name, table in self._tables.items():
                    table.cut(round, None if seals is None else seals.get(name, NO_ROWS))

        self._group.decide(cut)

    def open_trackers(self, config: Config) -> None:
        """Tell the rows so far to whom the config says, and the next ones from here on. Every rank calls this."""

        def start() -> None:
            self._trackers = open_trackers(self.folder, config)

        self._group.decide(start)

    def message(self, text: str) -> None:
        """Show one line to the person who waits; it stays in the folder for those who look from elsewhere."""
        if self._is_writer:
            self._screen.message(text)
            if self._lock is not None:
                keep_message(self.folder, text)

    def start_round(self, round: int) -> None:
        """Note that ``round``, counted from 1, begins."""
        if self._is_writer:
            self._screen.start_round(round)

    def progress(self, text: str) -> None:
        """Show what goes on inside the round."""
        if self._is_writer:
            self._screen.progress(text)

    def end_round(self, record: Round) -> None:
        """Append the round's rows; they are on disk when this returns."""
        record.close()
        if not self._is_writer:
            return
        assert self._lock is not None
        self._lock.require()
        rows = zip(self._tables.values(), ([record.row], record.client_rows, [record.timing]), strict=True)
        for table, new in rows:
            table.append(new)
        self._scalars.append(record.row["round"], numbers_of(record.row))
        self._trackers = tell(self._trackers, record.row, self.message)
        self._screen.end_round(record.row, record.timing)

    def last_row(self) -> dict[str, Any]:
        """Return the last round's row of metrics.jsonl; on rank 0 only."""
        return read_rows(self.folder / "metrics.jsonl")[-1]

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json, and show the final table and where the run folder is."""
        self.close()
        if not self._is_writer:
            return
        write_json(self.folder / "results.json", results)
        metrics, timings = (read_rows(self.folder / f"{name}.jsonl") for name in ("metrics", "timings"))
        is_counted = all(row["bytes_up"] is not None for row in metrics)
        ways = [f", {_mean(metrics, f'bytes_{way}'):,.0f} bytes {way}" for way in ("up", "down") if is_counted]
        title = f"{results['status']} after round {results['rounds']}, metrics of round {results['best_round']}"
        self._screen.console.print(metrics_table(results, title))
        self._screen.console.print(
            f"per round: {_mean(timings, 'seconds'):.2f} seconds{''.join(ways)}",
            f"run folder: {self.folder}",
            sep="\n",
            markup=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Give back the terminal."""
        self._screen.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None and self._lock is not None:
            # What ends the run may be that nothing can be written.
            with contextlib.suppress(OSError, UserError):
                self._lock.require()
                said = ": ".join(filter(None, (type(error).__name__, str(error))))
                keep_message(self.folder, f"{ENDED}{said}"[:MOST_SAID])
        try:
            close_trackers(self._trackers, error, self.message)
        finally:
            leave_folder(self._group, self.folder, self._lock, error)


def require_same_run(config: Config, file: Path) -> tuple[int | None, float | None]:
    """UserError unless ``file`` has the config of the same run; return block size and noise that it has settled on.

    The memory for clients' states and who is told of the numbers may differ: no result depends on them, and a run may
    go on on another machine.
    """
    recorded, config = as_computed(load_config(file, imports=False)), as_computed(config)
    per_block = None if recorded.clients.per_block == "auto" else recorded.clients.per_block
    noise_multiplier = None if recorded.privacy is None else recorded.privacy.noise_multiplier
    # The run has settled on numbers since, see record_config.
    if config.clients.per_block == "auto":
        config = with_block_size(config, per_block)
    require_same(recorded, with_noise(config, noise_multiplier), file)
    return per_block, noise_multiplier


def require_same(recorded: Words, config: Words, file: Path) -> None:
    """UserError naming the first key in which ``config`` differs from the one in ``file``."""
    before = flatten(recorded.model_dump(mode="json"), ".")
    now = flatten(config.model_dump(mode="json"), ".")
    for key in [*before, *now]:
        missing = object()
        old, new = before.get(key, missing), now.get(key, missing)
        if old != new:
            shown = ["nothing" if value is missing else show(value) for value in (new, old)]
            raise UserError(f"--resume: {key}", shown[0], f"{shown[1]} as in {file}")


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(row[key] for row in rows)) / max(len(rows), 1)
