"""The contenders of the benchmark of whole networks, and its table's row."""

from argparse import Namespace
from pathlib import Path

from benchmarks.whole.networks import Contender, row


def test_a_peer_has_its_own_python_and_starts_its_processes_itself() -> None:
    arguments = Namespace(turns=3, peers_python="theirs")
    pool = Contender("blazefl", 1, 2, thread_pool=True).command(["small U-Net"], "bf16", arguments, Path("here"))
    assert pool[:3] == ["theirs", "-m", "benchmarks.whole.blazefl_peer"]
    assert "--thread-pool" in pool
    two = Contender("pfl", 2, 1).command(["small U-Net"], "bf16", arguments, Path("here"))
    assert two[:3] == ["theirs", "-m", "benchmarks.whole.pfl_peer"]
    assert "--thread-pool" not in two


def test_a_row_has_each_contender_in_its_best_setting() -> None:
    seconds = {"fedsim 1x1": [0.4, 0.2], "fedsim 2x1": [0.2, 0.4], "loop 1x1": [0.8, 0.8], "pfl 2x1": [0.6, 0.6]}
    seconds |= {"blazefl 2x1": [0.5, 0.5], Contender("blazefl", 1, 2, thread_pool=True).name: [0.4, 0.4]}
    cells = row("small U-Net", "fp32", seconds, 1e-4).strip("| ").split(" | ")
    assert cells[3:6] == ["10.0 (1x1)", "7.5 (2x1)", "5.0 (1x2-pool)"]
    assert cells[-2:] == ["1.50", "1e-04"]
