"""Which rank trains which block: longest first onto the least loaded rank (Graham's LPT rule)."""

from collections.abc import Sequence


def assign_blocks(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Return, per rank, the indices of its blocks, longest first. Costs in any unit; ties go to the lower index.

    The result depends on its arguments alone, so every rank computes the same plan without a message.
    """
    loads = [0.0] * num_ranks
    blocks: list[list[int]] = [[] for _ in range(num_ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        blocks[rank].append(index)
        loads[rank] += costs[index]
    return blocks
