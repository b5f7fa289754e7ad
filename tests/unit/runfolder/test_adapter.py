"""An exported adapter, loaded by peft as its README says, scores as the run's evaluation did, for every method.

The library's own weights come from the config alone; all else is read from the adapter's folder.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms import METHODS, resolve
from fedsim.errors import UserError
from fedsim.measure.global_model import global_model
from fedsim.measure.scores import evaluate
from fedsim.models.encoders import library_model
from fedsim.runfolder.adapter import MEAN_OF_CLIENTS, THE_SERVERS, export_adapter
from fedsim.simulation import Simulation
from tests.conformance.settings import ACTIVE, MODEL, OWN_MODEL, RANKS
from tests.helpers import IMAGE_SIZE, LORA, TINY_VIT, play, simulate

#: All methods that can train LoRA, and those that are about it. A new one is covered by being in the catalogue.
ANY = sorted(METHODS.keys() - OWN_MODEL.keys())
ABOUT_LORA = sorted(name for name, path in METHODS.items() if path.startswith("fedsim.algorithms.lora."))
SHIFTING = {name for name in METHODS if resolve(name).shifts_base}
REMAKING = {name for name in METHODS if resolve(name).remakes_factors}
OWN_SCALE = {name for name in METHODS if resolve(name).has_own_scale}
VARIANTS: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa", "use_rslora": True},
    "olora": {"init_lora_weights": "olora", "use_dora": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora": {"use_dora": True, "use_rslora": True},
    "ranks": {"ranks": RANKS["ranks"], "r": RANKS["r"], "use_rslora": True},
}
#: Which variants nobody can have, or some methods cannot, and the key that the refusal names.
NEED_RANKS = {"hetlora", "raflora"}
NO_RANKS = {"dp_dylora", "fed_sb", "feddpa", "fedrot_lora", "med_duallora", "pf2lora", "ravan", "sfed_lora"}

METRICS = ("loss", "accuracy", "balanced_accuracy", "auroc")
pytestmark = pytest.mark.filterwarnings("error::UserWarning:peft")  # it warns of missing or unknown factors


def refused_key(method: str, variant: str) -> str | None:
    words = VARIANTS[variant]
    if words.get("use_dora") and method in SHIFTING:
        return "use_dora"
    if method in NEED_RANKS | REMAKING and "init_lora_weights" in words:
        return "init_lora_weights"
    if words.get("use_rslora") and method in OWN_SCALE and "ranks" not in words:
        return "use_rslora"
    return "ranks" if "ranks" in words and method in NO_RANKS else None


def trained(method: str, **lora: Any) -> Simulation:
    model = {**TINY_VIT, **MODEL.get(method, {})}
    model["lora"] = {**LORA, **MODEL.get(method, {}).get("lora", {}), **lora}
    train = {"lr": 0.02, "momentum": 0.0, "batch_size": 8}
    return simulate([20, 12], 2, algorithm={"name": method, **ACTIVE[method]}, model=model, train=train)


def logits(folder: Path, sim: Simulation, pixels: Tensor) -> Tensor:
    """What the README's lines make of images, those about amplitudes first."""
    load, *amplitudes = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (sim.model.encoder.mean, sim.model.encoder.std))
    space: dict[str, Any] = {"FOLDER": str(folder), "images": pixels}
    with torch.no_grad():
        for lines in amplitudes:
            exec(lines, space)
        space["images"] = (space["images"] - mean) / std
        exec(load, space)
    found: Tensor = space["logits"]
    return found


def check(folder: Path, sim: Simulation) -> dict[str, Any]:
    """Train, export and load; return what about.json says."""
    params = global_model(sim, play(sim, 2)[0]).params
    scores = evaluate(sim, params)
    export_adapter(folder, sim, params, {"round": 2, **scores})
    for split in ("val", "test"):
        places = torch.from_numpy(vars(sim.dataset)[split])
        outputs = logits(folder, sim, sim.dataset.images[places].float() / 255)
        labels = sim.dataset.labels[places]
        found = sim.task.measure(sim.task.rows(outputs, labels), labels)
        for metric in METRICS:
            assert found[metric] == pytest.approx(scores[split][metric], abs=1e-4), metric
    base: Any = library_model(sim.config.model, IMAGE_SIZE, sim.model.encoder.seed).eval()
    with torch.no_grad():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (sim.model.encoder.mean, sim.model.encoder.std))
        untouched = base((sim.dataset.images[places].float() / 255 - mean) / std)
        head = {part: params[f"head.{part}"] for part in ("weight", "bias")}
        without = torch.nn.functional.linear(untouched, head["weight"], head["bias"])
    assert (outputs - without).abs().max() > 1e-4, "the adapter does something"
    about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    assert about["test"] == scores["test"]
    return about


@pytest.mark.parametrize("method", ANY)
def test_every_methods_adapter_scores_as_evaluated(method: str, tmp_path: Path) -> None:
    about = check(tmp_path / "adapter", trained(method))
    readme = (tmp_path / "adapter/README.md").read_text()
    assert ("frozen_weights" in about) == (method in SHIFTING)
    assert ("The server has changed the frozen weights" in readme) == (method in SHIFTING)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["fedavg", *ABOUT_LORA])
def test_every_kind_of_adapter_does(method: str, variant: str, tmp_path: Path) -> None:
    if key := refused_key(method, variant):
        with pytest.raises((UserError, ValueError), match=rf"lora\.{key}|{key}: found"):
            trained(method, **VARIANTS[variant])
    else:
        check(tmp_path / "adapter", trained(method, **VARIANTS[variant]))


KEPT = {
    "fedavg": {},
    "flora": {},
    "fed_sb": {},
    "fedsa_lora": {"lora_b": MEAN_OF_CLIENTS},
    "sfed_lora": {"lora_b": MEAN_OF_CLIENTS},
    "fedrep": {"head": MEAN_OF_CLIENTS},
    "local": dict.fromkeys(("lora_a", "lora_b", "head"), MEAN_OF_CLIENTS),
    "med_duallora": dict.fromkeys(("lora_a", "lora_b"), THE_SERVERS),
    "feddpa": dict.fromkeys(("lora_a", "lora_b"), THE_SERVERS),
    "ditto": dict.fromkeys(("lora_a", "lora_b", "head"), THE_SERVERS),
}


@pytest.mark.parametrize("method", sorted(KEPT))
def test_it_says_what_stands_for_what_clients_keep(method: str, tmp_path: Path) -> None:
    sim = trained(method)
    export_adapter(tmp_path, sim, sim.initial_state().params, {"round": 0, "val": {}, "test": {}})
    assert json.loads((tmp_path / "about.json").read_text()).get("kept_by_clients", {}) == KEPT[method]
