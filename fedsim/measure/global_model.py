"""The global model that is measured, drawn and exported: made for that and thrown away, so no training sees it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, ServerState, Tensors, add_exact
from fedsim.algorithms.parts.abilities import Choosing
from fedsim.comm.exact import ExactSum
from fedsim.measure.scores import measure_split, worth
from fedsim.schedule.cohort import client_weights
from fedsim.simulation import Simulation
from fedsim.storage.store import ClientStore


@dataclass(frozen=True)
class GlobalModel:
    """All parameters, and what validation chose where the method leaves a choice, by its name in the log."""

    params: Mapping[str, Tensor]
    chosen: Mapping[str, int] = field(default_factory=dict)


def global_model(sim: Simulation, state: ServerState, store: ClientStore | None = None) -> GlobalModel:
    """Return the model that a state stands for; ``store``: see ``all_params``. Every rank calls this."""
    params = all_params(sim, state, store)
    method = sim.algorithm
    if not isinstance(method, Choosing):
        return GlobalModel(params)
    best_by = sim.task.decisive(sim.config.evaluate.best_by)
    models = method.choices(params)
    worths = {number: worth(measure_split(sim, model, "val"), best_by) for number, model in models.items()}
    # What is not a number is never better.
    best = max(worths, key=lambda number: (not math.isnan(worths[number]), worths[number]))
    return GlobalModel(models[best], {method.chosen: best})


def all_params(sim: Simulation, state: ServerState, store: ClientStore | None = None) -> Mapping[str, Tensor]:
    """Return the server's parameters, and for what only clients hold the mean over those that hold a state.

    Of the models that they exchange, or else of those that they use, that is what is never sent; the clients are
    weighted as in a round. ``store``: where the clients' states are, if not in the simulation's own. Every rank calls
    this.
    """
    store = store or sim.store
    clients = sorted(store.holder)
    names = unsent(sim.algorithm, [], state.params)
    if not names or not clients:
        return state.params
    weight = dict(zip(clients, client_weights(sim.config.clients, sim.sizes, clients).tolist(), strict=True))
    total = ExactSum(len(clients))
    here = list(store.sizes())
    for start in [None, *range(0, len(here), sim.per_block)]:
        some = here[start : start + sim.per_block] if start is not None else []
        own = unsent(sim.algorithm, [store.read(client) for client in some], state.params)
        change = {name: value.double() - state.params[name].double() for name, value in own.items()}
        total.add_mean(change, torch.tensor([weight[client] for client in some], dtype=torch.float64), some)
    mean = total.meet(sim.group)
    return state.params | {name: add_exact(state.params[name], mean[name]) for name in names}


def unsent(method: Algorithm, kept: Sequence[Tensors], params: Tensors) -> dict[str, Tensor]:
    """Return what of the global model only clients hold, (K, ...)."""
    models = method.client_params(kept, params)
    sent = method.sent(params)
    own = method.trained(models.get("exchanged", models["own"]))
    return {name: value for name, value in own.items() if name not in sent}
