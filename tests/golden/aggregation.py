"""A phase's aggregation, of clients who are there as they came back from training."""

from collections.abc import Sequence

from fedsim.algorithms.base import Aggregate, Algorithm, ServerState, Update
from fedsim.comm.exact import ExactSum
from fedsim.phase import flattened, regrouped
from fedsim.privacy.layer import Layer


def aggregate(
    method: Algorithm, update: Update, state: ServerState | None = None, layers: Sequence[Layer] = ()
) -> Aggregate:
    """What the method's own payload adds up to, through layers and the exact sums."""
    payload = method.pre_aggregate(update)
    state = state or ServerState(0, {})
    for layer in layers:
        payload = layer.pre_aggregate(state, update, payload)
    total = ExactSum(len(update.clients))
    total.add_mean(flattened(payload.mean), update.weights, update.clients)
    total.add_sum(flattened(payload.total), update.clients)
    values = total.read(total.flat)
    return Aggregate(update.clients, *(regrouped(groups, values) for groups in (payload.mean, payload.total)))
