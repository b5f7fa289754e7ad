"""pfl's rounds for benchmarks/whole/networks.py."""

import os

import torch
from safetensors.torch import save_file

from benchmarks.contenders.pfl_peer import RANK, federate, start_other_ranks
from benchmarks.lora.any_work import Turns
from benchmarks.whole.peer import Network, client_tensors
from benchmarks.whole.work import WORKS, parse


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    is_first = os.environ.get(RANK, "0") == "0"
    start_other_ranks("benchmarks.whole.pfl_peer", arguments.processes)

    def meet() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    turns = Turns(is_first, "wall", meet)
    for name in arguments.works:
        turns.wait()
        work, folder = WORKS[name], arguments.folder / name
        model = Network(work, folder / "start.safetensors", arguments.precision)
        clients = client_tensors(work, folder)
        turns.done()

        def end(index: int, model: Network = model, path: str = f"{folder}/{arguments.name}.safetensors") -> None:
            turns.done()
            if index == 0 and is_first:
                save_file(model.state_dict(), path)

        federate(model, clients, work.batch, arguments.turns + 1, turns.wait, end)


if __name__ == "__main__":
    main()
