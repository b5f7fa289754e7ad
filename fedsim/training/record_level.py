"""DP-SGD inside every client of a block: single images are protected (Abadi et al., CCS 2016, algorithm 1).

A client's step has a Poisson sample of its images (``steps.poisson_batches``). The gradient of each is cut to the norm
C over all that trains, and the client steps with (the sum + z C N(0, I)) / the expected size of the sample. One
backward pass leaves what the gradients are products of (``kernels/examples.py``); norms and the cut sum are made from
that, so that no image's gradient of the whole model is ever there, and K clients stay one batch.

Shapes: K clients in a block, B images per step, P trained parameters of one client, C classes, W feature width.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Batch, Tensors
from fedsim.algorithms.parts.abilities import Assessing
from fedsim.config.experiment import Config
from fedsim.config.privacy import RecordLevel
from fedsim.errors import UserError
from fedsim.kernels.examples import Sizes, Tape
from fedsim.models.stacked import StackedModel
from fedsim.models.tuned_tower import TunedModel
from fedsim.seeding import numpy_stream
from fedsim.training.block import Block
from fedsim.training.steps import expected_batch

WHERE = "privacy.mechanism"
# Norms are computed in float32, products of a few hundred terms: the cut leaves room for their rounding.
ROOM = 2.0**-20


@dataclass(frozen=True)
class RecordNoise:
    """Each client's stream of noise for one phase, and the noise's standard deviation in a gradient, by client."""

    scales: Sequence[float]
    streams: Sequence[np.random.Generator]

    def add_to(self, grad_KP: Tensor) -> Tensor:
        """Add the next step's noise to the gradients of the first clients, in place, and return them."""
        for row, scale, stream in zip(grad_KP, self.scales, self.streams, strict=False):
            noise = torch.from_numpy(stream.standard_normal(row.numel(), dtype=np.float32))
            row.add_(noise.to(row.device), alpha=scale)
        return grad_KP


class PrivateRecords:
    """Gradients in which every image has a bounded share; UserError where images cannot be told apart."""

    def __init__(self, config: Config, model: StackedModel, method: Algorithm, sizes: Sequence[int]) -> None:
        """``sizes``: the number of training images of every client."""
        assert config.privacy is not None, "private_records looks at that"
        mechanism, multiplier = config.privacy.mechanism, config.privacy.noise_multiplier
        assert isinstance(mechanism, RecordLevel), "and at that"
        assert multiplier is not None, "the ledger has solved for it"
        check_model(config, model)
        check_method(config, method)
        self._bound, self._multiplier = mechanism.bound, multiplier
        self._seed = config.seed
        self._method = method
        self._model = model
        self._expected = [expected_batch(config.train, size) for size in sizes]
        layers = model.lora_layers if isinstance(model, TunedModel) else ()
        self._paths = {layer.module: layer.path for layer in layers}

    def noise(self, clients: Sequence[int], round: int, phase: str) -> RecordNoise | None:
        """Return the noise of a phase; None where there is none."""
        if self._multiplier == 0:
            return None
        scales = [self._multiplier * self._bound / self._expected[client] for client in clients]
        return RecordNoise(
            scales, [numpy_stream(self._seed, f"record/{phase}", round=round, client=c) for c in clients]
        )

    def features(
        self, clients: Sequence[int], params: Tensors, fixed: Tensor, counts: Sequence[int]
    ) -> tuple[Tensor, Tape]:
        """Return what the classifier sees, (K, B, W), of prefixes (K, B, ...), and the tape of the way back.

        ``counts`` (K,): how many places each client fills. The others stay out of the network, their features are zero.
        """
        # A network takes an image at least; the place of a client without any counts nothing.
        usual = sum(self._expected[client] for client in clients[: len(counts)])
        sizes = Sizes(counts if any(counts) else [1, *counts[1:]], usual)
        tape = Tape(sizes)
        for layer in self._paths:
            layer.tape = tape
        try:
            (rows,) = self._model.features(params, sizes.gather(fixed)[None], training=False)
        finally:
            for layer in self._paths:
                layer.tape = None
        return sizes.spread(rows), tape

    def gradient(self, block: Block, trained: Tensors, batch: Batch, loss_K: Tensor, tape: Tape) -> Tensor:
        """Return the sums of the images' gradients, each cut to its bound, over the expected batch size, (K, P).

        ``trained``: what the losses were computed from, with the forward pass on ``tape``; the noise is not in it.
        """
        if loss_K is not batch.task_loss:
            found = f"{type(self._method).__name__}.loss with more in it than the task's, with {WHERE}: record"
            raise UserError("algorithm.name", found, "a method that returns batch.task_loss, such as fedavg")
        # The weights are in the losses: all norms here are over the expected batch size.
        into_logits, *_ = torch.autograd.grad(loss_K.sum(), (batch.logits, *trained.values()), allow_unused=True)
        sides = ClassifierSides(batch.features.detach(), batch.logits.detach(), into_logits)
        with torch.no_grad():
            return self._cut(block, block.flat.new_zeros(len(loss_K), block.flat.shape[1]), sides, tape)

    def _cut(self, block: Block, grad_KP: Tensor, sides: "ClassifierSides", tape: Tape) -> Tensor:
        """Fill ``grad_KP``, zeros, with the sums of the images' gradients, each cut to its bound."""
        found = block.layout.unpack(grad_KP)
        squares_KB = sides.squares(found.keys())
        if tape.squares is not None:
            squares_KB += tape.sizes.spread(tape.squares)
        expected = [self._expected[client] for client in block.clients[: len(grad_KP)]]
        bound_K1 = self._bound / squares_KB.new_tensor(expected)[:, None]
        factors_KB = (bound_K1 * (1 - ROOM) / squares_KB.sqrt()).clamp(max=1).float()
        for name, value in sides.sums(found.keys(), factors_KB).items():
            found[name].copy_(value)
        factors_N = tape.sizes.gather(factors_KB)
        seen: set[tuple[str, int]] = set()
        while tape.parts:
            layer, places, products = tape.parts.pop()
            path = self._paths[layer]
            slices = {(path, place) for place in range(len(layer.slices))[places]}
            assert seen.isdisjoint(slices), "an image's gradient would be a sum of two"
            seen |= slices
            for factor, own in zip(("lora_a", "lora_b"), products.sums(factors_N), strict=True):
                if own is not None:
                    found[f"{path}.{factor}"][:, places] = own
        return grad_KP


@dataclass(frozen=True)
class ClassifierSides:
    """What the gradients of ``StackedModel.classify``'s own parameters are products of, image by image.

    ``features`` (K, B, W), ``logits`` (K, B, C) and the loss's gradient with respect to them.
    """

    features: Tensor
    logits: Tensor
    into_logits: Tensor

    def squares(self, names: Collection[str]) -> Tensor:
        """Return each image's squared norm over the classifier's parameters among ``names``, float64 (K, B)."""
        into, found = self.into_logits.double(), self.into_logits.new_zeros(self.into_logits.shape[:2]).double()
        if "head.weight" in names:
            found += into.square().sum(2) * self.features.double().square().sum(2)
        if "head.bias" in names:
            found += into.square().sum(2)
        if "logit_scale" in names:
            found += (into * self.logits).sum(2).square()
        return found

    def sums(self, names: Collection[str], factors_KB: Tensor) -> dict[str, Tensor]:
        """Return the sums of the images' gradients times their factors, by name."""
        into = self.into_logits * factors_KB[..., None]
        found = {}
        if "head.weight" in names:
            found["head.weight"] = torch.bmm(into.mT, self.features)
        if "head.bias" in names:
            found["head.bias"] = into.sum(1)
        if "logit_scale" in names:
            # The logits are exp(scale) times cosines, and so their own slope.
            found["logit_scale"] = (into * self.logits).sum((1, 2))
        return found


def private_records(
    config: Config, model: StackedModel, method: Algorithm, sizes: Sequence[int]
) -> PrivateRecords | None:
    """Return what protects single images, None where nothing does."""
    if config.privacy is None or not isinstance(config.privacy.mechanism, RecordLevel):
        return None
    return PrivateRecords(config, model, method, sizes)


def check_model(config: Config, model: StackedModel) -> None:
    """UserError for a model of which single images' gradients are not known."""
    if model.mixes_images(training=True):
        found = f"record with {config.model.name}, which normalises an image by the others of its batch"
        raise UserError(WHERE, found, "a network without BatchNorm, and model.amplitude_norm: null")
    if config.model.submodel is not None:
        raise UserError(WHERE, "record with model.submodel", "model.submodel: null")
    if config.model.lora is not None and config.model.lora.use_dora:
        raise UserError(WHERE, "record with model.lora.use_dora", "use_dora: false")
    if isinstance(model, TunedModel) and (layer := model.hides_examples()):
        found = f"record with LoRA on {layer}, a convolution or a layer that is passed more than once"
        raise UserError(WHERE, found, "a model.lora.target without it")
    known = ("lora_a", "lora_b", "head", "local", "shift", "rank")
    odd = [name for name, spec in model.specs.items() if spec.kind not in known]
    if odd or model.encoder.scores_pixels:
        found = f"record with {config.model.name} that trains {odd[0] if odd else 'pixels'}"
        raise UserError(WHERE, found, "model.train: lora or head, and images or texts with one answer each")
    if config.model.precision == "tf32":
        raise UserError("model.precision", f"tf32 with {WHERE}: record, whose norms it would round", "fp32 or bf16")


def check_method(config: Config, method: Algorithm) -> None:
    """UserError for a method that sees more of a client's images than the gradients."""
    name = config.algorithm.name
    if isinstance(method, Assessing):
        found = f"{name}, which scores its models on the images, with {WHERE}: record"
        raise UserError("algorithm.name", found, "a method that does not")
    if any(phase.models > 1 for round in range(1, config.rounds + 1) for phase in method.phases(round)):
        raise UserError("algorithm.name", f"{name}, which trains several models, with {WHERE}: record", "one model")
