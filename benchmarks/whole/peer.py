"""The peers' network for benchmarks/whole/networks.py, and a plain loop over the clients, one after the other."""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.lora.any_work import Turns
from benchmarks.peer_model import train_epoch
from benchmarks.regimes import MOMENTUM
from benchmarks.whole.work import CLASSES, WORKS, Work, parse

SMOOTH = 1e-5


class Network(nn.Module):
    """A library's network with a classifier; ``loss`` and ``metrics`` are the names that pfl asks for."""

    def __init__(self, work: Work, start: Path, precision: str) -> None:
        super().__init__()
        params = load_file(start)
        self.net = library_network(work)
        width = params["head.weight"].shape[1] if "head.weight" in params else 0
        self.head = nn.Linear(width, CLASSES, bias="head.bias" in params) if width else nn.Identity()
        self.load_state_dict(params)
        self.precision = precision

    def loss(self, images: Tensor, answers: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext():
            scores = self.head(self.net(images))
        entropy = functional.cross_entropy(scores.float(), answers)
        return entropy if answers.dim() == 1 else (entropy + dice_loss(scores.float(), answers)) / 2

    @torch.no_grad()
    def metrics(self, images: Tensor, answers: Tensor) -> dict[str, Any]:
        return {"loss": float(self.loss(images, answers))}

    def factors(self) -> dict[str, nn.Parameter]:
        """What is trained: everything."""
        return dict(self.named_parameters())

    def local_optimizer(self, learning_rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(self.parameters(), lr=learning_rate, momentum=MOMENTUM)


def dice_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """The mean over the classes of a batch's Dice loss, as fedsim's task has it."""
    shares = scores.softmax(1)
    true = functional.one_hot(masks, scores.shape[1]).movedim(-1, 1)
    shared, sizes = (shares * true).sum((0, 2, 3)), (shares + true).sum((0, 2, 3))
    return (1 - (2 * shared + SMOOTH) / (sizes + SMOOTH)).mean()


def library_network(work: Work) -> nn.Module:
    """The library's own network, whose weights are yet to be loaded."""
    library, _, name = work.name.partition(":")
    if library == "timm":
        import timm

        net: nn.Module = timm.create_model(name, num_classes=0)
    elif library == "monai":
        from monai.networks.nets import UNet

        net = UNet(spatial_dims=2, in_channels=3, out_channels=2, **work.options)
    else:
        from fedsim.models.networks.slim_vgg import SlimVGG16

        net = SlimVGG16()
    return net


def client_tensors(work: Work, folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Each client's images, normalised, and answers."""
    pixels, answers = map(torch.from_numpy, work.make_data())
    inputs = json.loads((folder / "inputs.json").read_text())
    mean, std = (torch.tensor(inputs[word]).view(3, 1, 1) for word in ("mean", "std"))
    images = (pixels.float() / 255 - mean) / std
    return list(zip(images.chunk(work.clients), answers.chunk(work.clients), strict=True))


class Federate(Protocol):
    """Trains ``model`` on all clients for some rounds; ``begin`` and ``end``: around every round."""

    def __call__(
        self,
        model: Network,
        clients: list[tuple[Tensor, Tensor]],
        batch_size: int,
        num_rounds: int,
        begin: Callable[[], object],
        end: Callable[[int], object],
    ) -> object: ...


def serve(arguments: argparse.Namespace, turns: Turns, federate: Federate, saves: bool = True) -> None:
    """Take turns with one network after the other, and save each as it is after its first round."""
    for name in arguments.works:
        turns.wait()
        work, folder = WORKS[name], arguments.folder / name
        model = Network(work, folder / "start.safetensors", arguments.precision).train()
        clients = client_tensors(work, folder)
        turns.done()

        def end(index: int, model: Network = model, path: str = f"{folder}/{arguments.name}.safetensors") -> None:
            turns.done()
            if index == 0 and saves:
                save_file(model.state_dict(), path)

        federate(model, clients, work.batch, arguments.turns + 1, turns.wait, end)


def loop(
    model: Network,
    clients: list[tuple[Tensor, Tensor]],
    batch_size: int,
    num_rounds: int,
    begin: Callable[[], object],
    end: Callable[[int], object],
) -> None:
    """A client after the other, averaged in float64."""
    server = {key: value.clone() for key, value in model.state_dict().items()}
    for index in range(num_rounds):
        begin()
        total = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in server.items()}
        for images, answers in clients:
            model.load_state_dict(server)
            train_epoch(model, images, answers, batch_size)
            for key, value in model.state_dict().items():
                total[key] += value.double() / len(clients)
        server = {key: total[key].to(value.dtype) for key, value in server.items()}
        model.load_state_dict(server)
        end(index)


if __name__ == "__main__":
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    serve(arguments, Turns(True, "wall", lambda: None), loop)
