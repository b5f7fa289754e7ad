"""The known methods, and how a config's name becomes one."""

import importlib
from typing import TYPE_CHECKING

from fedsim.errors import UserError

MOVED = ("algorithms", "comm")
if (
    __name__ in MOVED
):  # found by its folder's name too, where the program's root is on the path: all would be there twice
    raise ImportError("algorithms is fedsim.algorithms now", name=__name__)

if TYPE_CHECKING:
    from fedsim.algorithms.base import Algorithm

#: Every known method as "module:Class", so that a table of names loads none of them.
METHODS = {
    "fedavg": "fedsim.algorithms.fedavg:FedAvg",
    "fedprox": "fedsim.algorithms.fedprox:FedProx",
    "scaffold": "fedsim.algorithms.scaffold:Scaffold",
    "feddyn": "fedsim.algorithms.feddyn:FedDyn",
    "ffa_lora": "fedsim.algorithms.ffa_lora:FFALoRA",
    "deer": "fedsim.algorithms.deer:DEeR",
    "local": "fedsim.algorithms.local:Local",
    "fedbn": "fedsim.algorithms.fedbn:FedBN",
    "fedrep": "fedsim.algorithms.fedrep:FedRep",
    "ditto": "fedsim.algorithms.ditto:Ditto",
    "prrfl": "fedsim.algorithms.prrfl:PRRFL",
    "harmofl": "fedsim.algorithms.harmofl:HarmoFL",
    "fedsam": "fedsim.algorithms.fedsam:FedSAM",
    "fednova": "fedsim.algorithms.fednova:FedNova",
    "fedadam": "fedsim.algorithms.fedadam:FedAdam",
    "fedyogi": "fedsim.algorithms.fedyogi:FedYogi",
    "moon": "fedsim.algorithms.moon:MOON",
    "fedpft": "fedsim.algorithms.fedpft:FedPFT",
}


def resolve(name: str) -> "type[Algorithm]":
    """Return the method of a known name, or the class at a dotted import path (package.module.Class).

    UserError for a path that leads nowhere or to no method, and for a module that ends the program. Whatever else a
    module raises while it is imported is raised here: it is its author's to read.
    """
    from fedsim.algorithms.base import (
        Algorithm,  # late: it brings torch, for which a mistake in a config should not wait
    )

    if name in METHODS:
        module_name, class_name = METHODS[name].split(":")
        known_method: type[Algorithm] = getattr(importlib.import_module(module_name), class_name)
        return known_method
    *package, class_name = name.split(".")
    known = f"one of {', '.join(METHODS)}, or the import path of a class"
    if not package or not all(part and part.isprintable() for part in (*package, class_name)):
        raise UserError("algorithm.name", repr(name), known)
    module_name = ".".join(package)
    try:
        module = importlib.import_module(module_name)
    except SystemExit as error:
        ends = f"{name!r}, whose module ends the program (code {error.code})"
        raise UserError("algorithm.name", ends, "a module that only defines a method") from error
    except ImportError as error:
        if error.name in MOVED:
            old = f"{name!r}, which imports {error.name}"
            raise UserError("algorithm.name", old, f"fedsim.{error.name} in its place") from error
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        raise UserError("algorithm.name", f"{name!r} ({error})", known) from error
    if not hasattr(module, class_name):
        raise UserError("algorithm.name", f"{name!r} (no {class_name} in {module_name})", known)
    found = getattr(module, class_name)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(
            "algorithm.name", f"{name!r}, which is no method", "a subclass of fedsim.algorithms.base.Algorithm"
        )
    return found


__all__ = ["METHODS", "resolve"]
