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
