"""What a run has spent of privacy so far, for its log."""

import math

from fedsim.algorithms.base import ServerState
from fedsim.privacy.released_noise import SPENT
from fedsim.simulation import Simulation


def spending(sim: Simulation, state: ServerState) -> dict[str, float | None]:
    """Return ``epsilon`` after the state's rounds, None where there is no bound; nothing where nothing is protected."""
    ledger = sim.ledger
    if ledger is None:
        return {}
    spent = ledger.epsilon_of(float(state.layers[SPENT])) if ledger.is_measured else ledger.epsilon(state.round)
    return {"epsilon": spent if math.isfinite(spent) else None}
