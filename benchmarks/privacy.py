"""Privacy: what its mechanisms cost a round, and opacus on the same network.

    OMP_NUM_THREADS=1 python -m benchmarks.privacy [--regime small] [--turns 7] [--threads 1]

Every contender is a process of its own, kept waiting: a turn is one round of each, one after the other, and who begins
changes. Printed are medians over the turns after the first, ratios within a turn, and the peaks of memory. All clients
take the same steps with the same number of images: ``plain`` and ``record`` cut an epoch into the regime's batches, and
so does opacus. ``poisson`` is what a run does: samples of the same expected size, whose widest in a block counts.
``client`` clips whole clients and adds the server's noise; ``masked`` has secure aggregation alone.

opacus is used as its documentation does: hooks that keep every image's gradient (``opacus``), or fast gradient
clipping, a second backward pass (``opacus_fast``). ``eager`` is its network and loop without it. Seconds are the
wall's, or with ``--clock cpu`` the processor's, which a busy machine changes less.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders.common import Settings, peak_rss_of_tree
from benchmarks.machine import description
from benchmarks.regimes import BATCH_SIZE, REGIMES

BOUND, NOISE_MULTIPLIER = 1.0, 1.0
MECHANISMS = {
    "client": {"name": "client", "bound": BOUND},
    "record": {"name": "record", "bound": BOUND},
    "poisson": {"name": "record", "bound": BOUND},
}
CONTENDERS = ("plain", "client", "masked", "record", "poisson", "eager", "opacus", "opacus_fast")


def our_rounds(name: str, settings: Settings) -> Callable[[], None]:
    """fedsim's own round, with or without the mechanism."""
    import fedsim.client
    from benchmarks.contenders.ours import Silent, make_config, make_simulation
    from fedsim.comm.group import open_group
    from fedsim.config.privacy import PrivacyConfig
    from fedsim.machine.arithmetic import set_arithmetic
    from fedsim.machine.memory import keep_freed_memory
    from fedsim.runfolder.records import RoundRecord
    from fedsim.server import run_round
    from fedsim.training.steps import plan_steps

    group = open_group().__enter__()
    set_arithmetic(settings.precision, True, group.device)
    keep_freed_memory()
    sections: dict[str, Any] = {"train": make_config(settings).train.model_copy(update={"shuffle": True})}
    if name in MECHANISMS:
        words = {"mechanism": MECHANISMS[name], "noise_multiplier": NOISE_MULTIPLIER, "delta": 1e-3}
        sections["privacy"] = PrivacyConfig.model_validate(words)
    elif name == "masked":
        sections["privacy"] = PrivacyConfig.model_validate({"secure_aggregation": {}})
    if name == "record":
        # The plain batches in place of samples: their weights are the same, one over the expected size.
        fedsim.client.plan_steps = lambda *arguments, **_: plan_steps(*arguments)
    sim = make_simulation(settings, group, **sections)
    state = sim.initial_state()

    def train() -> None:
        nonlocal state
        state = run_round(sim, state, RoundRecord(sim, state.round + 1), Silent())

    return train


def eager_rounds(name: str, settings: Settings) -> Callable[[], None]:
    """The same network in PyTorch, client by client, and opacus around it."""
    import torch

    from benchmarks.peer_model import LinearClassifier, client_tensors

    regime = settings.regime
    model = LinearClassifier(regime)
    clients = [client_tensors(regime, client) for client in range(regime.num_clients)]
    start = [factor.detach().clone() for factor in model.factors().values()]
    loss_of, wrapped, make_optimizer = private_parts(name, model)

    def train() -> None:
        total = [torch.zeros_like(factor) for factor in start]
        for images, labels in clients:
            with torch.no_grad():
                for factor, value in zip(model.factors().values(), start, strict=True):
                    factor.copy_(value)
            optimizer = make_optimizer()
            for first in range(0, len(labels), BATCH_SIZE):
                optimizer.zero_grad()
                own = slice(first, first + BATCH_SIZE)
                loss_of(wrapped(images[own]), labels[own]).backward()
                optimizer.step()
            for sums, factor in zip(total, model.factors().values(), strict=True):
                sums += factor.detach()
        for value, sums in zip(start, total, strict=True):
            value.copy_(sums / len(clients))

    return train


def private_parts(name: str, model: Any) -> tuple[Any, Any, Callable[[], Any]]:
    """Return loss, network and a maker of optimisers: plain, or opacus's."""
    import torch

    criterion = torch.nn.CrossEntropyLoss()
    if name == "eager":
        return criterion, model, model.local_optimizer
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    words = {"noise_multiplier": NOISE_MULTIPLIER, "max_grad_norm": BOUND, "expected_batch_size": BATCH_SIZE}
    if name == "opacus":
        return criterion, GradSampleModule(model), lambda: DPOptimizer(model.local_optimizer(), **words)
    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=BOUND, use_ghost_clipping=True)

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> Any:
        return DPLossFastGradientClipping(wrapped, optimizer, criterion)(logits, labels)

    def make_optimizer() -> Any:
        nonlocal optimizer
        optimizer = DPOptimizerFastGradientClipping(model.local_optimizer(), **words)
        return optimizer

    optimizer: Any = None
    return losses, wrapped, make_optimizer


def serve(name: str, settings: Settings) -> None:
    """Train a round for every line that comes in; answer with its seconds and the peak of memory so far."""
    import torch

    torch.set_num_threads(settings.threads)
    train = (our_rounds if name in ("plain", "masked", *MECHANISMS) else eager_rounds)(name, settings)
    for word in sys.stdin:
        clock = time.process_time if word.strip() == "cpu" else time.perf_counter
        started = clock()
        train()
        print(json.dumps([clock() - started, peak_rss_of_tree()]), flush=True)


def measure(names: list[str], arguments: argparse.Namespace) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return every turn's seconds by contender, and the peaks in MiB."""
    words = [sys.executable, "-m", "benchmarks.privacy", "--regime", arguments.regime]
    words += ["--threads", str(arguments.threads), "--precision", arguments.precision, "--serve"]
    processes = {
        name: subprocess.Popen([*words, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    turns: list[dict[str, float]] = []
    peaks: dict[str, float] = {}
    for turn in range(arguments.turns + 1):
        seconds = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            pipe = processes[name]
            assert pipe.stdin is not None, "it was opened"
            assert pipe.stdout is not None, "it was opened"
            pipe.stdin.write(f"{arguments.clock}\n")
            pipe.stdin.flush()
            seconds[name], peak = json.loads(pipe.stdout.readline())
            peaks[name] = peak / 2**20
        turns.append(seconds)
        print(f"turn {turn} of {arguments.turns}", file=sys.stderr)
    for process in processes.values():
        process.communicate()
    return turns[1:], peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--regime", choices=REGIMES, default="small")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of fedsim; the others have fp32")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    regime = REGIMES[arguments.regime]
    if arguments.serve:
        serve(arguments.serve, Settings(regime, 0, arguments.threads, 1, arguments.precision, Path()))
        return
    names = arguments.contenders
    turns, peaks = measure(names, arguments)
    print(json.dumps(description()))
    print(
        f"{regime.name}, {arguments.precision}, {arguments.threads} thread, {len(turns)} turns, {arguments.clock} time"
    )
    print("| contender | s a round | clients/s | of plain | of opacus | MiB |\n|---|---|---|---|---|---|")
    for name in names:
        seconds = median(turn[name] for turn in turns)
        cells = [name, f"{seconds:.3f}", f"{regime.num_clients / seconds:.1f}"]
        for other in ("plain", "opacus"):
            ratio = median(turn[name] / turn[other] for turn in turns) if other in names else None
            cells.append("" if ratio is None else f"{ratio:.3f}")
        print(f"| {' | '.join([*cells, f'{peaks[name]:.0f}'])} |")


if __name__ == "__main__":
    main()
