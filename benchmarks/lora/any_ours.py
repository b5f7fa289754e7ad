"""fedsim's rounds for benchmarks/lora/any_encoder.py: a process, or one of several ranks, that takes turns.

python -m benchmarks.lora.any_ours --folder FOLDER --name NAME --per-block 12 ...
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model
from transformers.utils import logging

from benchmarks.contenders.ours import Silent
from benchmarks.lora.any_work import CLASSES, ENCODERS, SIZE, Turns, make_data, parse
from benchmarks.regimes import LEARNING_RATE
from fedsim.algorithms.base import Tensors
from fedsim.build import Parts, assemble
from fedsim.comm.group import Group, open_group
from fedsim.config.experiment import Config
from fedsim.data import ClientImages, Dataset
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.loading import loading
from fedsim.machine.memory import keep_freed_memory
from fedsim.models.build import build_models
from fedsim.models.encoders import library_model
from fedsim.models.export import export_peft
from fedsim.runfolder.records import RoundRecord
from fedsim.server import run_round
from fedsim.simulation import Simulation


def prepare(folder: Path, num_clients: int, batch: int, group: Group) -> None:
    """Write what the peers start from: each network's first weights, its first factors and classifier, mean and std."""
    logging.disable_progress_bar()
    words = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 8}
    Dinov2Model(Dinov2Config(**words)).save_pretrained(folder / "dinov2")
    means = '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    (folder / "dinov2" / "preprocessor_config.json").write_text(means)
    for encoder in ENCODERS:
        sim = simulation(encoder, folder, num_clients, batch, 1, group)
        net = library_model(sim.config.model, SIZE, sim.model.encoder.seed)
        export_peft(folder / encoder / "start", sim.initial_state().params, sim.model)
        own = {name: value.contiguous().clone() for name, value in net.state_dict().items()}
        save_file(own, folder / encoder / "base.safetensors")
        inputs = {"mean": sim.model.encoder.mean, "std": sim.model.encoder.std}
        (folder / encoder / "inputs.json").write_text(json.dumps(inputs))


def simulation(encoder: str, folder: Path, num_clients: int, batch: int, per_block: int, group: Group) -> Simulation:
    """All clients of an encoder, training linear layers or convolutions with SGD in stored order."""
    words: dict[str, Any] = dict(ENCODERS[encoder])
    lora = {"r": 4, "lora_alpha": 8, "target": words.pop("target")}
    words["name"] = words["name"].format(folder / "dinov2")
    config = Config.model_validate(
        {
            "name": "any",
            "rounds": 1000,
            # Nobody evaluates here, so what comes with an evaluation is left out, too.
            "evaluate": {"every": 1000},
            "algorithm": {"name": "fedavg"},
            "model": {"weights": "random", **words, "lora": lora},
            "data": {"name": "digits", "image_size": SIZE},
            "clients": {"count": num_clients, "partition": {"name": "iid"}, "per_block": per_block},
            "train": {"lr": LEARNING_RATE, "batch_size": batch, "shuffle": False},
        }
    )
    pixels, labels = map(torch.from_numpy, make_data(num_clients, batch))
    everything, nothing = np.arange(len(labels)), np.arange(0)
    names = tuple(f"class {number}" for number in range(CLASSES))
    dataset = Dataset("noise", pixels, labels, names, everything, nothing, nothing, None, None, ())
    server, client = build_models(config.model, SIZE, names, 0, group.device)
    return assemble(config, group, Parts(dataset, ClientImages.of(np.split(everything, num_clients)), server, client))


def take_turns(
    turns: Turns, num_turns: int, make: Callable[[], Simulation], save: Callable[[Simulation, Tensors], None]
) -> None:
    """Set up a simulation in one turn and train rounds in the next ones; parameters after the first are saved."""
    turns.wait()
    with loading():  # as for every run
        sim = make()
    state = sim.initial_state()
    turns.done()
    for turn in range(num_turns + 1):
        turns.wait()
        state = run_round(sim, state, RoundRecord(sim, turn + 1), Silent())
        turns.done()
        if turn == 0 and sim.group.is_server:
            save(sim, state.params)


def serve(arguments: argparse.Namespace, group: Group) -> None:
    """Take turns with one encoder after the other."""
    turns = Turns(group.is_server, arguments.clock, lambda: group.gather_to_all(0))
    sizes = (arguments.clients, arguments.batch, arguments.per_block)
    for encoder in arguments.encoders:
        path = arguments.folder / encoder / arguments.name
        make = partial(simulation, encoder, arguments.folder, *sizes, group)
        take_turns(turns, arguments.turns, make, lambda sim, params, path=path: export_peft(path, params, sim.model))


if __name__ == "__main__":
    arguments = parse()
    with open_group() as group:
        torch.set_num_threads(arguments.threads)
        set_arithmetic("fp32", True, group.device)
        keep_freed_memory()
        serve(arguments, group)
