"""Each client's own model on the images of every site: who gains from whom, and whose model travels.

Shapes: N images of a set, P places (sites, or clients where a set has none).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.data.dataset import Indices
from fedsim.errors import UserError
from fedsim.measure.bootstrap import measure_groups
from fedsim.measure.report import ImageSet, shows_clients
from fedsim.simulation import Simulation

GLOBAL = "global"


def cross_site(
    sim: Simulation, state: ServerState, params: Mapping[str, Tensor], images: ImageSet
) -> list[dict[str, Any]]:
    """Return a row for each client's model and each place: its metrics there, and whether the client is at home there.

    And the same for the global model, whose parameters are ``params``. Places are the set's sites, or the clients'
    own images, or all of them. Every rank calls this, and has the same rows. UserError where clients hold no model
    that differs from the server's, or where nothing of single clients is shown.
    """
    if not shows_clients(sim):
        raise UserError(
            "--cross-site", "privacy.observe: false, which shows nothing of single clients", "no --cross-site"
        )
    if not sim.algorithm.client_params([], state.params)["own"] or not sim.store.holder:
        found = f"{sim.config.algorithm.name}, whose clients go on with the server's model"
        raise UserError("--cross-site", found, "a method whose clients keep models of their own, such as fedbn")
    kind, places = columns(images)
    rows = [row | {"model": GLOBAL} for row in at_places(sim, images.rows(sim, params), images, places)]
    mine: list[list[Any]] = []
    for client in sim.store.sizes():
        mine.append([client, at_places(sim, rows_of_client(sim, state, client, images), images, places)])
    for client, own in sorted((client, own) for part in sim.group.gather_to_all(mine) for client, own in part):
        home = home_of(sim, client, kind) if images.dataset is sim.dataset else None
        rows += [row | {"model": f"client {client}", "home": row["place"] == home} for row in own]
    return [{"model": row.pop("model"), "kind": kind, **row} for row in rows]


def columns(images: ImageSet) -> tuple[str, Mapping[str, Indices]]:
    """Return what kind of places there are, and which images are at each."""
    for kind in ("site", "client"):
        if places := images.groups.get(kind):
            return kind, places
    return "all", {"all": np.arange(len(images.places))}


def rows_of_client(sim: Simulation, state: ServerState, client: int, images: ImageSet) -> Tensor:
    """Return what a client's own model makes of all images of a set, (N, S); its rank alone can call this."""
    own = sim.algorithm.client_params([sim.store.read(client)], state.params)["own"]
    params = sim.trainer.ranks.given([client], {**state.params, **own})
    size, parts = sim.config.evaluate.batch_size, []
    with torch.no_grad():
        for start in range(0, len(images.places), size):
            batch = images.places[start : start + size]
            outputs = sim.held.forward(params, images.images.evaluation_batch(batch), training=False)
            parts.append(sim.task.rows(outputs[0], images.images.targets[torch.from_numpy(batch)]).cpu())
    return torch.cat(parts)


def at_places(sim: Simulation, rows: Tensor, images: ImageSet, places: Mapping[str, Indices]) -> list[dict[str, Any]]:
    """Return a model's metrics at each place, from its rows (N, S) of all images."""
    values = measure_groups(sim.task, rows, images.labels, list(places.values()))
    return [
        {"place": name, "images": len(members), "metrics": own}
        for (name, members), own in zip(places.items(), values, strict=True)
    ]


def home_of(sim: Simulation, client: int, kind: str) -> str | None:
    """Return the place that a client's training images come from; None where they come from several, or none."""
    if kind == "client":
        return str(client)
    if kind != "site" or sim.dataset.sites is None:
        return None
    sites = np.unique(sim.dataset.sites[sim.parts[client]])
    return sim.dataset.site_names[sites[0]] if len(sites) == 1 else None
