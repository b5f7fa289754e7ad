"""Run by torchrun from test_store.py: states travel between ranks in many small waves and come back unharmed."""

import sys
from pathlib import Path

import torch

from fedsim.comm.group import open_group
from fedsim.storage import store as store_module
from fedsim.storage.packed import State, pack
from fedsim.storage.store import Budget, ClientStore

NUM_CLIENTS = 20
CPU = torch.device("cpu")


def fresh(client: int) -> State:
    stream = torch.Generator().manual_seed(client)
    # From nothing to more than a wave.
    return {"weights": torch.randn(client * 20, generator=stream), "visits": torch.tensor(0)}


def main(folder: Path) -> None:
    store_module.WAVE_BYTES = 1000
    with open_group() as group:
        mine = folder / str(group.rank)
        store = ClientStore(group, fresh, Budget(0, 2000, mine))
        for round in range(6):
            # In most rounds a different rank, in some the same; not every client in every round.
            plan = {
                client: (client * (round // 2) + round) % group.num_ranks
                for client in range(NUM_CLIENTS)
                if client % 5 != round
            }
            store.move(plan)
            with store.open([client for client, rank in plan.items() if rank == group.rank]) as states:
                for state in states:
                    state["visits"] += 1
        everyone = group.gather_to_all({str(client): store.look(client).digest() for client in store.sizes()})
        held = [client for part in everyone for client in part]
        assert sorted(map(int, held)) == list(range(NUM_CLIENTS)), held
        assert any(mine.glob("*.safetensors")), "nothing was spilled"
        for client, digest in ((int(c), d) for part in everyone for c, d in part.items()):
            visits = sum(client % 5 != round for round in range(6))
            assert digest == pack(fresh(client) | {"visits": torch.tensor(visits)}, CPU).digest(), client


if __name__ == "__main__":
    main(Path(sys.argv[1]))
