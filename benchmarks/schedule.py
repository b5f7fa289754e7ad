"""Blocks to ranks by measured seconds, beside rules that measure nothing, on Dirichlet 0.1 shards of the digits.

    OMP_NUM_THREADS=1 python -m benchmarks.schedule [--clients 60] [--per-block 2] [--rounds 12]

One rank trains whole rounds, all clients in each, and so the same blocks. Each rule shares these out among more ranks;
all plans are judged on the same seconds, of each block the median over all rounds. The table has the makespan over the
lower bound; of measured seconds, which are told what was measured before a round, the mean over the later half of the
rounds. Ends with an error where measured seconds are not the best.
"""

import argparse
from collections.abc import Sequence
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

from benchmarks.machine import description
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.runfolder.records import RoundRecord
from fedsim.schedule.cohort import draw_cohort, num_local_steps
from fedsim.schedule.ranks import assign_blocks, loads, lower_bound
from fedsim.server import run_round

RANKS = (2, 4, 8, 16)
#: The last knows what nobody does before the round: the seconds that all are judged on.
RULES = ("in turn", "by images", "by steps", "by measured seconds", "by the seconds themselves")


def make_config(words: argparse.Namespace) -> Config:
    """The small transformer of the tests with LoRA, and shards of very unequal sizes."""
    return Config.model_validate(
        {
            "name": "schedule",
            "seed": 1,
            "rounds": words.rounds,
            "model": {
                "name": "timm:vit_tiny_patch16_224",
                "weights": "random",
                "options": {"patch_size": 7, "embed_dim": 64, "depth": 4, "num_heads": 4},
                "lora": {"r": 8, "target": ["q", "k", "v"]},
            },
            "data": {"name": "digits", "image_size": 28, "augment": ["flip"]},
            "clients": {
                "count": words.clients,
                "per_block": words.per_block,
                "partition": {"name": "dirichlet", "alpha": 0.1},
            },
            "train": {"lr": 0.05, "batch_size": 16},
        }
    )


def play(config: Config) -> dict[tuple[str, int], float]:
    """Run the rounds and return each rule's makespan over the lower bound, by rule and number of ranks."""
    with open_group() as group:
        sim = build_simulation(config, group)
    cohort = draw_cohort(config.clients, config.train, sim.sizes, config.seed, 1)
    blocks = cohort.blocks(sim.per_block)

    def summed(values: Sequence[float]) -> list[float]:
        return [sum(values[block.start : block.stop]) for block in blocks]

    images = summed([sim.sizes[client] for client in cohort.clients])
    steps = summed([num_local_steps(config.train, sim.sizes[client]) for client in cohort.clients])
    state, seconds, expected = sim.initial_state(), list[list[float]](), list[list[float]]()
    log: Any = SimpleNamespace(progress=str)
    for round in range(1, config.rounds + 1):
        expected.append(sim.pace.expected_seconds(cohort, blocks))
        record = RoundRecord(sim, round)
        state = run_round(sim, state, record, log)
        took = record.timing["phases"][0]["train_seconds_per_client"]
        seconds.append(summed([took[client] for client in cohort.clients]))
    costs = [median(column) for column in zip(*seconds, strict=True)]
    found = {}
    for ranks in RANKS:
        idle = [0.0] * ranks
        plans = {
            "in turn": [[list(range(rank, len(blocks), ranks)) for rank in range(ranks)]],
            "by images": [assign_blocks(images, idle)],
            "by steps": [assign_blocks(steps, idle)],
            "by measured seconds": [assign_blocks(known, idle) for known in expected[config.rounds // 2 :]],
            "by the seconds themselves": [assign_blocks(costs, idle)],
        }
        for rule, own in plans.items():
            found[rule, ranks] = fmean(max(loads(costs, idle, plan)) for plan in own) / lower_bound(costs, idle)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--per-block", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    words = parser.parse_args()
    machine = description()
    print(f"{machine['cpu']}, commit {machine['commit']}, torch {machine['versions']['torch']}\n")
    found = play(make_config(words))
    print("| makespan / lower bound | " + " | ".join(f"{ranks} ranks" for ranks in RANKS) + " |")
    print("|---" * (1 + len(RANKS)) + "|")
    for rule in RULES:
        print(f"| {rule} | " + " | ".join(f"{found[rule, ranks]:.3f}" for ranks in RANKS) + " |")
    means = {rule: fmean(found[rule, ranks] for ranks in RANKS) for rule in RULES[:-1]}
    if min(means, key=means.__getitem__) != RULES[-2]:
        raise SystemExit("another rule is better than measured seconds")


if __name__ == "__main__":
    main()
