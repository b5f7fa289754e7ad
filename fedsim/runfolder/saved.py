"""A run's saved model, opened for measuring, predicting and exporting; only reads, so the run may be at work."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.build import build_simulation
from fedsim.comm.group import Group, open_group
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.machine.files import naming_files
from fedsim.measure.global_model import global_model
from fedsim.runfolder.environment import require_same_network
from fedsim.runfolder.trust import load_recorded
from fedsim.simulation import Simulation
from fedsim.storage.checkpoint import Checkpoints
from fedsim.storage.rows import metric_rows


@dataclass(frozen=True)
class SavedModel:
    """A simulation, the server's ``state`` after a round and the global model ``params`` of it.

    ``row``: the round's in metrics.jsonl.
    """

    sim: Simulation
    state: ServerState
    params: Mapping[str, Tensor]
    row: Mapping[str, Any]


@contextmanager
def open_saved(run_dir: Path, which: str, trust: bool = False) -> Iterator[SavedModel]:
    """Open a run's best or last saved state, in a group of its own; every rank calls this. See ``saved_model``."""
    config = load_recorded(run_dir / "config.yaml", trust=trust)
    with open_group() as group, naming_files(run_dir):
        yield saved_model(run_dir, config, which, group)


def saved_model(run_dir: Path, config: Config, which: str, group: Group) -> SavedModel:
    """Return a run's best or last saved state; every rank calls this.

    ``config``: the recorded one, for which code that it names by its import path has been found. UserError where
    nothing is saved, and where the frozen weights have changed since.
    """
    saved = Checkpoints(run_dir / "checkpoints", config, group).load(which)
    if saved is None:
        raise UserError(str(run_dir / "checkpoints"), "no checkpoint", "a run with at least one finished round")
    sim = build_simulation(config, group)
    group.decide(lambda: require_same_network(run_dir, sim.model.encoder))
    sim.store.adopt(saved.clients)
    state = saved.state.to(group.device)
    rows = {row["round"]: row for row in metric_rows(run_dir)}
    return SavedModel(sim, state, global_model(sim, state).params, rows.get(state.round, {"round": state.round}))
