"""``launch.py evaluate``: a run's saved model, measured anew."""

from pathlib import Path

from fedsim.measure.scores import evaluate
from fedsim.runfolder.saved import open_saved


def evaluate_run(run_dir: Path, which: str, trust: bool = False) -> dict[str, dict[str, float]]:
    """Return the metrics of a run's best or last saved state, computed anew; see ``open_saved``."""
    with open_saved(run_dir, which, trust) as saved:
        return evaluate(saved.sim, saved.params)
