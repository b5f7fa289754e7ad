"""What a round of progressive Fourier aggregation costs beside plain averaging of the same weights.

    python -m benchmarks.pfa [--clients 20] [--fraction 0.7]
    torchrun --nproc-per-node 2 -m benchmarks.pfa

The weights are the convolutions and linear layers of the slim VGG16, drawn at random for each client; what is timed
is what algorithms/prrfl.py and FedAvg do with them, a client at a time. The collective is the exact sum. The times
are the slowest rank's, in milliseconds for all clients, the best of several rounds.

K: clients of this rank, P: weights of a client.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.machine import description
from fedsim.algorithms.base import add_exact
from fedsim.algorithms.parts.fourier import from_matrices, low_amplitudes, to_matrices, with_low_amplitudes
from fedsim.comm.exact import ExactSum
from fedsim.comm.group import Group, open_group
from fedsim.machine.memory import keep_freed_memory
from fedsim.models.networks.vgg import build_vgg
from fedsim.seeding import torch_stream

Weights = dict[str, Tensor]
Result = TypeVar("Result")


class Stopwatch:
    """Seconds of the parts of a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, work: Callable[[], Result]) -> Result:
        started = time.perf_counter()
        result = work()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
        return result


def draw_weights(client: int) -> Weights:
    """One client's weights, with a leading client axis."""
    shapes = {name: value.shape for name, value in build_vgg(32).named_parameters() if value.dim() > 1}
    stream = torch_stream(client, "benchmark")
    return {name: torch.randn(1, *shape, generator=stream) for name, shape in shapes.items()}


def mean_of_all(
    watch: Stopwatch, group: Group, weights: Sequence[Weights], num_clients: int, terms_of: Callable[[Weights], Weights]
) -> Weights:
    """The exact mean, over the clients of all ranks, of what ``terms_of`` makes of their weights."""
    total = ExactSum(num_clients)
    share = torch.full((1,), 1 / num_clients, dtype=torch.float64)
    for own in weights:
        terms = watch("transform", lambda own=own: terms_of(own))
        watch("sum", lambda terms=terms: total.add_mean(terms, share, [0]))
    return total.read(watch("collective", lambda: group.sum_exact(total.flat)))


def fourier_round(group: Group, weights: Sequence[Weights], num_clients: int, fraction: float) -> Stopwatch:
    """Amplitudes of the window are averaged; each client puts them under its own phases."""
    watch = Stopwatch()

    def amplitudes(own: Weights) -> Weights:
        return {name: low_amplitudes(to_matrices(value), fraction, "paper") for name, value in own.items()}

    means = mean_of_all(watch, group, weights, num_clients, amplitudes)

    def inverse(own: Weights) -> None:
        for name, value in own.items():
            mixed = with_low_amplitudes(to_matrices(value), means[name], fraction, "paper")
            from_matrices(mixed, value)

    for own in weights:
        watch("inverse", lambda own=own: inverse(own))
    return watch


def plain_round(group: Group, weights: Sequence[Weights], num_clients: int, start: Weights) -> Stopwatch:
    """Changes against the server's weights are averaged, and the server's weights move by the mean."""
    watch = Stopwatch()

    def changes(own: Weights) -> Weights:
        return {name: value.double() - start[name].double() for name, value in own.items()}

    means = mean_of_all(watch, group, weights, num_clients, changes)
    watch("inverse", lambda: [add_exact(start[name], mean) for name, mean in means.items()])
    return watch


def best_milliseconds(group: Group, rounds: int, play: Callable[[], Stopwatch]) -> tuple[dict[str, float], int]:
    """The parts of the fastest round, each at its slowest rank, and the bytes that a rank sends in it."""

    def timed() -> Iterator[dict[str, float]]:
        for _ in range(rounds):
            parts = group.gather_to_all(play().seconds)
            yield {part: 1000 * max(seconds[part] for seconds in parts) for part in parts[0]}

    best = min(timed(), key=lambda parts: sum(parts.values()))
    before = group.bytes_sent
    play()
    return best, group.bytes_sent - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=20, help="of all ranks together")
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.7, 0.95], help="share of the frequencies")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    with open_group() as group:
        clients = range(arguments.clients)[group.rank :: group.num_ranks]
        weights = [draw_weights(client) for client in clients]
        start = {name: value[0] for name, value in draw_weights(arguments.clients).items()}
        plays = {"plain averaging": lambda: plain_round(group, weights, arguments.clients, start)}
        for fraction in arguments.fraction:
            plays[f"PFA, fraction {fraction:g}"] = lambda f=fraction: fourier_round(
                group, weights, arguments.clients, f
            )
        rows = {name: best_milliseconds(group, arguments.rounds, play) for name, play in plays.items()}
        if group.is_server:
            num_weights = sum(value.numel() for value in start.values())
            facts = description()
            print(f"{facts['cpu']}, torch {facts['versions']['torch']}, commit {facts['commit']}, ", end="")
            print(f"{group.num_ranks} ranks of {torch.get_num_threads()} threads; {arguments.clients} clients")
            print(f"all clients' weights gathered as float32: {4 * num_weights * arguments.clients:,} bytes")
            print("| | transform | sum | collective | inverse | all | million weights / s | bytes a rank sends |")
            print("|---|---|---|---|---|---|---|---|")
            for name, (parts, sent) in rows.items():
                whole = sum(parts.values())
                rate = num_weights * arguments.clients / whole / 1000
                cells = " | ".join(f"{value:.0f}" for value in (*parts.values(), whole, rate))
                print(f"| {name} | {cells} | {sent:,} |")


if __name__ == "__main__":
    main()
