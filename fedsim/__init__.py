"""A simulator of federated learning for medical imaging; start reading at ``fedsim.server``."""

__version__ = "0.2.0.dev0"
