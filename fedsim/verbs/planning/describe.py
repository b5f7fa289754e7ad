"""``launch.py plan``: what a round takes on other numbers of ranks, and what that was worked out from."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from fedsim.comm.start import run_ranks
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.verbs.api import mistake
from fedsim.verbs.planning.calibration import Calibration
from fedsim.verbs.planning.gpus import GPUS, Gpu
from fedsim.verbs.planning.prediction import Prediction, predict

#: So many ranks measure at most: they train at once, so that it is seen how they slow each other down.
MOST_MEASURED = 4
GIB = 2**30


def describe(
    config: Config, file: Path, overrides: Sequence[str], ranks: int, nodes: int, gpu: str | None
) -> list[tuple[str, str]]:
    """Measure here and return rows of name and text, a row for each number of ranks up to ``ranks``.

    UserError where ``ranks`` do not divide evenly among ``nodes``, and for a GPU that is not known or has not the
    config's precision.
    """
    if ranks % nodes:
        raise UserError("--ranks", f"{ranks} on {nodes} nodes", "a multiple of the nodes")
    card = None if gpu is None else known(gpu, config.model.precision)
    found = calibrate(file, overrides, ranks)
    rows = basis(found, gpu)
    for number in sorted({2**power for power in range(ranks.bit_length())} | {ranks}):
        on = math.ceil(number * nodes / ranks)  # fewer ranks fill fewer nodes
        rows.append(row(forecast(found, config, number, on, card), card))
    return rows


def known(gpu: str, precision: str) -> Gpu:
    """Return a GPU's stated rates."""
    if gpu not in GPUS:
        raise UserError("--gpu", gpu, ", ".join(GPUS))
    if precision not in GPUS[gpu].rates:
        raise UserError("--gpu", f"{gpu} with model.precision: {precision}", "one of " + ", ".join(GPUS[gpu].rates))
    return GPUS[gpu]


def calibrate(file: Path, overrides: Sequence[str], ranks: int) -> Calibration:
    """Let some ranks of this machine measure; UserError for what they refuse."""
    number = min(ranks, MOST_MEASURED, max(2, len(os.sched_getaffinity(0))))
    lines: list[str] = []
    code, errors = run_ranks("fedsim.verbs.planning.measure", [str(file), *overrides], number, lines.append)
    if code == 2:
        raise mistake(errors)
    if code != 0:
        raise RuntimeError(f"a rank has failed\n{errors}")
    return Calibration.read(json.loads(lines[-1]))


def forecast(found: Calibration, config: Config, ranks: int, nodes: int, gpu: Gpu | None) -> Prediction:
    """Return the prediction; on GPUs with the blocks that a run there would cut."""
    if gpu is None:
        return predict(found, ranks, nodes)
    from fedsim.schedule.block_size import gpu_block_size  # late: it knows torch's devices

    per_block = config.clients.per_block
    if per_block == "auto":
        per_block = gpu_block_size(config.clients.num_per_round, found.activation_bytes, gpu.memory, ranks // nodes)
    return predict(found, ranks, nodes, gpu, per_block)


def basis(found: Calibration, gpu: str | None) -> list[tuple[str, str]]:
    """Say what was measured, and what is taken for granted."""
    threads = "a thread" if found.threads == 1 else f"{found.threads} threads"
    rows = [
        ("measured here", f"{found.processes} ranks at once, {threads} each, on {found.processors} processors"),
        ("blocks", f"their steps and images tell the seconds to {found.fit:.0%}"),
        (
            "together",
            f"ranks train {found.slowdown:.2f} times as long as one, and meet in {found.meeting_seconds:.2g} s",
        ),
    ]
    if gpu is not None:
        text = f"{gpu}, by its maker's rates and the share of them that is reached here; not measured"
        rows.append(("assumed", text))
    return rows


def row(found: Prediction, gpu: Gpu | None) -> tuple[str, str]:
    """Say a prediction on one line."""
    ranks = f"{found.ranks} rank{'s' if found.ranks > 1 else ''}"
    where = f"{ranks}, {found.nodes} nodes" if found.nodes > 1 else ranks
    parts = (
        f"training {found.training:.3g} (no plan below {found.bound:.3g})",
        f"every rank by itself {found.serial:.3g}",
        f"meeting {found.meeting:.2g}",
    )
    memory = f"{found.rank_bytes / GIB:.2f} GiB of each rank"
    if gpu is not None:
        memory += f", {found.device_bytes / GIB:.2f} GiB of its GPU"
        if found.device_bytes > gpu.memory:
            memory += ", more than it has"
    return where, (
        f"{found.seconds:.3g} s a round: {', '.join(parts)}; evaluation {found.evaluation:.2g} s; {memory}; "
        f"{found.sent_bytes:,} bytes to the others"
    )
