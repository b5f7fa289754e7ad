"""Everything that a run holds beside the server's state, the same on every rank; ``build.py`` makes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedsim.algorithms.base import Algorithm, ServerState
from fedsim.client import BlockTrainer
from fedsim.comm.group import Group
from fedsim.config.experiment import Config
from fedsim.data import ClientImages, Dataset
from fedsim.errors import UserError
from fedsim.inputs.images import ImageSource
from fedsim.inputs.public import PublicInputs
from fedsim.models.stacked import StackedModel
from fedsim.privacy.layer import Layer
from fedsim.schedule.clock import Clock
from fedsim.schedule.pace import Pace
from fedsim.storage.store import ClientStore
from fedsim.tasks.task import Task

if TYPE_CHECKING:
    from fedsim.privacy.ledger import Ledger


@dataclass(frozen=True)
class Simulation:
    """The parts of a run. ``parts``: each client's training images, as indices into the data set.

    ``model`` is the server's, which is measured and exported; clients hold ``held``: a sub-model, which shares all but
    what is cut with ``model``, or ``model`` itself. ``public``: what a sub-model is aligned over, where the method does
    that. ``layers``: what wraps the method, see ``privacy/layer.py``. ``ledger``: what is spent of privacy, if anything
    protects it.
    """

    config: Config
    group: Group
    dataset: Dataset
    parts: ClientImages
    task: Task
    model: StackedModel
    held: StackedModel
    algorithm: Algorithm
    layers: Sequence[Layer]
    ledger: "Ledger | None"
    images: ImageSource
    trainer: BlockTrainer
    store: ClientStore
    pace: Pace
    clock: Clock
    public: PublicInputs | None = None

    @property
    def per_block(self) -> int:
        """Most clients that train as one batch."""
        size = self.config.clients.per_block
        assert size != "auto", "assemble settles it"
        return size

    @property
    def sizes(self) -> Sequence[int]:
        """Number of training images per client."""
        return self.parts.sizes

    @cached_property
    def last_round(self) -> int:
        """The last round of the run: of the config, or that the privacy budget has room for."""
        budget = None if self.config.privacy is None else self.config.privacy.budget
        if budget is None or self.ledger is None:
            return self.config.rounds
        if (last := self.ledger.last_round(budget)) == 0:
            expected = f"at least {self.ledger.epsilon(1):.3g}, what the first round spends"
            raise UserError("privacy.budget", f"{budget:g}", expected)
        return last

    def evaluates(self, round: int) -> bool:
        """Whether models are measured after a round (counted from 1)."""
        return round == self.last_round or self.config.evaluates(round)

    def initial_state(self) -> ServerState:
        """Return the server's state before the first round."""
        params = self.held.initial(self.config.seed)
        layers = {name: value for layer in self.layers for name, value in layer.init_server().items()}
        return ServerState(0, params, dict(self.algorithm.init_server(params)), layers)
