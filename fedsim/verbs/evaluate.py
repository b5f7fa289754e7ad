"""``launch.py evaluate``: a run's saved model, measured anew."""

from pathlib import Path

from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.errors import UserError
from fedsim.machine.files import naming_files
from fedsim.measure.global_model import global_model
from fedsim.measure.scores import evaluate
from fedsim.runfolder.trust import load_recorded
from fedsim.storage.checkpoint import Checkpoints


def evaluate_run(run_dir: Path, which: str, trust: bool = False) -> dict[str, dict[str, float]]:
    """Return the metrics of a run's best or last saved state, computed anew; only reads, so the run may be at work.

    ``trust``: whether a method that the folder names by its import path is imported; UserError without.
    """
    config = load_recorded(run_dir / "config.yaml", trust=trust)
    with open_group() as group, naming_files(run_dir):
        saved = Checkpoints(run_dir / "checkpoints", config, group).load(which)
        if saved is None:
            raise UserError(str(run_dir / "checkpoints"), "no checkpoint", "a run with at least one finished round")
        sim = build_simulation(config, group)
        sim.store.adopt(saved.clients)
        return evaluate(sim, global_model(sim, saved.state.to(group.device)).params)
