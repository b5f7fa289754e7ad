"""What secure aggregation costs: seconds and bytes of a client and of the server, per number that is summed.

    OMP_NUM_THREADS=1 python -m benchmarks.secure_aggregation

One process plays all clients, three times; the fastest counts. A tenth of them, or one, is lost. Numbers are those of
one grid; a simulator masks those of two or three, since it adds up before it knows which one is read.
"""

import argparse
import time

import torch
from torch import Tensor

from fedsim.config.privacy import SecureAggregationConfig
from fedsim.privacy.secured_phase import SecuredCosts, SecuredPhase, lost_clients

STREAM = "mean/0/60"


def phase_with_losses(num_clients: int, dropout: float) -> SecuredPhase:
    """Return the first round, by the seed, in which the share ``dropout`` of the clients is lost, or one."""
    wanted, clients, seed = max(1, round(dropout * num_clients)), range(num_clients), 0
    while len(lost_clients(dropout, seed, 1, "train", clients)) != wanted:
        seed += 1
    return SecuredPhase(SecureAggregationConfig(dropout=dropout), seed, 1, "train", clients)


def add_up(phase: SecuredPhase, size: int) -> tuple[Tensor, float]:
    """Return the masked sum of messages of ones, and the seconds of the adding alone."""
    total, seconds = torch.zeros(size, dtype=torch.int64), 0.0
    for client in phase.stayed:
        masks_KP = phase.masks((client,), STREAM, size)
        started = time.perf_counter()
        masks_KP += 1
        total += masks_KP[0]
        seconds += time.perf_counter() - started
    return total, seconds


def measure(num_clients: int, size: int) -> tuple[SecuredPhase, SecuredCosts, float]:
    """Return a phase, what it took, and the seconds of adding a client's message that is masked already."""
    phase = phase_with_losses(num_clients, 0.1)
    total, adding = add_up(phase, size)
    unmasking = phase.unmask()
    unmasking.take_away(total, STREAM)
    assert (total == len(phase.stayed)).all()
    return phase, phase.costs(size, unmasking), adding / len(phase.stayed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--numbers", type=int, default=100_000, help="of a client's message")
    words = parser.parse_args()
    titles = (
        "clients",
        "lost",
        "keys ms",
        "masks ms",
        "masks ns/number",
        "adding ns/number",
        "server ms",
        "sent",
        "got",
    )
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for num_clients in words.clients:
        phases, costs, adding = zip(*(measure(num_clients, words.numbers) for _ in range(3)), strict=True)
        keys, masks, unmasking = (
            min(getattr(cost, f"{name}_seconds") for cost in costs) for name in ("key", "mask", "unmask")
        )
        row = (
            num_clients,
            len(phases[0].lost),
            f"{1e3 * keys:.2f}",
            f"{1e3 * masks:.2f}",
            f"{1e9 * masks / words.numbers:.1f}",
            f"{1e9 * min(adding) / words.numbers:.1f}",
            f"{1e3 * unmasking:.1f}",
            f"{costs[0].bytes_sent:,}",
            f"{costs[0].bytes_received:,}",
        )
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
