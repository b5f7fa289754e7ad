"""What tests of sweeps share."""

import pytest

from fedsim import server
from fedsim.verbs import sweep as verb
from fedsim.verbs.sweep_plan import Cell


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells run in this process; the names of those that were started."""
    names: list[str] = []

    def run_here(cell: Cell, ranks: verb.Ranks) -> int:
        del ranks
        names.append(cell.name)
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        cell.log.touch()
        server.run(cell.config, cell.folder, resume=True)
        return 0

    monkeypatch.setattr(verb, "run_cell", run_here)
    return names
