"""A trial of every adapted layer: it must be called, and the network's output must depend on each of its factors.

Libraries have layers whose module is never called: attention that multiplies by the weight itself, for the sake of
separate biases, or a fused path that is taken in evaluation alone. LoRA there trains nothing, in peft without a word.
And a network may put something else than images first, or let the images of a batch see each other.

Two clients with an image and random factors of their own go through the network together, in train and in eval mode,
with gradients, and each alone without. In train mode nothing is dropped out here: it would be another network each
time.

Shapes: K clients, here two, with an image each.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.hub import user_errors
from fedsim.models.lora import LoraLayer
from fedsim.models.specs import A, B

CLIENTS = 2
# Relative to the largest value: what rounding leaves, and what is none.
SAME = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}


@dataclass
class Trace:
    """The outputs of the layers that were called, by path and in order."""

    outputs: dict[str, list[Tensor]] = field(default_factory=dict)


def probe(
    net: nn.Module, layers: Sequence[LoraLayer], config: ModelConfig, image_size: int, device: torch.device
) -> str | None:
    """Return the path of a layer that is called more than once in a pass, None where none is.

    UserError, which names the layer, for one that is not called, whose factors have no gradient, or before which the
    images of clients are mixed or out of order.
    """
    trial = Trial(net, layers, config, image_size, device)
    together = trial.run(slice(None), training=False, with_grad=True)
    for layer in layers:
        trial.check_used(layer, together, "in eval mode")
    trial.check_used_in_training()
    alone = [trial.run(slice(client, client + 1), training=False, with_grad=False) for client in range(CLIENTS)]
    for layer in layers:
        for trace in alone:
            if layer.path not in trace.outputs:
                trial.refuse(layer, "which is not called in eval mode without gradients")
    trial.check_apart(together, alone)
    return next((path for path, outputs in together.outputs.items() if len(outputs) > 1), None)


class Trial:
    """A network with random factors in it."""

    def __init__(
        self, net: nn.Module, layers: Sequence[LoraLayer], config: ModelConfig, image_size: int, device: torch.device
    ) -> None:
        self.net, self.layers, self.config, self.device = net, layers, config, device
        stream = torch.Generator().manual_seed(0)
        self.images = torch.randn(CLIENTS, 3, image_size, image_size, generator=stream).to(device)
        self.params = {
            name: _random(name, shape, stream).to(device) for layer in layers for name, shape in layer.shapes.items()
        }

    def run(self, clients: slice, *, training: bool, with_grad: bool) -> Trace:
        """Let some clients' images go through the network with their factors; gradients are in ``params`` then."""
        trace, images = Trace(), self.images[clients]
        params = {name: value[clients].detach().requires_grad_(with_grad) for name, value in self.params.items()}
        for layer in self.layers:
            layer.bind(params)
        kind, where = self.device.type, f"model.name {self.config.name}"
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        with (
            user_errors(where, "a network through which images of several clients go"),
            in_mode(self.net, training=training),
            torch.set_grad_enabled(with_grad),
            self._watched(trace, len(images)),
            torch.autocast(kind, torch.bfloat16, enabled=self.config.precision == "bf16"),
        ):
            out: Tensor = functional_call(self.net, buffers, (images,))
        trace.outputs[""] = [out.detach()]
        if with_grad:
            self._differentiate(out, params)
        return trace

    def _differentiate(self, out: Tensor, params: Mapping[str, Tensor]) -> None:
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
        with torch.enable_grad():
            total = (out.float() * weights).sum()
        grads = torch.autograd.grad(total, list(params.values()), allow_unused=True) if total.requires_grad else ()
        self.grads: dict[str, Tensor | None] = dict.fromkeys(params)
        self.grads.update(zip(params, grads, strict=False))

    @contextmanager
    def _watched(self, trace: Trace, num_images: int) -> Iterator[None]:
        """Let the layers leave their outputs in ``trace``.

        Without hooks: where a module has any, PyTorch leaves its fused path in evaluation.
        """
        for layer in self.layers:
            vars(layer.module)["forward"] = self._watching(layer, trace, num_images)
        try:
            yield
        finally:
            for layer in self.layers:
                del vars(layer.module)["forward"]

    def _watching(self, layer: LoraLayer, trace: Trace, num_images: int) -> Any:
        inner = layer.module.forward

        def forward(x: Tensor) -> Tensor:
            if x.dim() < 2 or len(x) % num_images:
                found = f"whose input of shape {tuple(x.shape)} does not have {num_images} images first"
                self.refuse(layer, found)
            out: Tensor = inner(x)
            trace.outputs.setdefault(layer.path, []).append(out.detach())
            return out

        return forward

    def check_used(self, layer: LoraLayer, trace: Trace, when: str) -> None:
        """UserError unless every client's factors of a layer have a gradient in the last pass."""
        if layer.path not in trace.outputs:
            self.refuse(layer, f"which is not called {when}: its weight is used past it, if at all")
        for name in layer.shapes:
            grad = self.grads[name]
            if grad is None or not grad.flatten(1).abs().amax(1).gt(0).all():
                self.refuse(layer, f"on which the output does not depend {when}")

    def check_used_in_training(self) -> None:
        """The same in train mode, in which a library may go another way."""
        trace = self.run(slice(None), training=True, with_grad=True)
        for layer in self.layers:
            self.check_used(layer, trace, "in train mode")

    def check_apart(self, together: Trace, alone: Sequence[Trace]) -> None:
        """UserError unless clients have together what each has alone, layer by layer."""
        most = SAME[self.config.precision]
        for path, outputs in together.outputs.items():
            for place, output in enumerate(outputs):
                expected = torch.cat([trace.outputs[path][place] for trace in alone])
                same_shape = output.shape == expected.shape
                if not same_shape or (output - expected).abs().max() > most * expected.abs().max():
                    layer = path.removeprefix("net.") or "an output"
                    found = f"{layer}, before which clients' images are mixed"
                    expected_words = "a network that treats each image by itself, all of them in order"
                    raise UserError(f"model.name {self.config.name}", found, expected_words)

    def refuse(self, layer: LoraLayer, why: str) -> None:
        """Raise the UserError about one layer."""
        path = layer.path.removeprefix("net.")
        raise UserError(
            "model.lora.target",
            f"{path} of {self.config.name}, {why}",
            "layers that the network calls, images first; words may be longer: mlp.fc1",
        )


def _random(name: str, shape: Sequence[int], stream: torch.Generator) -> Tensor:
    """Factors of each client's own that change the output by about as much as it is, and magnitudes near one."""
    drawn = torch.randn(CLIENTS, *shape, generator=stream)
    if name.endswith(A):
        return drawn / math.sqrt(shape[-1])
    return drawn * 0.3 if name.endswith(B) else 1 + 0.1 * drawn


@contextmanager
def in_mode(net: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a network into train mode, but for what drops something out, or into eval mode; afterwards it is in eval."""
    net.train(training)
    for part in net.modules():
        if "drop" in type(part).__name__.lower():
            part.eval()
    try:
        yield
    finally:
        net.eval()
