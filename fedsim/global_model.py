"""The global model that is measured, drawn and exported: made for that and thrown away, so no training sees it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from algorithms.base import ServerState, add_exact
from comm import ExactSum
from fedsim.cohort import client_weights
from fedsim.simulation import Simulation
from fedsim.store import ClientStore


def global_model(sim: Simulation, state: ServerState, store: ClientStore | None = None) -> Mapping[str, Tensor]:
    """Return the server's parameters, and for what only clients hold the mean over those that hold a state.

    That is what ``Algorithm.stand_in`` names; the clients are weighted as in a round. ``store``: where the clients'
    states are, if not in the simulation's own. Every rank calls this.
    """
    store = store or sim.store
    clients = sorted(store.holder)
    names = sim.algorithm.stand_in([], state.params)
    if not names or not clients:
        return state.params
    weight = dict(zip(clients, client_weights(sim.config.clients, sim.sizes, clients).tolist(), strict=True))
    total = ExactSum(len(clients))
    here = list(store.sizes())
    for start in [None, *range(0, len(here), sim.per_block)]:
        some = here[start : start + sim.per_block] if start is not None else []
        own = sim.algorithm.stand_in([store.read(client) for client in some], state.params)
        change = {name: value.double() - state.params[name].double() for name, value in own.items()}
        total.add_mean(change, torch.tensor([weight[client] for client in some], dtype=torch.float64), some)
    mean = total.meet(sim.group)
    return state.params | {name: add_exact(state.params[name], mean[name]) for name in names}
