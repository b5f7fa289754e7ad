"""The run folder. Rank 0 writes it; on the other ranks every method does nothing.

metrics.jsonl and clients.jsonl hold only what follows from the config, the same bits for any number of ranks;
every second and every byte on the wire goes to timings.jsonl.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from comm import Group
from fedsim.config import Config, Words, dump_config, load_config
from fedsim.config_errors import show
from fedsim.data import Dataset
from fedsim.environment import environment
from fedsim.errors import UserError
from fedsim.files import finite, sync_folder, write_atomic, write_json
from fedsim.kernels import build
from fedsim.screen import Screen, metrics_table

TABLES = ("metrics", "clients", "timings")


class Round(Protocol):
    """What ``end_round`` takes: the rows of one round for the three tables."""

    row: dict[str, Any]
    client_rows: list[dict[str, Any]]
    timing: dict[str, Any]

    def close(self) -> None:
        """Complete ``timing``."""


class RunLog:
    """The files of one run and what a person sees of it. Use as a context manager, or end with ``finish``."""

    def __init__(self, folder: Path, config: Config, group: Group, resume: bool) -> None:
        """Claim ``folder``; UserError if it holds another run, or this one and ``resume`` is false."""
        self.folder = folder
        self._is_writer = group.is_server
        self._writer: Any = None
        self.per_block: int | None = None
        if not self._is_writer:
            return
        if claim_folder(folder, dump_config(config), resume):
            self.per_block = _require_same_run(config, folder / "config.yaml")
        self._screen = Screen(config.rounds)
        write_environment(folder / "environment.json", environment(group))
        plural = "" if group.num_ranks == 1 else "s"
        self.message(f"{folder}: {group.num_ranks} rank{plural}, backend {group.backend}, device {group.device}")
        if config.model.lora is not None and group.device.type == "cpu" and (reason := build.problem()) is not None:
            self.message(
                f"LoRA trains with PyTorch's own operators, which are slower than fedsim's compiled ones: {reason}"
            )

    def record_config(self, config: Config) -> None:
        """Rewrite config.yaml, now that what the config left open is decided."""
        if self._is_writer:
            write_atomic(self.folder / "config.yaml", dump_config(config).encode())

    def record_data(self, dataset: Dataset) -> None:
        """Note the data files in environment.json, and show what there is to say about them."""
        if self._is_writer:
            note_data(self.folder / "environment.json", dataset, self._screen)

    def truncate(self, round: int) -> None:
        """Drop the rows of all rounds after ``round``: the run goes on from there and writes them again."""
        if self._is_writer:
            for table in TABLES:
                truncate_rows(self.folder / f"{table}.jsonl", round)

    def message(self, text: str) -> None:
        """Show one line to the person who waits."""
        if self._is_writer:
            self._screen.message(text)

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
        rows = zip(TABLES, ([record.row], record.client_rows, [record.timing]), strict=True)
        for table, new in rows:
            append_rows(self.folder / f"{table}.jsonl", new)
        self._write_scalars(record.row)
        self._screen.end_round(record.row, record.timing["seconds"])

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
        title = f"{results['status']} after round {results['rounds']}, metrics of round {results['best_round']}"
        self._screen.console.print(metrics_table(results, title))
        self._screen.console.print(
            f"per round: {_mean(timings, 'seconds'):.2f} seconds, "
            f"{_mean(metrics, 'bytes_up'):,.0f} bytes up, {_mean(metrics, 'bytes_down'):,.0f} bytes down",
            f"run folder: {self.folder}",
            sep="\n",
            markup=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Give back the terminal and the TensorBoard file."""
        if self._is_writer:
            self._screen.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_scalars(self, row: Mapping[str, Any]) -> None:
        round = row["round"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # late: slow to import

            # what an earlier start logged from this round on is about to be logged again
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=round)
        for name, value in flatten(row, "/").items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, round)
        self._writer.flush()


def claim_folder(folder: Path, config: str, resume: bool) -> bool:
    """Create the folder with this content of config.yaml, or say that it is in use and may be resumed.

    UserError where it is in use and ``resume`` is false, or cannot be.
    """
    where = str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a start that was killed in here leaves a temporary file, and nothing else
        is_used = any(entry.suffix != ".tmp" for entry in folder.iterdir())
        if not is_used:
            write_atomic(folder / "config.yaml", config.encode())
            return False
    except OSError as error:
        raise UserError(where, error.strerror or str(error), "a folder that can be written") from None
    if not resume:
        raise UserError(where, "a folder that is in use", "--resume to go on with it, or another --out DIR")
    if not (folder / "config.yaml").is_file():
        raise UserError(where, "files, but no config.yaml", "a run folder, or another --out DIR")
    return True


def _require_same_run(config: Config, file: Path) -> int | None:
    """UserError unless ``file`` has the config of the same run; return the block size that it has settled on.

    The memory for clients' states may differ: no result depends on it, and a run may go on on another machine.
    """
    recorded = load_config(file)
    settled = None if recorded.clients.per_block == "auto" else recorded.clients.per_block
    recorded = recorded.model_copy(update={"store": config.store})
    if config.clients.per_block == "auto":
        # The run has settled on a number since, see record_config.
        clients = config.clients.model_copy(update={"per_block": recorded.clients.per_block})
        config = config.model_copy(update={"clients": clients})
    require_same(recorded, config, file)
    return settled


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


def flatten(data: Mapping[Any, Any], separator: str) -> dict[str, Any]:
    """Nested mappings as one level, their keys joined."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        inner = flatten(value, separator) if isinstance(value, Mapping) and value else {"": value}
        flat |= {separator.join(filter(None, (str(key), name))): leaf for name, leaf in inner.items()}
    return flat


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file, durably. Floats read back equal; nan and inf become null."""
    text = "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def read_rows(path: Path, counter: str = "round") -> list[dict[str, Any]]:
    """The rows of a JSONL file, none where there is no file; a torn last line is left out.

    Raises UserError where another line is no JSON object with a number of this name.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows: list[dict[str, Any]] = []
    for place, line in enumerate(lines[:-1], start=1):  # a kill may leave a last line without its newline
        try:
            row = json.loads(line)
            row[counter] + 0
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path} line {place}", show(line.decode(errors="replace")), "a JSON row") from None
        rows.append(row)
    return rows


def truncate_rows(path: Path, last: int, counter: str = "round") -> None:
    """Drop the rows after the ``last`` round and a torn last line; the rows before keep their bytes."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line, row in zip(lines, read_rows(path, counter), strict=False) if row[counter] <= last]
        if len(kept) < len(lines):
            write_atomic(path, b"".join(kept))


def write_environment(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts about this start, and keep those about earlier ones."""
    if path.exists():
        previous = json.loads(path.read_text())
        facts["earlier_starts"] = [*previous.pop("earlier_starts", []), previous]
    write_json(path, facts)


def note_data(path: Path, dataset: Dataset, screen: Screen) -> None:
    """Add the data files to the facts about this start, and show what the reader remarks.

    UserError where an earlier start had files of other content.
    """
    facts = json.loads(path.read_text())
    facts["data_files"] = dataset.files
    for start in facts.get("earlier_starts", []):
        before, now = (value.get("data_files") or {} for value in (start, facts))
        if before.get("sha256") not in (None, now.get("sha256")):
            found, expected = (f"{files.get('files')} files, sha256 {files.get('sha256')}" for files in (now, before))
            raise UserError(f"--resume: data {dataset.name}", found, f"{expected}, as in {path}")
    write_json(path, facts)
    for remark in dataset.remarks:
        screen.message(f"data: {remark}")


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(row[key] for row in rows)) / max(len(rows), 1)
