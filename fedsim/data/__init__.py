"""Images, their split, and their partition among clients."""

from fedsim.data.client_images import ClientImages
from fedsim.data.dataset import Dataset, Source
from fedsim.data.datasets import load_dataset
from fedsim.data.findings import rarest_findings, target_of, targets_of_columns, targets_of_lists
from fedsim.data.held_out import divide_held_out
from fedsim.data.partition import PartitionRow, partition_clients, partition_table, without_small

__all__ = [
    "ClientImages",
    "Dataset",
    "PartitionRow",
    "Source",
    "divide_held_out",
    "load_dataset",
    "partition_clients",
    "partition_table",
    "rarest_findings",
    "target_of",
    "targets_of_columns",
    "targets_of_lists",
    "without_small",
]
