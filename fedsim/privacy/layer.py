"""What a layer is: it changes what the clients of every method let out, and what the server makes of it.

Layers stand in order: on the client's side the first is the method's neighbour, on the server's side the last is the
first to see the aggregate. Shapes: K clients in a block.
"""

import numpy as np

from fedsim.algorithms.base import Aggregate, Facts, Payload, Phase, ServerState, Tensors, Update
from fedsim.seeding import numpy_stream


class Layer:
    """Lets everything pass. ``facts``: as methods have them; ``seed``: of the run, for streams of the layer's own.

    The group PARAMS of a payload's means holds changes of parameters; ``Update.weights`` are the clients' weights in
    those means. Draws come from ``stream``, so that they do not depend on ranks.
    """

    def __init__(self, facts: Facts, seed: int) -> None:
        self.facts = facts
        self._seed = seed

    def stream(self, round: int, phase: str, client: int = 0) -> np.random.Generator:
        """Return the layer's own random stream for a round, a phase and perhaps a client."""
        return numpy_stream(self._seed, f"layer/{type(self).__name__}/{phase}", round=round, client=client)

    def init_server(self) -> Tensors:
        """Return the layer's own tensors before the first round, see ``ServerState.layers``."""
        return {}

    def pre_aggregate(self, state: ServerState, update: Update, payload: Payload) -> Payload:
        """Return what clients let out in place of ``payload``; also called for zero clients."""
        return payload

    def post_aggregate(self, state: ServerState, phase: Phase, aggregate: Aggregate) -> tuple[ServerState, Aggregate]:
        """Return what the server goes on with; the same on every rank. Of the state a layer changes ``layers`` alone.

        ``state``: the server's before the phase, its ``round`` that before the round.
        """
        return state, aggregate
