"""A phase's aggregation, of clients who are there as they came back from training."""

from algorithms.base import Aggregate, Algorithm, Update
from comm import ExactSum


def aggregate(method: Algorithm, update: Update) -> Aggregate:
    """What the method's own payload adds up to, through the exact sums."""
    payload = method.pre_aggregate(update)
    total = ExactSum(len(update.clients))
    total.add_mean(payload.mean, update.weights, update.clients)
    total.add_sum(payload.total, update.clients)
    values = total.read(total.flat)
    mean, added = ({name: values[name] for name in names} for names in (payload.mean, payload.total))
    return Aggregate(update.clients, mean, added)
