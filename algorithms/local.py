"""Local training without federation: the baseline that says what a client reaches alone."""

from fedsim.algorithms.base import TRAINED_KINDS
from fedsim.algorithms.parts.personal import Personal


class Local(Personal):
    """Every client goes on with its own model; nothing is sent. The server's model is the mean of theirs."""

    summary = "no federation: each client trains alone"
    kept_kinds = TRAINED_KINDS
