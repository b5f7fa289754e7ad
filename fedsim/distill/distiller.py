"""Distillation of a sub-model on all ranks: chosen elements of its tensors, trained to give the whole model's states.

A step's batch is cut into micro-batches that follow from the config alone; the ranks share them out, and their
gradients are added up exactly, so no bit depends on the number of ranks.

Shapes: P chosen elements of all tensors together.
Source: Peng et al., FedPFT, IJCAI 2024 (arXiv 2404.11536), layer-level and neuron-level distillation.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.comm.exact import ExactSum
from fedsim.comm.group import Group
from fedsim.config.distill import DistillSettings
from fedsim.config.train import TrainConfig
from fedsim.data.dataset import Indices
from fedsim.inputs.images import ImageSource
from fedsim.models.specs import PROXIES
from fedsim.models.submodel.feed_forward import FeedForward, find_feed_forward, product_error, state_error
from fedsim.models.submodel.model import HeldModel
from fedsim.models.tuned_tower import TunedTower
from fedsim.seeding import numpy_stream
from fedsim.training.optim import StackedOptimizer

# Two numbers that are summed beside the gradient; no tensor has such a name.
STATES, PRODUCTS = "/states", "/products"


@dataclass(frozen=True)
class Pair:
    """The whole model, which teaches, and the sub-model, which learns, each with the parameters that it has."""

    full: TunedTower
    held: HeldModel
    full_params: Mapping[str, Tensor]
    held_params: Mapping[str, Tensor]


@dataclass(frozen=True)
class Errors:
    """Means over the cut layers of the relative errors of their outputs, and of the product of their two matrices."""

    states: float
    products: float


@dataclass(frozen=True)
class Step:
    """A step, counted from 1: the errors before it, ``loss`` = states + alpha products, and its learning rate."""

    step: int
    loss: float
    states: float
    products: float
    lr: float


class Distiller:
    """A distillation: its steps one by one, and its state between them.

    ``chosen``: names in ``pair.held_params``, ``submodel.blocks.<layer>.<path>``, each with a bool tensor of its shape;
    where it is true the element trains, all else keeps its bits. ``places``: the inputs' indices in ``source``.
    ``seed``, ``purpose`` and ``round`` name the streams that order them; errors of a step begin with ``purpose``.
    """

    def __init__(
        self,
        pair: Pair,
        chosen: Mapping[str, Tensor],
        source: ImageSource,
        places: Indices,
        settings: DistillSettings,
        group: Group,
        *,
        seed: int,
        purpose: str,
        round: int = 0,
    ) -> None:
        assert len(places) > 0, "load_dataset refuses an empty set"
        self.settings = settings
        self._pair, self._source, self._group = pair, source, group
        self._places, self._seed, self._purpose, self._round = places, seed, purpose, round
        self._order: tuple[int, Indices] = (-1, places)
        cut = {layer.number: pair.full.blocks[layer.number] for layer in pair.held.cut_layers}
        self._cut = {number: find_feed_forward(block, f"layer {number}") for number, block in cut.items()}
        self._whole_products = {number: layer.product().float() for number, layer in self._cut.items()}
        proxies = {name: value.clone() for name, value in pair.held_params.items() if name.startswith(PROXIES)}
        # In the order of the names, as the exact sum has them.
        self._chosen = {
            name: chosen[name].to(value.device) for name, value in sorted(proxies.items()) if name in chosen
        }
        self._proxies = {name: value.requires_grad_(name in chosen) for name, value in proxies.items()}
        self._flat = torch.cat([proxies[name].detach()[mask] for name, mask in self._chosen.items()])[None]
        self._rule = TrainConfig(
            optimizer=settings.optimizer,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
        )
        self._optimizer = StackedOptimizer(self._rule, self._flat, [{}])
        # Every rank computes all prefixes in the same groups: whose micro-batch an input is in must not matter.
        source.fill([places])

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self._places) / self.settings.batch_size)

    @property
    def num_steps(self) -> int:
        """Steps of the whole distillation; a part of an epoch is rounded up to whole steps."""
        # Rounded first: 0.07 times 100 is a little more than 7.
        return math.ceil(round(self.settings.epochs * self._steps_per_epoch, 6))

    @property
    def num_done(self) -> int:
        """Steps taken so far."""
        return int(self._optimizer.num_steps.item())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the sub-model, ``submodel.blocks.<layer>.<path>``, as they are now."""
        return {name: value.detach().clone() for name, value in self._proxies.items()}

    def state(self) -> dict[str, Tensor]:
        """Return all that the steps that are left depend on: the chosen elements (P,) and what the optimiser keeps."""
        return {"chosen": self._flat[0].clone(), **self._optimizer.rows()[0]}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state``."""
        kept = dict(state)
        self._flat = kept.pop("chosen").to(self._flat.device)[None]
        self._optimizer = StackedOptimizer(self._rule, self._flat, [kept])
        self._write_back()

    def steps(self) -> Iterator[Step]:
        """Take the steps that are left, and tell of each.

        UserError naming the step for a gradient that is not finite or too large to be summed.
        """
        while self.num_done < self.num_steps:
            yield self._step(self.num_done + 1)

    def measure(self, places: Indices) -> Errors:
        """Return the errors over other inputs: the mean over their micro-batches, the same on every rank."""
        total = self._empty_sum("micro-batch", [])
        for part in self._own_parts(places):
            with torch.no_grad():
                found = self._errors(part)
            total.add_mean(numbers(*found), share(part, places), [0])
        mean = total.meet(self._group)
        return Errors(mean[STATES].item(), mean[PRODUCTS].item())

    def _step(self, number: int) -> Step:
        """Take one step: the mean gradient of the batch's micro-batches, weighted by their inputs."""
        batch = self._batch(number)
        total = self._empty_sum("step", self._chosen)
        for part in self._own_parts(batch):
            total.add_mean(self._gradient(part), share(part, batch), [number])
        mean = total.meet(self._group)
        gradient = torch.cat([mean[name] for name in self._chosen]).float()
        lr = learning_rate(self.settings, number, self.num_steps)
        self._optimizer.step(self._flat, gradient[None], lr)
        self._write_back()
        states, products = mean[STATES].item(), mean[PRODUCTS].item()
        return Step(number, states + self.settings.alpha * products, states, products, lr)

    def _empty_sum(self, what: str, names: Iterable[str]) -> ExactSum:
        """A sum of no inputs yet, from which a rank without any knows all names and shapes."""
        total = ExactSum(1, f"{self._purpose}, {what}")
        sizes = {name: (0, int(self._chosen[name].sum())) for name in names}
        terms = {name: self._flat.new_zeros(size) for name, size in {**sizes, STATES: (0,), PRODUCTS: (0,)}.items()}
        total.add_mean(terms, torch.zeros(0, dtype=torch.float64), [])
        return total

    def _own_parts(self, places: Indices) -> list[Indices]:
        """This rank's micro-batches of some inputs."""
        size = self.settings.micro_batch
        parts = [places[start : start + size] for start in range(0, len(places), size)]
        return parts[self._group.rank :: self._group.num_ranks]

    def _gradient(self, places: Indices) -> dict[str, Tensor]:
        """Return the chosen elements of a micro-batch's gradient (1, ...) and, beside them, its two errors (1,)."""
        states, products = self._errors(places)
        # The published code computes the products' error outside of the graph (QUIRKS, FedPFT 1).
        held_back = products.detach() if self.settings.form == "released" else products
        wanted = [self._proxies[name] for name in self._chosen]
        grads = torch.autograd.grad(states + self.settings.alpha * held_back, wanted)
        chosen = {name: grad[mask][None] for grad, (name, mask) in zip(grads, self._chosen.items(), strict=True)}
        return {**chosen, **numbers(states.detach(), products.detach())}

    def _errors(self, places: Indices) -> tuple[Tensor, Tensor]:
        """Return a micro-batch's errors of the states and of the products, two scalars."""
        pair = self._pair
        fixed = self._source.evaluation_batch(places)[0]
        with torch.no_grad():
            expected = pair.full.states(pair.full_params, fixed)
        found = pair.held.states({**pair.held_params, **self._proxies}, fixed)
        own = None if self.settings.form == "released" else pair.full.own_tokens(fixed)
        products = {number: self._product(number, layer) for number, layer in self._cut.items()}
        return state_error(self._cut, found, expected, own), product_error(products, self._whole_products)

    def _product(self, number: int, layer: FeedForward) -> Tensor:
        outer, inner = (f"{PROXIES}{number}.{path}.weight" for path in (layer.outer_path, layer.inner_path))
        return self._proxies[outer] @ self._proxies[inner]

    def _write_back(self) -> None:
        """Put the chosen elements where they belong."""
        sizes = [int(mask.sum()) for mask in self._chosen.values()]
        with torch.no_grad():
            for (name, mask), values in zip(self._chosen.items(), self._flat[0].split(sizes), strict=True):
                self._proxies[name][mask] = values

    def _batch(self, number: int) -> Indices:
        """The inputs of a step: every epoch has them all once, in an order of its own."""
        epoch, place = divmod(number - 1, self._steps_per_epoch)
        if self._order[0] != epoch:
            stream = numpy_stream(self._seed, f"{self._purpose}/epoch {epoch}", round=self._round)
            self._order = epoch, stream.permutation(self._places)
        size = self.settings.batch_size
        return self._order[1][place * size : (place + 1) * size]


def learning_rate(settings: DistillSettings, number: int, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 1: up, then down to zero after the last, in straight lines.

    As Hugging Face's Trainer, which FedPFT's code uses, but a step further up: there the first step's rate is zero, so
    that a distillation of one step would do nothing.
    """
    done, rising = number - 1, math.ceil(num_steps * settings.warmup)
    if done < rising:
        return settings.lr * number / (rising + 1)
    return settings.lr * (num_steps - done) / (num_steps - rising)


def numbers(states: Tensor, products: Tensor) -> dict[str, Tensor]:
    """Two errors as terms of a sum."""
    return {STATES: states[None], PRODUCTS: products[None]}


def share(part: Indices, whole: Indices) -> Tensor:
    """A micro-batch's weight among the inputs that it is a part of, float64 (1,)."""
    return torch.tensor([len(part) / len(whole)], dtype=torch.float64)
