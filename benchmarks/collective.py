"""How much of a round the phase's collective takes, waiting for the slower rank left out.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m benchmarks.collective --regime small --precision fp32

Prints the median round. The ranks meet in a sum of one number before the clock starts.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.contenders.common import Settings
from benchmarks.contenders.ours import Silent, make_simulation
from benchmarks.regimes import REGIMES
from fedsim.comm.group import Group, open_group
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.memory import keep_freed_memory
from fedsim.runfolder.records import RoundRecord
from fedsim.server import run_round


def seconds_of_rounds(settings: Settings, group: Group) -> list[tuple[float, float]]:
    """Return the seconds of each round but the first, and those of its collectives."""
    set_arithmetic(settings.precision, True, group.device)
    keep_freed_memory()
    sim, meet, spent = make_simulation(settings, group), group.sum_exact, [0.0]
    state, rows = sim.initial_state(), []

    def timed(values: Tensor) -> Tensor:
        meet(torch.zeros(1, dtype=torch.int64))
        started = time.perf_counter()
        summed = meet(values)
        spent[0] += time.perf_counter() - started
        return summed

    with patch.object(group, "sum_exact", timed):
        for round in range(1, settings.rounds + 2):
            started, spent[0] = time.perf_counter(), 0.0
            state = run_round(sim, state, RoundRecord(sim, round), Silent())
            rows.append((time.perf_counter() - started, spent[0]))
    return rows[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--regime", choices=REGIMES, default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=7, help="after one that warms up")
    words = parser.parse_args()
    with open_group() as group:
        settings = Settings(
            REGIMES[words.regime], words.rounds, torch.get_num_threads(), group.num_ranks, words.precision, Path()
        )
        rows = seconds_of_rounds(settings, group)
        if group.is_server:
            whole, collective = (median(column) for column in zip(*rows, strict=True))
            print(f"round {whole:.4f} s, collective {collective:.4f} s, {collective / whole:.1%}")


if __name__ == "__main__":
    main()
