"""The sum of the clients' products: gathered factors beside the exact sum of matrices, and their share of a round.

    OMP_NUM_THREADS=1 python -m benchmarks.lora.low_rank [--widths 384 768] [--clients 12 120] [--threads 1]
    OMP_NUM_THREADS=1 python -m benchmarks.lora.low_rank --round medium [--turns 5]

One phase of FlexLoRA from the clients' factors to the server's, q, k and v of 12 layers, without any training: what
clients send and the blocks add up, the meeting, and the server's step with its singular values. A case is a process of
its own; its memory is the peak over what it held with the factors of one block. ``difference`` is the largest relative
distance of the two forms' products of a layer.

With ``--round`` the methods train rounds of a regime, in turns with FedAvg. Printed are medians over the turns after
the first: seconds of a round, those of the server's step, and the step's share of FedAvg's round.

Shapes: K clients, G slices of a layer, R rank, D width.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import description
from benchmarks.regimes import LORA_RANK, REGIMES

LAYERS, SLICES, BLOCK = 12, 3, 4
FORMS = ("factored", "dense")
METHODS = ("flexlora", "fedex_lora", "flora", "fedmomentum", "lora_fair", "florist", "hlora")


def resident_mib(what: str) -> float:
    """VmRSS, or VmHWM for the peak, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def serve(form: str, width: int, clients: int, threads: int, out: Path) -> None:
    """Run one case; print its figures as JSON, and write the products of the layers."""
    import numpy as np
    import torch

    from fedsim.algorithms.base import Facts, Phase, ServerState, Update
    from fedsim.algorithms.lora.flexlora import FlexLoRA
    from fedsim.comm.group import open_group
    from fedsim.config.train import TrainConfig
    from fedsim.models.specs import ParamSpec
    from fedsim.phase import Sums, meet
    from fedsim.schedule.cohort import Cohort

    torch.set_num_threads(threads)
    specs = {}
    for number in range(LAYERS):
        specs[f"blocks.{number}.lora_a"] = ParamSpec((SLICES, LORA_RANK, width), "lora_a")
        specs[f"blocks.{number}.lora_b"] = ParamSpec((SLICES, width, LORA_RANK), "lora_b")
    train = TrainConfig.model_validate({"lr": 0.1, "batch_size": 1})
    method = FlexLoRA(FlexLoRA.Config(), Facts(specs, 1, clients, train, float(clients), sums_alone=form == "dense"))
    state = ServerState(0, {name: torch.zeros(spec.shape) for name, spec in specs.items()})
    weights = torch.full((clients,), 1 / clients, dtype=torch.float64)
    cohort = Cohort(tuple(range(clients)), weights)

    def block_of(places: range) -> Update:
        streams = [np.random.default_rng(client) for client in places]
        after = {
            name: torch.from_numpy(np.stack([s.standard_normal(spec.shape, dtype=np.float32) for s in streams]))
            for name, spec in specs.items()
        }
        return Update(
            round=1,
            phase=Phase(),
            clients=tuple(places),
            cohort=cohort.clients,
            weights=weights[places.start : places.stop],
            before=state.params,
            after=after,
            context={},
            kept=[{} for _ in places],
            num_steps=torch.ones(len(places), dtype=torch.int64),
            lr=0.1,
            momentum=0.0,
        )

    seconds = {}
    with open_group() as group:
        sums = Sums(cohort, group, specs)
        update = block_of(range(BLOCK))
        held = resident_mib("VmRSS")
        clock = 0.0
        for start in range(0, clients, BLOCK):
            places = range(start, min(clients, start + BLOCK))
            update = block_of(places)
            started = time.perf_counter()
            payload = method.pre_aggregate(update)
            sums.add(places, update, payload, payload, torch.zeros(len(places), dtype=torch.float64))
            clock += time.perf_counter() - started
        seconds["blocks"] = clock
        started = time.perf_counter()
        aggregate, _ = meet(group, sums)
        seconds["meeting"] = time.perf_counter() - started
        started = time.perf_counter()
        end = method.post_aggregate(state, aggregate)
        seconds["server"] = time.perf_counter() - started
    peak = resident_mib("VmHWM") - held
    layers = sorted({name.rpartition(".")[0] for name in specs})
    np.save(out, np.stack([(end.params[f"{n}.lora_b"] @ end.params[f"{n}.lora_a"]).numpy() for n in layers]))
    print(json.dumps({"seconds": seconds, "mib": peak}))


def run_case(form: str, width: int, clients: int, threads: int, out: Path) -> dict[str, Any]:
    """Run one case in a process of its own."""
    words = ["--serve", form, "--widths", str(width), "--clients", str(clients), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.lora.low_rank", *words, "--out", str(out)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(arguments: argparse.Namespace) -> None:
    """Print both forms side by side."""
    import numpy as np

    print("| width | clients | form | blocks, s | meeting, s | server, s | all, s | MiB | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for width in arguments.widths:
        for clients in arguments.clients:
            with tempfile.TemporaryDirectory() as folder:
                files = {form: Path(folder) / f"{form}.npy" for form in FORMS}
                figures = {form: run_case(form, width, clients, arguments.threads, files[form]) for form in FORMS}
                factored, dense = (np.load(files[form], mmap_mode="r") for form in FORMS)
                pairs = zip(factored, dense, strict=True)
                difference = max(np.linalg.norm(one - other) / np.linalg.norm(other) for one, other in pairs)
            for form in FORMS:
                seconds = figures[form]["seconds"]
                cells = [f"{value:.2f}" for value in (*seconds.values(), sum(seconds.values()))]
                cells += [f"{figures[form]['mib']:.0f}", f"{difference:.0e}"]
                print(f"| {width} | {clients} | {form} | {' | '.join(cells)} |", flush=True)


def rounds_of(name: str, arguments: argparse.Namespace, group: Any) -> Callable[[], tuple[float, float]]:
    """A method's rounds of the regime: seconds of one, and of the server's step in it."""
    from benchmarks.contenders.common import Settings
    from benchmarks.contenders.ours import Silent, make_simulation
    from fedsim.config.words import AlgorithmConfig
    from fedsim.runfolder.records import RoundRecord
    from fedsim.server import run_round

    settings = Settings(REGIMES[arguments.round], arguments.turns, arguments.threads, 1, "fp32", Path())
    sim = make_simulation(settings, group, algorithm=AlgorithmConfig(name=name))
    state, spent = sim.initial_state(), 0.0
    step = sim.algorithm.post_aggregate

    def timed(*words: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        result = step(*words)
        spent = time.perf_counter() - started
        return result

    vars(sim.algorithm)["post_aggregate"] = timed

    def train() -> tuple[float, float]:
        nonlocal state
        started = time.perf_counter()
        log: Any = Silent()
        state = run_round(sim, state, RoundRecord(sim, state.round + 1), log)
        return time.perf_counter() - started, spent

    return train


def train_rounds(arguments: argparse.Namespace) -> None:
    """Print what the methods' rounds take beside FedAvg's."""
    import torch

    from fedsim.comm.group import open_group
    from fedsim.machine.arithmetic import set_arithmetic
    from fedsim.machine.memory import keep_freed_memory

    torch.set_num_threads(arguments.threads)
    names = ("fedavg", *METHODS)
    turns: list[Mapping[str, tuple[float, float]]] = []
    with open_group() as group:
        set_arithmetic("fp32", True, group.device)
        keep_freed_memory()
        methods = {name: rounds_of(name, arguments, group) for name in names}
        for turn in range(arguments.turns + 1):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            turns.append({name: methods[name]() for name in order})
            print(f"turn {turn} of {arguments.turns}", file=sys.stderr)
    print("| method | s a round | server's step, s | share of FedAvg's round |\n|---|---|---|---|")
    for name in names:
        seconds, spent = (median(turn[name][place] for turn in turns[1:]) for place in (0, 1))
        share = median(turn[name][1] / turn["fedavg"][0] for turn in turns[1:])
        print(f"| {name} | {seconds:.3f} | {spent:.3f} | {share:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768], help="of ViT-S and ViT-B")
    parser.add_argument("--clients", type=int, nargs="+", default=[12, 120])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round", choices=REGIMES, help="train rounds of a regime")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--serve", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.widths[0], arguments.clients[0], arguments.threads, arguments.out)
        return
    print(json.dumps(description()))
    (compare if arguments.round is None else train_rounds)(arguments)


if __name__ == "__main__":
    main()
