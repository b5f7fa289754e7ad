"""A phase's aggregation, of clients who are there as they came back from training."""

from fedsim.algorithms.base import Aggregate, Algorithm, Update
from fedsim.comm.exact import ExactSum
from fedsim.phase import flattened, regrouped


def aggregate(method: Algorithm, update: Update) -> Aggregate:
    """What the method's own payload adds up to, through the exact sums."""
    payload = method.pre_aggregate(update)
    total = ExactSum(len(update.clients))
    total.add_mean(flattened(payload.mean), update.weights, update.clients)
    total.add_sum(flattened(payload.total), update.clients)
    values = total.read(total.flat)
    return Aggregate(update.clients, *(regrouped(groups, values) for groups in (payload.mean, payload.total)))
