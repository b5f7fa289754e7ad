"""What few methods can do beside the ten hooks: a method says so by its base class, and the engine asks once.

Shapes: K clients in a block, M models of a client.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedsim.algorithms.base import Aggregate, Algorithm, ServerState, Tensors
from fedsim.config.distill import DistillSettings

#: The group of a step's context that holds what ``Assessing.assess`` returned.
ASSESSED = "assessed"


class Assessing(Algorithm):
    """A method that scores each client's models before each of several local passes."""

    @property
    @abstractmethod
    def assess_on(self) -> Literal["train", "val"]:
        """The client's own images that its models are scored on."""

    @abstractmethod
    def assess(self, f1_KM: Tensor, previous: Tensors) -> Tensors:
        """Decide for the coming local pass, from the macro-F1 (0..1) of each client's models on its own images.

        ``previous``: what was returned before the pass before, empty before the first. Hooks find the result, tensors
        (K, ...), in their step's context in the group ``ASSESSED``. Not called in a round of one local pass.
        """


class Choosing(Algorithm):
    """A method with several global models, of which validation chooses one wherever one is measured or exported.

    Clients know nothing of the choice, and no state depends on it.
    """

    #: What is chosen, in the log.
    chosen: ClassVar[str]

    @abstractmethod
    def choices(self, params: Tensors) -> Mapping[int, Tensors]:
        """Return the models to choose from, by their numbers in the log, from the server's ``params``.

        Each has the names and shapes of ``params``. Of equally good ones the first is taken.
        """


@dataclass(frozen=True)
class Alignment:
    """What of the clients' sub-model the server distils anew after a round, towards the full model.

    ``trained``: proxy parameters by name, each with a bool tensor of its shape, true where an element trains; all else
    stays. ``student``: parameters that the sub-model has meanwhile in place of the server's, which the full model has.
    """

    trained: Mapping[str, Tensor]
    student: Mapping[str, Tensor]
    settings: DistillSettings


class Aligning(Algorithm):
    """A method whose server distils the clients' sub-model anew between rounds."""

    @abstractmethod
    def aligns_after(self, round: int) -> bool:
        """Whether it does so after a round (counted from 1)."""

    @abstractmethod
    def align(self, state: ServerState, aggregate: Aggregate, seed: int) -> Alignment:
        """Return what is distilled after a round that ``aligns_after`` names; the same on every rank.

        ``state`` and ``aggregate``: after the round's last phase. ``seed``: the round's own, for what is drawn.
        """
