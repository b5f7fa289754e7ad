"""A round of clients of several LoRA ranks beside one of clients that all have the mean rank.

    OMP_NUM_THREADS=1 python -m benchmarks.lora.mixed_ranks [--regime medium] [--turns 7] [--clock cpu]

``mixed`` has three clients each of ranks 2, 4, 8 and 16, padded to 16 in one batch; ``by rank`` the same in blocks of
one rank, nothing padded, made of one simulation for each rank; ``uniform`` has rank 8, whose ranks sum to nearly the
same, ``uniform 16`` the largest. All live in one process and take turns, a round each. Printed are medians over the
turns after the first, and of the ratio to ``uniform`` within a turn.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contenders.common import Settings
from benchmarks.contenders.ours import Silent, make_config, make_simulation
from benchmarks.machine import description
from benchmarks.regimes import REGIMES
from fedsim.comm.group import Group, open_group
from fedsim.config.words import LoraConfig
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.memory import keep_freed_memory
from fedsim.runfolder.records import RoundRecord
from fedsim.server import run_round

RANKS = (2, 4, 8, 16)
#: Each contender's simulations: the words of their LoRA, and their share of the clients.
CONTENDERS: dict[str, list[tuple[dict[str, Any], int]]] = {
    "uniform": [({"r": 8}, 1)],
    "mixed": [({"ranks": RANKS}, 1)],
    "by rank": [({"r": rank}, len(RANKS)) for rank in RANKS],
    "uniform 16": [({"r": 16}, 1)],
}


def rounds_of(settings: Settings, group: Group, words: dict[str, Any], share: int) -> Callable[[], None]:
    """A simulation's next round."""
    settings = replace(settings, regime=replace(settings.regime, num_clients=settings.regime.num_clients // share))
    config = make_config(settings)
    assert config.model.lora is not None, "the regimes have LoRA"
    lora = LoraConfig(lora_alpha=config.model.lora.lora_alpha, **words)
    sim = make_simulation(settings, group, model=config.model.model_copy(update={"lora": lora}))
    state = sim.initial_state()

    def train() -> None:
        nonlocal state
        state = run_round(sim, state, RoundRecord(sim, state.round + 1), Silent())

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--regime", choices=REGIMES, default="medium")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    regime = REGIMES[arguments.regime]
    settings = Settings(regime, arguments.turns, arguments.threads, 1, arguments.precision, Path())
    with open_group() as group:
        torch.set_num_threads(arguments.threads)
        set_arithmetic(arguments.precision, True, group.device)
        keep_freed_memory()
        trains = {name: [rounds_of(settings, group, *one) for one in sims] for name, sims in CONTENDERS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in trains}
        for turn in range(arguments.turns + 1):
            names = list(trains)
            for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                started = clock()
                for train in trains[name]:
                    train()
                seconds[name].append(clock() - started)
    print(description())
    for name, own in seconds.items():
        ratio = median(other / mine for other, mine in zip(seconds["uniform"][1:], own[1:], strict=True))
        print(f"{name:12s}{regime.num_clients / median(own[1:]):7.2f} clients/s, {ratio:.2f} of uniform's")


if __name__ == "__main__":
    main()
