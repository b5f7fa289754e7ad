"""Communication between ranks. Only this package imports torch.distributed."""

from comm.exact import ExactSum
from comm.group import Group, open_group
from comm.schedule import assign_blocks

__all__ = ["ExactSum", "Group", "assign_blocks", "open_group"]
