"""Two ranks beside one rank alone, and beside ranks that do not talk, which is what the machine has to give.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m benchmarks.ranks --precision fp32

The three take turns every few rounds, in the same processes, since the speed of a shared host drifts by more than what
is to be seen. Printed are the medians over the turns.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch

from benchmarks.contenders.common import Settings
from benchmarks.contenders.ours import Silent, make_simulation
from benchmarks.regimes import REGIMES
from fedsim.comm.group import Group, open_group
from fedsim.comm.launcher import Place
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.memory import keep_freed_memory
from fedsim.runfolder.records import RoundRecord
from fedsim.server import run_round


class Turn(NamedTuple):
    """Seconds a round: of one rank alone, of all together, and of each rank by itself while the others do the same."""

    alone: float
    together: float
    apart: list[float]


def rounds_of(settings: Settings, group: Group) -> Callable[[int], float]:
    """Return what trains a number of further rounds and returns the median of their seconds."""
    sim = make_simulation(settings, group)
    state, numbers = sim.initial_state(), itertools.count(1)

    def train(count: int) -> float:
        nonlocal state
        seconds = []
        for round in itertools.islice(numbers, count):
            started = time.perf_counter()
            state = run_round(sim, state, RoundRecord(sim, round), Silent())
            seconds.append(time.perf_counter() - started)
        return median(seconds)

    return train


def measure(settings: Settings, group: Group, turns: int) -> list[Turn]:
    """Take turns; the result is the server's."""
    set_arithmetic(settings.precision, True, group.device)
    keep_freed_memory()
    unconnected = Group(Place(0, 1, 0, "", 0, group.launcher), group.device, "none", None)
    together, own = rounds_of(settings, group), rounds_of(settings, unconnected)
    count, found = settings.rounds, []
    for _ in range(turns + 1):
        shared = together(count)
        alone = own(count) if group.is_server else 0.0
        group.gather_to_all(None)
        found.append(Turn(alone, shared, group.gather_to_all(own(count))))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--regime", choices=REGIMES, default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3, help="of a turn")
    parser.add_argument("--turns", type=int, default=20, help="after one that warms up")
    words = parser.parse_args()
    with open_group() as group:
        regime, threads = REGIMES[words.regime], torch.get_num_threads()
        # The config names one round more than a turn has; nothing that is measured depends on it.
        settings = Settings(regime, words.rounds, threads, group.num_ranks, words.precision, Path())
        turns = measure(settings, group, words.turns)
        if group.is_server:
            print(f"one rank: {regime.num_clients / median(turn.alone for turn in turns):.3g} clients/s")
            together = [turn.alone / turn.together for turn in turns]
            apart = [sum(turn.alone / seconds for seconds in turn.apart) for turn in turns]
            for name, ratios in ((f"{group.num_ranks} ranks", together), ("ranks that do not talk", apart)):
                low, middle, high = quantiles(ratios, n=4, method="inclusive")
                print(f"{name}: {middle:.2f} times that, in the middle half of the turns {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
