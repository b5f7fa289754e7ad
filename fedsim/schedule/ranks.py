"""Which rank trains which block: longest first onto the rank that is free first (Graham's LPT rule)."""

from collections.abc import Sequence


def assign_blocks(costs: Sequence[float], busy: Sequence[float]) -> list[list[int]]:
    """Return, per rank, the indices of its blocks, longest first; ties go to the lower index.

    ``busy``: of every rank what it has to do before it trains, in the unit of the costs. The result depends on
    the arguments alone, so every rank computes the same plan without a message.
    """
    loads = list(busy)
    blocks: list[list[int]] = [[] for _ in loads]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        blocks[rank].append(index)
        loads[rank] += costs[index]
    return blocks


def loads(costs: Sequence[float], busy: Sequence[float], shares: Sequence[Sequence[int]]) -> list[float]:
    """Return how long each rank is at work: what it has to do first, and its blocks; the longest is the makespan."""
    return [first + sum(costs[index] for index in own) for first, own in zip(busy, shares, strict=True)]


def lower_bound(costs: Sequence[float], busy: Sequence[float]) -> float:
    """Return a time before which no plan is done, whoever trains what.

    The longest block begins no sooner than the first rank is free. And all blocks, poured over the ranks as if they
    could be cut at will, fill those that are free first up to one level.
    """
    level, work = 0.0, sum(costs)
    for number, first in enumerate(sorted(busy), start=1):
        if number > 1 and level <= first:
            break  # full before this rank is free
        level = (work + sum(sorted(busy)[:number])) / number
    return max([level, *busy, max(costs, default=0.0) + min(busy)])
