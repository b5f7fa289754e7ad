"""BlazeFL: its FedAvg server, and clients one after another, in its pool of processes, or in its pool of threads.

Its processes are forked anew for every round, and pass tensors through shared memory; its threads, which are asked for
with ``THREAD_POOL``, have a model each, and every client is trained by one of them. The clients that come with BlazeFL
build a model for each client and know one loss; these keep a model per worker, and send what is trained alone.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from multiprocessing.pool import ApplyResult
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import torch
from blazefl.contrib import FedAvgBaseServerHandler, FedAvgDownlinkPackage, FedAvgUplinkPackage
from blazefl.core import (
    BaseClientTrainer,
    IPCMode,
    ProcessPoolClientTrainer,
    ThreadPoolClientTrainer,
    deserialize_model,
    process_tensors_in_object,
    serialize_model,
)
from torch import Tensor, nn

from benchmarks import regimes
from benchmarks.contenders.common import (
    Outcome,
    RoundClock,
    Settings,
    parse_settings,
    peak_rss_of_tree,
    write_report,
)
from benchmarks.peer_model import Classifier, client_tensors, train_epoch

THREAD_POOL = "FEDSIM_BENCH_THREAD_POOL"
STARTED_AT = "started_at"

Clients = Sequence[tuple[Tensor, Tensor]]


class Worker:
    """A model that is trained on one client after another; ``sent``: the module of it whose state is sent."""

    def __init__(self, model: Any, sent: nn.Module, batch_size: int, precision: str) -> None:
        self.model, self.sent, self.batch_size, self.precision = model, sent, batch_size, precision

    def train(self, client: int, own: tuple[Tensor, Tensor], payload: FedAvgDownlinkPackage) -> FedAvgUplinkPackage:
        """Return what a client sends, ``own`` being its images and answers."""
        deserialize_model(self.sent, payload.model_parameters)
        started_at = time.time()
        train_epoch(self.model, *own, self.batch_size, self.precision)
        return FedAvgUplinkPackage(client, serialize_model(self.sent), len(own[0]), {STARTED_AT: started_at})


class Serial(BaseClientTrainer[FedAvgUplinkPackage, FedAvgDownlinkPackage]):
    """One client at a time. ``peak_rss_bytes``: of all processes in the first round, where others end with it."""

    def __init__(self, own: Worker, clients: Clients) -> None:
        self.own, self.clients = own, clients
        self.cache: list[FedAvgUplinkPackage] = []
        self.device = "cpu"
        self.peak_rss_bytes = 0

    def local_process(self, payload: FedAvgDownlinkPackage, cid_list: list[int]) -> None:
        self.cache += [self.own.train(client, self.clients[client], payload) for client in cid_list]

    def uplink_package(self) -> list[FedAvgUplinkPackage]:
        packages, self.cache = self.cache, []
        return packages


class NoEvent:
    """For BlazeFL's pools, which want to tell clients to stop; an event for processes would be a process more."""

    def set(self) -> None: ...

    def clear(self) -> None: ...


class InProcesses(ProcessPoolClientTrainer[FedAvgUplinkPackage, FedAvgDownlinkPackage, int], Serial):
    """``inherited``: what forked processes find in their memory, so that neither model nor data are sent."""

    ipc_mode = IPCMode.SHARED_MEMORY
    inherited: tuple[Worker, Clients]

    def __init__(self, own: Worker, clients: Clients, num_processes: int) -> None:
        Serial.__init__(self, own, clients)
        InProcesses.inherited = own, clients
        self.num_parallels = num_processes
        self.stop_event = NoEvent()
        torch.multiprocessing.set_start_method("fork", force=True)

    def get_client_config(self, cid: int) -> int:
        return cid

    def prepare_uplink_package_buffer(self) -> FedAvgUplinkPackage:
        return FedAvgUplinkPackage(0, serialize_model(self.own.sent), 0, {STARTED_AT: 0.0})

    @staticmethod
    def worker(
        config: int,
        payload: FedAvgDownlinkPackage,
        device: str,  # noqa: ARG004  # BlazeFL gives it
        stop_event: NoEvent,  # noqa: ARG004
        *,
        shm_buffer: FedAvgUplinkPackage,
    ) -> FedAvgUplinkPackage:
        own, clients = InProcesses.inherited
        package = own.train(config, clients[config], payload)
        shm_buffer.model_parameters.copy_(package.model_parameters)
        return process_tensors_in_object(package, "replace")

    def progress_fn(self, it: list[ApplyResult[FedAvgUplinkPackage]]) -> Iterable[ApplyResult[FedAvgUplinkPackage]]:
        yield from it
        self.peak_rss_bytes = self.peak_rss_bytes or peak_rss_of_tree()


class InThreads(ThreadPoolClientTrainer[FedAvgUplinkPackage, FedAvgDownlinkPackage], Serial):
    """A worker for each thread; a thread takes one that is free."""

    def __init__(self, own: Worker, clients: Clients, num_threads: int) -> None:
        Serial.__init__(self, own, clients)
        self.num_parallels = num_threads
        self.stop_event = NoEvent()
        self.free: SimpleQueue[Worker] = SimpleQueue()
        for worker in (own, *(deepcopy(own) for _ in range(num_threads - 1))):
            self.free.put(worker)

    def worker(
        self,
        cid: int,
        device: str,  # noqa: ARG002  # BlazeFL gives it
        payload: FedAvgDownlinkPackage,
        stop_event: NoEvent,  # noqa: ARG002
    ) -> FedAvgUplinkPackage:
        worker = self.free.get()
        try:
            return worker.train(cid, self.clients[cid], payload)
        finally:
            self.free.put(worker)


def make_trainer(own: Worker, clients: Clients, processes: int, threads: int, thread_pool: bool) -> Serial:
    """The mode of so many processes with so many threads, which are its pool's or else PyTorch's."""
    torch.set_num_threads(1 if thread_pool else threads)
    if processes > 1:
        return InProcesses(own, clients, processes)
    return InThreads(own, clients, threads) if thread_pool else Serial(own, clients)


def federate(trainer: Serial, num_rounds: int, begin: Callable[[], object], end: Callable[[int], object]) -> float:
    """Train some rounds of all clients; ``begin`` and ``end``: around every round. Returns when training began."""
    own, num_clients = trainer.own, len(trainer.clients)
    selector = SimpleNamespace(select_model=lambda _: own.sent)
    server = FedAvgBaseServerHandler(
        selector, "", None, num_rounds, num_clients, sample_ratio=1.0, device="cpu", batch_size=own.batch_size, seed=0
    )
    first_step_at = float("inf")
    while not server.if_stop():
        begin()
        index = server.round
        trainer.local_process(server.downlink_package(), server.sample_clients())
        for package in trainer.uplink_package():
            first_step_at = min(first_step_at, package.metadata[STARTED_AT])
            server.load(package)
        end(index)
    return first_step_at


def run(settings: Settings) -> Outcome:
    regime = settings.regime
    model = Classifier(regime)
    clock, after_first = RoundClock(), {}

    def end(index: int) -> None:
        clock.stop()
        if index == 0:
            after_first.update(model.factor_arrays())

    clients = [client_tensors(regime, client_id) for client_id in range(regime.num_clients)]
    sent = nn.ParameterList(model.factors().values())
    own = Worker(model, sent, regimes.BATCH_SIZE, settings.precision)
    trainer = make_trainer(own, clients, settings.processes, settings.threads, THREAD_POOL in os.environ)
    first_step_at = federate(trainer, settings.rounds + 1, clock.start, end)
    peak_rss_bytes = max(trainer.peak_rss_bytes, peak_rss_of_tree())
    return Outcome(clock.seconds, first_step_at, peak_rss_bytes, after_first)


if __name__ == "__main__":
    settings = parse_settings(__doc__ or "")
    write_report("blazefl", settings, run(settings))
