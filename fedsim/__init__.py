"""A simulator of federated learning for medical imaging; start reading at ``fedsim.server``.

What ``__all__`` names is for scripts and notebooks (docs/python.md). It is imported when it is used, so that
``import fedsim`` waits for nothing.
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"
__all__ = ["Run", "UserError", "evaluate", "load", "run"]  # see __getattr__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("fedsim.verbs.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
