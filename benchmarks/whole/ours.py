"""fedsim's rounds for benchmarks/whole/networks.py: a process, or one of several ranks, that takes turns."""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.lora.any_ours import take_turns
from benchmarks.lora.any_work import Turns
from benchmarks.regimes import LEARNING_RATE, MOMENTUM
from benchmarks.whole.work import CLASSES, WORKS, Work, parse
from fedsim.build import Parts, assemble
from fedsim.comm.group import Group, open_group
from fedsim.config.experiment import Config
from fedsim.data import ClientImages, Dataset
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.memory import keep_freed_memory
from fedsim.models.build import build_models
from fedsim.simulation import Simulation


def simulation(work: Work, precision: str, group: Group) -> Simulation:
    """All clients of a network, which train all of it with SGD."""
    config = Config.model_validate(
        {
            "name": "whole",
            "rounds": 1000,
            # Nobody evaluates here, so what comes with an evaluation is left out, too.
            "evaluate": {"every": 1000},
            "algorithm": {"name": "fedavg"},
            "model": {
                "name": work.name,
                "weights": "random",
                "train": "all",
                "precision": precision,
                "options": work.options,
            },
            "data": {"name": "cells" if work.masks else "digits", "image_size": work.size},
            "clients": {"count": work.clients, "partition": {"name": "iid"}},
            "train": {"lr": LEARNING_RATE, "momentum": MOMENTUM, "batch_size": work.batch, "shuffle": False},
        }
    )
    pixels, answers = map(torch.from_numpy, work.make_data())
    everything, nothing = np.arange(len(pixels)), np.arange(0)
    names = tuple(f"class {number}" for number in range(2 if work.masks else CLASSES))
    masks = answers.to(torch.uint8) if work.masks else None
    labels = torch.zeros(len(pixels), dtype=torch.int64) if work.masks else answers
    dataset = Dataset("noise", pixels, labels, names, everything, nothing, nothing, None, None, (), masks=masks)
    server, client = build_models(config.model, work.size, names, 0, group.device)
    parts = ClientImages.of(np.split(everything, work.clients))
    return assemble(config, group, Parts(dataset, parts, server, client))


def prepare(folder: Path, works: list[str], group: Group) -> None:
    """Write the parameters that everyone starts from, and how images are normalised."""
    for work in works:
        sim = simulation(WORKS[work], "fp32", group)
        folder.joinpath(work).mkdir()
        save_file(sim.initial_state().params, folder / work / "start.safetensors")
        inputs = {"mean": sim.model.encoder.mean, "std": sim.model.encoder.std}
        (folder / work / "inputs.json").write_text(json.dumps(inputs))


def serve(arguments: argparse.Namespace, group: Group) -> None:
    """Take turns with one network after the other."""
    turns = Turns(group.is_server, "wall", lambda: group.gather_to_all(0))
    for work in arguments.works:
        path = arguments.folder / work / f"{arguments.name}.safetensors"
        make = partial(simulation, WORKS[work], arguments.precision, group)
        take_turns(turns, arguments.turns, make, lambda _, params, path=path: save_file(dict(params), path))


if __name__ == "__main__":
    arguments = parse()
    with open_group() as group:
        torch.set_num_threads(arguments.threads)
        set_arithmetic(arguments.precision, True, group.device)
        keep_freed_memory()
        serve(arguments, group)
