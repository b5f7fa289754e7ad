"""The runs of a sweep, a row each, trials first: what the tables of the papers' pages were made from.

    python -m benchmarks.claims runs/fedpft_sweep accuracy auroc

Writes benchmarks/results/claims/NAME.csv, NAME being the folder's: learning rate, best round, scores of validation and
test in it, bytes, steps, ``state_sha256`` and commit. Whoever runs the sweep anew can compare the bits.
"""

import argparse
from pathlib import Path

import pandas as pd

from fedsim.results import load
from fedsim.results.sweeps import TRIALS

RESULTS = Path(__file__).parent / "results" / "claims"


def rows(sweep: Path, metrics: list[str]) -> pd.DataFrame:
    """Return a row for each run of a sweep that has ended."""
    trials = sorted(path.parent for path in sweep.glob(f"{TRIALS}/*/results.json"))
    runs = load(*trials, sweep).runs
    scores = [f"{split}.{metric}" for metric in metrics for split in ("val", "test")]
    columns = ["run", "config.train.lr", "best_round", *scores, "bytes_up", "bytes_down", "client_steps"]
    return runs[[*columns, "state_sha256", "commit"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("metrics", nargs="+", help="such as accuracy, or clients.dice")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{arguments.sweep.name}.csv"
    rows(arguments.sweep, arguments.metrics).to_csv(file, index=False, float_format="%.5g")
    print(file)


if __name__ == "__main__":
    main()
