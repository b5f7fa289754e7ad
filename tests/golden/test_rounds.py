"""Two whole rounds of LoRA, FFA-LoRA and DEeR against the numbers of DEeR's released code (deer_rounds.npz).

The release's own tolerance is 1e-6 against float64; ten times that for our float32.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.data import Dataset
from fedsim.inputs.images import ImageSource
from fedsim.simulation import Simulation
from tests.golden.clip import as_params, below, build, build_tower, find_num_heads, load, load_words, tags
from tests.helpers import make_config, make_simulation, play, record_phases

GOLDEN, WORDS = load("deer_rounds"), load_words("deer_rounds")
NUM_CLIENTS = len(GOLDEN["X"])
TOLERANCE = 1e-5
METHODS = {"LoRA": "fedavg", "FFA-LoRA": "ffa_lora", "DEeR": "deer"}


class FloatImages(ImageSource):
    """The golden images are floats, not pixels of 0 to 255."""

    def _inputs(self, places: Tensor) -> Tensor:
        return self.images[places]


def released_phases(method: str) -> list[str]:
    return tags(GOLDEN, rf"{method}_dp0/(phase\d+_\w+)/")


def count_rounds(method: str) -> int:
    """How many rounds the file holds: a round has one phase for each set of factors that is open in turn."""
    phases = released_phases(method)
    return len(phases) // len({phase.partition("_")[2] for phase in phases})


def golden_simulation(method: str, per_block: int, num_heads: int) -> Simulation:
    args = WORDS[f"{method}_dp0/args"]
    config = make_config(
        rounds=count_rounds(method),
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
    names = tuple(str(label) for label in range(len(GOLDEN["text_features"])))
    dataset = Dataset("golden", GOLDEN["X"].flatten(0, 1), labels, names, places, none, none, None, None, ())
    image_size = GOLDEN["X"].shape[-1]
    tower = build_tower(below(GOLDEN, "base/"), image_size, num_heads)
    r, alpha, scale = (GOLDEN[name].item() for name in ("lora_r", "lora_alpha", "init/logit_scale"))
    model = build(tower, GOLDEN["text_features"], image_size, int(r), alpha, scale)
    sim = make_simulation(config, dataset, np.split(places, NUM_CLIENTS), model)
    sim.trainer.images = FloatImages(dataset, model, ())
    return replace(sim, images=sim.trainer.images)


@cache
def num_heads() -> int:
    def error(number: int) -> float:
        sim = golden_simulation("FFA-LoRA", NUM_CLIENTS, number)
        _, (record,) = play(sim, 1, ServerState(0, as_params(below(GOLDEN, "init/"))))
        losses = [row["train_loss"] for row in record.client_rows]
        return abs(float(np.mean(losses)) - GOLDEN["FFA-LoRA_dp0/phase0_b/train_loss"].item())

    return find_num_heads(GOLDEN["base/trunk.cls_token"].shape[-1], error)


@pytest.mark.parametrize("per_block", [NUM_CLIENTS, 1], ids=["stacked", "sequential"])
@pytest.mark.parametrize("method", METHODS)
def test_all_rounds(method: str, per_block: int) -> None:
    sim = golden_simulation(method, per_block, num_heads())
    phases = record_phases(sim)
    _, records = play(sim, count_rounds(method), ServerState(0, as_params(below(GOLDEN, "init/"))))

    rows = [row for record in records for row in record.client_rows]
    losses = torch.tensor([row["train_loss"] for row in rows]).view(-1, NUM_CLIENTS)
    names = [f"{method}_dp0/{phase}/" for phase in released_phases(method)]
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
