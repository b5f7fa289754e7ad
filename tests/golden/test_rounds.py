"""Two whole rounds of LoRA, FFA-LoRA and DEeR against the numbers of DEeR's released code (deer_rounds.npz).

Without privacy, and clipped and noisy with the noise that was recorded.

The release's own tolerance is 1e-6 against float64; ten times that for our float32.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import ServerState, Update
from fedsim.config.privacy import NoiseRegulator
from fedsim.data import Dataset
from fedsim.inputs.images import ImageSource
from fedsim.privacy.client_level import Noise
from fedsim.privacy.released_noise import ReleasedNoise
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


def golden_simulation(method: str, per_block: int, num_heads: int, dp: int = 0) -> Simulation:
    args = WORDS[f"{method}_dp{dp}/args"]
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
    layers = [RecordedNoise(sim, method, args)] if dp else []
    return replace(sim, images=sim.trainer.images, layers=layers)


class RecordedNoise(ReleasedNoise):
    """Takes the noise of one phase after the other from the file."""

    def __init__(self, sim: Simulation, method: str, args: dict[str, Any]) -> None:
        regulated = method == "DEeR" and bool(args["module2"])
        mechanism = NoiseRegulator(name="noise_regulator", form="released", bound=args["C"], regulated=regulated)
        weights = torch.full((NUM_CLIENTS,), 1 / NUM_CLIENTS, dtype=torch.float64)
        noise = Noise(args["noise_multiplier"], weights, NUM_CLIENTS, NUM_CLIENTS)
        super().__init__(sim.algorithm.facts, 0, mechanism, noise)
        self._phases = {phase.name: place for place, phase in enumerate(sim.algorithm.phases(1))}
        self._names = [f"{method}_dp1/{name}/" for name in released_phases(method)]

    def draw(self, update: Update, name: str, shape: tuple[int, ...]) -> Tensor:
        start = self._names[(update.round - 1) * len(self._phases) + self._phases[update.phase.name]]
        assert self.deviation == pytest.approx(GOLDEN[f"{start}noise_std"].item(), rel=1e-6)
        found = as_params(below(GOLDEN, f"{start}noise/"))[name][list(update.clients)].double()
        assert found.shape[1:] == shape
        return found


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
@pytest.mark.parametrize("dp", [0, 1], ids=["plain", "private"])
def test_all_rounds(method: str, per_block: int, dp: int) -> None:
    sim = golden_simulation(method, per_block, num_heads(), dp)
    phases = record_phases(sim)
    start = replace(sim.initial_state(), params=as_params(below(GOLDEN, "init/")))
    _, records = play(sim, count_rounds(method), start)

    rows = [row for record in records for row in record.client_rows]
    losses = torch.tensor([row["train_loss"] for row in rows]).view(-1, NUM_CLIENTS)
    names = [f"{method}_dp{dp}/{phase}/" for phase in released_phases(method)]
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
