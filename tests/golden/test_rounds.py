"""Two whole rounds of LoRA, FFA-LoRA and DEeR against the numbers of DEeR's released code (deer_rounds.npz).

The release's own tolerance is 1e-6 against float64; ten times that for our float32.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.base import ServerState
from fedsim.data import Dataset
from fedsim.images import ImageSource
from fedsim.simulation import Simulation
from tests.golden.clip import FOLDER, as_params, below, build, load
from tests.helpers import make_config, make_simulation, play, record_phases

GOLDEN = load("deer_rounds")
NUM_CLIENTS = len(GOLDEN["X"])
TOLERANCE = 1e-5
METHODS = {"LoRA": "fedavg", "FFA-LoRA": "ffa_lora", "DEeR": "deer"}


class FloatImages(ImageSource):
    """The golden images are floats, not pixels of 0 to 255."""

    def _inputs(self, places: Tensor) -> Tensor:
        return self.images[places]


def golden_simulation(method: str, per_block: int) -> Simulation:
    with np.load(FOLDER / "deer_rounds.npz") as file:
        args: dict[str, Any] = json.loads(str(file[f"{method}_dp0/args"]))
    config = make_config(
        rounds=2,
        algorithm={"name": METHODS[method]},
        clients={"count": NUM_CLIENTS, "per_block": per_block},
        train={
            "optimizer": args["optimizer"],
            "lr": args["lr"],
            "momentum": args["momentum"],
            "weight_decay": args["local_wd_rate"],
            "epochs": args["E"],
            "batch_size": GOLDEN["batch_size"].item(),
            "shuffle": False,
            "keep_optimizer": method != "DEeR",
        },
    )
    labels = GOLDEN["Y"].flatten()
    places = np.arange(len(labels))
    none = places[:0]
    names = tuple("abc")
    dataset = Dataset("golden", GOLDEN["X"].flatten(0, 1), labels, names, places, none, none, None, None, ())
    model = build(below(GOLDEN, "base/"), GOLDEN["text_features"], GOLDEN["lora_r"].item())
    sim = make_simulation(config, dataset, np.split(places, NUM_CLIENTS), model)
    sim.images = sim.trainer.images = FloatImages(dataset, model, ())
    return sim


@pytest.mark.parametrize("per_block", [NUM_CLIENTS, 1], ids=["stacked", "sequential"])
@pytest.mark.parametrize("method", METHODS)
def test_two_rounds(method: str, per_block: int) -> None:
    sim = golden_simulation(method, per_block)
    phases = record_phases(sim)
    _, records = play(sim, 2, ServerState(0, as_params(below(GOLDEN, "init/"))))

    rows = [row for record in records for row in record.client_rows]
    losses = torch.tensor([row["train_loss"] for row in rows]).view(-1, NUM_CLIENTS)
    names = [f"{method}_dp0/phase{n}_{p['name']}/" for n, p in enumerate(_released_phases(method))]
    assert len(names) == len(phases) - 1 == len(losses)
    for start, phase, loss in zip(names, phases, losses, strict=False):
        torch.testing.assert_close(loss.mean(), GOLDEN[f"{start}train_loss"].float(), rtol=TOLERANCE, atol=TOLERANCE)
        central, clients = (as_params(below(GOLDEN, f"{start}{who}/")) for who in ("central", "clients"))
        assert central.keys() == phase["server"].keys()
        for name, value in central.items():
            torch.testing.assert_close(phase["server"][name], value, rtol=TOLERANCE, atol=TOLERANCE)
        for client in range(NUM_CLIENTS):
            for name, value in clients.items():
                # What a phase does not train a client holds as the server gave it.
                found = phase["after"][client].get(name, phase["server"][name])
                torch.testing.assert_close(found, value[client], rtol=TOLERANCE, atol=TOLERANCE)


def _released_phases(method: str) -> list[dict[str, str]]:
    words = {"LoRA": ["ab"], "FFA-LoRA": ["b"], "DEeR": ["b", "a"]}[method]
    return [{"name": word} for _ in range(2) for word in words]
