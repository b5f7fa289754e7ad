"""The adapter folders of a run: PEFT's files, and what a program must know beside them in about.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.machine.files import write_json
from fedsim.models.export import export_peft
from fedsim.models.specs import SHIFT
from fedsim.simulation import Simulation


def export_adapter(folder: Path, sim: Simulation, params: Mapping[str, Tensor], row: Mapping[str, Any]) -> None:
    """Write the trained factors and classifier, and about.json: of which round they are, and how inputs are prepared.

    ``params``: the global model's. ``row``: its ``round`` and its metrics on ``val`` and ``test``.
    """
    export_peft(folder, params, sim.model, sim.config.data.max_tokens)
    encoder = sim.model.encoder
    inputs: dict[str, Any] = {"size": encoder.image_size, "mean": encoder.mean, "std": encoder.std}
    if encoder.slices is not None:
        inputs["slices"] = encoder.slices
    if encoder.tokenizer is not None:
        inputs = {"max_tokens": sim.config.data.max_tokens or encoder.tokenizer.model_max_length}
    shifts = [value for name, value in params.items() if name.endswith(SHIFT)]
    about: dict[str, Any] = {
        "model": sim.config.model.name,
        "round": row["round"],
        "best_by": sim.task.decisive(sim.config.evaluate.best_by),
        "val": row["val"],
        "test": row["test"],
        "class_names": sim.dataset.class_names,
        "inputs": inputs,
    }
    if any(bool(shift.any()) for shift in shifts):
        about["frozen_weights"] = "changed by the server; the adapter's factors hold the changes"
    write_json(folder / "about.json", about)
