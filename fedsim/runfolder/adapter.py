"""The adapter folders of a run: PEFT's files, and what a program must know beside them in about.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.machine.files import write_json
from fedsim.measure.global_model import unsent
from fedsim.models.export import export_peft
from fedsim.models.specs import SHIFT
from fedsim.runfolder.environment import FROZEN
from fedsim.simulation import Simulation

MEAN_OF_CLIENTS, THE_SERVERS = "the mean of the clients' own", "the server's; clients go on with their own"


def export_adapter(folder: Path, sim: Simulation, params: Mapping[str, Tensor], row: Mapping[str, Any]) -> None:
    """Write the trained factors and classifier, and about.json: of which round they are, and how inputs are prepared.

    ``params``: the global model's. ``row``: its ``round`` and its metrics on ``val`` and ``test``.
    """
    export_peft(folder, params, sim.model, sim.config.data.max_tokens)
    shifts = [value for name, value in params.items() if name.endswith(SHIFT)]
    about: dict[str, Any] = {
        "model": sim.config.model.name,
        "round": row["round"],
        "best_by": sim.task.decisive(sim.config.evaluate.best_by),
        "val": row["val"],
        "test": row["test"],
        "class_names": sim.dataset.class_names,
        "inputs": inputs_of(sim),
        **base_of(sim),
        FROZEN: sim.model.encoder.frozen_sha256,
    }
    if any(bool(shift.any()) for shift in shifts):
        about["frozen_weights"] = "changed by the server; the adapter's factors hold the changes"
    if kept := kept_by_clients(sim.algorithm, params):
        about["kept_by_clients"] = kept
    write_json(folder / "about.json", about)


def inputs_of(sim: Simulation) -> dict[str, Any]:
    """Return how inputs are prepared: images by size, fit, window if any, mean, std, slices; texts by max_tokens."""
    encoder, data = sim.model.encoder, sim.config.data
    if encoder.tokenizer is not None:
        return {"max_tokens": data.max_tokens or encoder.tokenizer.model_max_length}
    return {
        "size": encoder.image_size,
        "fit": data.fit,
        **({} if data.window is None else {"window": data.window}),
        "mean": encoder.mean,
        "std": encoder.std,
        **({} if encoder.slices is None else {"slices": encoder.slices}),
        **({"whole_volumes": True} if encoder.whole_volumes else {}),
    }


def base_of(sim: Simulation) -> dict[str, Any]:
    """Return what names weights that stay frozen where no digest does: model.weights, and the seed of random ones."""
    weights, encoder = sim.config.model.weights, sim.model.encoder
    if encoder.frozen_sha256 is not None:
        return {}
    return {"weights": weights, **({"seed": encoder.seed} if weights == "random" else {})}


def kept_by_clients(method: Algorithm, params: Mapping[str, Tensor]) -> dict[str, str]:
    """Return by kind of parameter what stands in the global model where clients keep their own between rounds."""
    own = method.trained(method.client_params([], params)["own"])
    missing = unsent(method, [], params)
    return {method.specs[name].kind: MEAN_OF_CLIENTS if name in missing else THE_SERVERS for name in sorted(own)}
