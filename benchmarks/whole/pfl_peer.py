"""pfl's rounds for benchmarks/whole/networks.py."""

import os

import torch

from benchmarks.contenders.pfl_peer import RANK, federate, start_other_ranks
from benchmarks.lora.any_work import Turns
from benchmarks.whole.peer import serve
from benchmarks.whole.work import parse


def meet() -> None:
    """Return once all ranks are here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


if __name__ == "__main__":
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    is_first = os.environ.get(RANK, "0") == "0"
    start_other_ranks("benchmarks.whole.pfl_peer", arguments.processes)
    serve(arguments, Turns(is_first, "wall", meet), federate, saves=is_first)
