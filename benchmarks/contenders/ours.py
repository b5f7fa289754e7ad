"""fedsim itself: its own round over images in memory, one client or a block of clients at a time."""

import os
import time
from typing import Any

import numpy as np
import timm
import torch

from benchmarks import regimes
from benchmarks.contenders.common import (
    Outcome,
    RoundClock,
    Settings,
    parse_settings,
    peak_rss_of_tree,
    write_report,
)
from fedsim.algorithms.base import ServerState
from fedsim.build import Parts, assemble
from fedsim.comm.group import Group, open_group
from fedsim.config.experiment import Config
from fedsim.config.words import ModelConfig
from fedsim.data import ClientImages, Dataset
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.loading import loading
from fedsim.machine.memory import keep_freed_memory, own_pages
from fedsim.models.build import stack
from fedsim.models.encoders import Encoder
from fedsim.models.stacked import StackedModel
from fedsim.models.timm_vit import TimmTower
from fedsim.runfolder.records import RoundRecord
from fedsim.server import run_round
from fedsim.simulation import Simulation


class Silent:
    """Stands where a run's log would be."""

    def progress(self, text: str) -> None:
        """Show nothing."""


def make_config(settings: Settings) -> Config:
    regime = settings.regime
    per_block = os.environ.get("FEDSIM_BENCH_PER_BLOCK", "auto")
    config = Config.model_validate(
        {
            "name": regime.name,
            "rounds": settings.rounds + 1,
            # Nobody evaluates here, so what comes with an evaluation is left out, too.
            "evaluate": {"every": settings.rounds + 1},
            "model": {
                "name": "timm:vit_tiny_patch16_224",
                "precision": settings.precision,
                "lora": {"r": regimes.LORA_RANK, "lora_alpha": regimes.LORA_ALPHA},
            },
            "data": {"name": "digits", "image_size": regime.image_size},
            "clients": {
                "count": regime.num_clients,
                "partition": {"name": "iid"},
                "per_block": per_block if per_block == "auto" else int(per_block),
            },
            "train": {
                "lr": regimes.LEARNING_RATE,
                "momentum": regimes.MOMENTUM,
                "weight_decay": regimes.WEIGHT_DECAY,
                "batch_size": regimes.BATCH_SIZE,
                "shuffle": False,
            },
        }
    )
    # A text classifier comes with open_clip models only; here its features are the regime's own.
    return config.model_copy(update={"model": config.model.model_copy(update={"classifier": "text"})})


@own_pages()
def make_model(regime: regimes.Regime, config: ModelConfig, device: torch.device) -> StackedModel:
    vit = timm.create_model(
        config.name.removeprefix("timm:"),
        num_classes=0,
        img_size=regime.image_size,
        patch_size=regime.patch_size,
        embed_dim=regime.width,
        depth=regime.depth,
        num_heads=regime.num_heads,
    )
    vit.load_state_dict({name: torch.from_numpy(value) for name, value in regimes.model_arrays(regime).items()})
    encoder = Encoder(
        TimmTower(vit.eval()),
        regime.width,
        (regimes.IMAGE_MEAN,) * 3,
        (regimes.IMAGE_STD,) * 3,
        regime.image_size,
        torch.from_numpy(regimes.text_features(regime)),
        regimes.LOGIT_SCALE,
        0,
    )
    return stack(config, encoder, regimes.NUM_CLASSES, device)


def make_simulation(settings: Settings, group: Group, **sections: Any) -> Simulation:
    """The regime's simulation, with these sections of its config replaced."""
    regime, config = settings.regime, make_config(settings).model_copy(update=sections)
    clients = [regimes.client_data(regime, client) for client in range(regime.num_clients)]
    images, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*clients, strict=True))
    everything, nothing = np.arange(len(images)), np.arange(0)
    names = tuple(map(str, range(regimes.NUM_CLASSES)))
    dataset = Dataset(regime.name, images, labels, names, everything, nothing, nothing, None, None, ())
    parts = np.split(everything, np.cumsum([len(labels) for _, labels in clients])[:-1])
    model = make_model(regime, config.model, group.device)
    return assemble(config, group, Parts(dataset, ClientImages.of(parts), model, model))


def run(settings: Settings, group: Group) -> Outcome:
    torch.set_num_threads(settings.threads)
    set_arithmetic(settings.precision, True, group.device)
    keep_freed_memory()
    with loading():  # as for every run
        sim = make_simulation(settings, group)
    params = {
        name: torch.from_numpy(value).to(group.device) for name, value in regimes.lora_arrays(settings.regime).items()
    }
    state, clock, after_first = ServerState(0, params), RoundClock(), {}
    first_step_at = time.time()
    for index in range(settings.rounds + 1):
        clock.start()
        state = run_round(sim, state, RoundRecord(sim, index + 1), Silent())
        if group.device.type == "cuda":
            torch.cuda.synchronize()
        clock.stop()
        if index == 0:
            after_first = {name: value.cpu().numpy() for name, value in state.params.items()}
    peaks = group.gather_to_all(peak_rss_of_tree())
    return Outcome(clock.seconds, first_step_at, sum(peaks), after_first)


if __name__ == "__main__":
    settings = parse_settings(__doc__ or "")
    with open_group() as group:
        outcome = run(settings, group)
        if group.is_server:
            write_report("fedsim", settings, outcome)
