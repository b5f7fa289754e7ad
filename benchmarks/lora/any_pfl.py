"""pfl's rounds for benchmarks/lora/any_encoder.py: LoRA as peft has it, one client after another.

.venv-bench/bin/python -m benchmarks.lora.any_pfl --folder FOLDER --name NAME --processes 2 ...
"""

import json
import os
from pathlib import Path
from typing import Any

import peft
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.contenders.pfl_peer import RANK, federate, start_other_ranks
from benchmarks.lora.any_work import ENCODERS, SIZE, Turns, make_data, parse

PREFIX = "base_model.model."  # of peft's names in a file


class Network(nn.Module):
    """A library's network with peft's layers and a classifier; ``loss`` and ``metrics`` are the names pfl asks for."""

    def __init__(self, encoder: str, folder: Path) -> None:
        super().__init__()
        base = library_network(encoder, folder)
        base.load_state_dict(load_file(folder / encoder / "base.safetensors"))
        start = folder / encoder / "start"
        # The network inside peft's own wrappers, whose forward passes would cost a little.
        self.base = peft.PeftModel.from_pretrained(base, start, is_trainable=True).get_base_model().eval()
        head = load_file(start / "head.safetensors")
        self.head = nn.Linear(*reversed(head["weight"].shape), bias="bias" in head)
        self.head.load_state_dict(head)
        self.reads_states = ENCODERS[encoder]["name"].startswith("hf:")

    def forward(self, images: Tensor) -> Tensor:
        found = self.base(images)
        scores: Tensor = self.head(found.last_hidden_state[:, 0] if self.reads_states else found)
        return scores

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        return {"loss": float(self.loss(images, labels))}

    def factors(self) -> dict[str, nn.Parameter]:
        """What is trained: the factors and the classifier."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def local_optimizer(self, learning_rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(self.factors().values(), lr=learning_rate)

    def save(self, folder: Path) -> None:
        """Write factors and classifier under the names of the files that training began with."""
        named = [(name, value.detach().clone()) for name, value in self.factors().items()]
        lora = {PREFIX + name.removeprefix("base.").replace(".default", ""): v for name, v in named if "lora_" in name}
        folder.mkdir()
        save_file(lora, folder / "adapter_model.safetensors")
        save_file(self.head.state_dict(), folder / "head.safetensors")


def library_network(encoder: str, folder: Path) -> nn.Module:
    """The library's own network, whose weights are yet to be loaded."""
    words = ENCODERS[encoder]
    if words["name"].startswith("hf:"):
        return transformers.Dinov2Model(transformers.AutoConfig.from_pretrained(folder / "dinov2"))
    name = words["name"].removeprefix("timm:")
    sized = {"img_size": SIZE} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    return timm.create_model(name, num_classes=0, **sized, **words["options"])


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    is_first = os.environ.get(RANK, "0") == "0"
    start_other_ranks("benchmarks.lora.any_pfl", arguments.processes)

    def meet() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    turns = Turns(is_first, arguments.clock, meet)
    pixels, labels = map(torch.from_numpy, make_data(arguments.clients, arguments.batch))
    for encoder in arguments.encoders:
        turns.wait()
        folder = arguments.folder / encoder
        model = Network(encoder, arguments.folder)
        inputs = json.loads((folder / "inputs.json").read_text())
        mean, std = (torch.tensor(inputs[word]).view(3, 1, 1) for word in ("mean", "std"))
        images = (pixels.float() / 255 - mean) / std
        clients = zip(images.chunk(arguments.clients), labels.chunk(arguments.clients), strict=True)
        turns.done()

        def end(index: int, model: Network = model, folder: Path = folder) -> None:
            turns.done()
            if index == 0 and is_first:
                model.save(folder / arguments.name)

        federate(model, list(clients), arguments.batch, arguments.turns + 1, turns.wait, end)


if __name__ == "__main__":
    main()
