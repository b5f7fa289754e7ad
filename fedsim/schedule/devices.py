"""The clients' simulated devices: how long a client's work takes there, who can be chosen, and whose update is lost.

A client takes

    examples * example_seconds / speed  +  bytes down * 8 / (down_mbps * 10^6)  +  bytes up * 8 / (up_mbps * 10^6)

simulated seconds in every round. ``examples``: those of all its local steps, one after the other for all models that it
trains. Which class a client is of, and who is there in a round, follows from (seed, purpose, round).

Shapes: N clients of the run.
"""

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fedsim.config.clock import DEVICE_KEYS, ClockConfig, DeviceClass
from fedsim.config.mistakes import mistakes, show
from fedsim.config.train import TrainConfig
from fedsim.errors import UserError, reading
from fedsim.schedule.cohort import num_local_steps
from fedsim.seeding import numpy_stream

BITS, MEGA = 8, 1e6


@dataclass(frozen=True)
class Load:
    """What a round asks of the clients: how many models each trains, and bytes (N,) ``down`` and ``up``."""

    models: int
    down: np.ndarray
    up: np.ndarray


@dataclass(frozen=True)
class Devices:
    """Float64 (N,) each; rates in bytes per second, infinite where there is no limit."""

    speed: np.ndarray
    down: np.ndarray
    up: np.ndarray
    availability: np.ndarray
    dropout: np.ndarray

    @property
    def digest(self) -> str:
        """The sha256 over all values."""
        return hashlib.sha256(np.stack(list(vars(self).values())).tobytes()).hexdigest()

    def available(self, seed: int, round: int) -> np.ndarray:
        """Return who can be chosen in a round, bool (N,)."""
        return numpy_stream(seed, "availability", round=round).random(len(self.speed)) < self.availability

    def dropping(self, seed: int, round: int) -> np.ndarray:
        """Return whose update is lost, of those that begin in a round, bool (N,)."""
        return numpy_stream(seed, "dropout", round=round).random(len(self.speed)) < self.dropout

    def seconds(self, load: Load, sizes: Sequence[int], train: TrainConfig, example_seconds: float) -> np.ndarray:
        """Return how long each client's round takes, float64 (N,); ``sizes``: training images."""
        examples = load.models * np.array([num_examples(train, size) for size in sizes], dtype=np.float64)
        seconds: np.ndarray = examples * example_seconds / self.speed + load.down / self.down + load.up / self.up
        return seconds


def num_examples(train: TrainConfig, size: int) -> int:
    """Return how many examples a client with ``size`` images sees in its local steps, each as often as it is seen."""
    if size == 0:
        return 0
    passes, steps = divmod(num_local_steps(train, size), math.ceil(size / train.batch_size))
    return passes * size + steps * min(size, train.batch_size)


def devices_of(clock: ClockConfig, num_clients: int, seed: int) -> Devices:
    """Return the clients' devices; UserError for a trace that cannot be read or does not have all of them."""
    if clock.trace is not None:
        return _devices(read_trace(Path(clock.trace), num_clients), np.arange(num_clients))
    classes = clock.devices or (DeviceClass(name="any"),)
    ends = np.cumsum([device.share for device in classes])
    points = numpy_stream(seed, "device").random(num_clients) * ends[-1]
    return _devices(classes, np.searchsorted(ends[:-1], points, side="right"))


def _devices(classes: Sequence[DeviceClass], of_client: np.ndarray) -> Devices:
    def column(values: list[float]) -> np.ndarray:
        own: np.ndarray = np.array(values, dtype=np.float64)[of_client]
        return own

    return Devices(
        column([device.speed for device in classes]),
        column([_rate(device.down_mbps) for device in classes]),
        column([_rate(device.up_mbps) for device in classes]),
        column([device.availability for device in classes]),
        column([device.dropout for device in classes]),
    )


def _rate(mbps: float | None) -> float:
    """Bytes per second."""
    return math.inf if mbps is None else mbps * MEGA / BITS


def read_trace(path: Path, num_clients: int) -> list[DeviceClass]:
    """Return each client's device from a CSV file with a row per client, in any order; an empty cell is the default.

    Its columns are ``client`` and some of ``DEVICE_KEYS``. UserError with file and line where a row is none, or where a
    client has none or two.
    """
    with reading(f"clock.trace: {path}", "a CSV file in UTF-8"), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, restval=""))
        columns = set(rows[0]) if rows else set()
    if "client" not in columns or columns - {"client", *DEVICE_KEYS}:
        shown = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise UserError(f"clock.trace: {path}", shown, f"the columns client, and of {', '.join(DEVICE_KEYS)} some")
    found: dict[int, DeviceClass] = {}
    for line, row in enumerate(rows, start=2):
        where = f"clock.trace: {path} line {line}"
        if None in row:
            raise UserError(where, f"{len(columns) + len(row.pop(None))} cells", f"{len(columns)}, one for each column")
        client = row.pop("client")
        if not client.isdecimal() or not int(client) < num_clients or int(client) in found:
            expected = f"each number from 0 to {num_clients - 1} once, a client of the run"
            raise UserError(where, f"client {show(client)}", expected)
        found[int(client)] = _device(row, where)
    if len(found) < num_clients:
        missing = min(set(range(num_clients)) - found.keys())
        raise UserError(f"clock.trace: {path}", f"no row of client {missing}", f"one for each of {num_clients} clients")
    return [found[client] for client in range(num_clients)]


def _device(cells: dict[str, str], where: str) -> DeviceClass:
    """The device of a row of a trace."""
    values: dict[str, float] = {}
    for key, cell in cells.items():
        try:
            values |= {key: float(cell)} if cell.strip() else {}
        except ValueError:
            raise UserError(where, f"{key} {show(cell)}", "a number, or an empty cell") from None
    device = {"name": "trace", **values}
    try:
        return DeviceClass.model_validate(device)
    except ValidationError as error:
        first = mistakes(error, device, DeviceClass)[0]
        raise UserError(where, f"{first.key} {first.found}", first.expected) from None
