"""BlazeFL's rounds for benchmarks/whole/networks.py."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.contenders import blazefl_peer
from benchmarks.lora.any_work import Turns
from benchmarks.whole.peer import Network, serve
from benchmarks.whole.work import parse


def federate(
    model: Network,
    clients: list[tuple[Tensor, Tensor]],
    batch_size: int,
    num_rounds: int,
    begin: Callable[[], object],
    end: Callable[[int], object],
) -> None:
    """All of the model is sent, BatchNorm's statistics as well."""
    worker = blazefl_peer.Worker(model, model, batch_size, "fp32")  # the model has its own mixed precision
    setting = (arguments.processes, arguments.threads, arguments.thread_pool)
    blazefl_peer.federate(blazefl_peer.make_trainer(worker, clients, *setting), num_rounds, begin, end)


if __name__ == "__main__":
    arguments = parse()
    serve(arguments, Turns(True, "wall", lambda: None), federate)
