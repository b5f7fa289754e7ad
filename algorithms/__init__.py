"""The known methods, and how a config's name becomes one."""

import importlib

from algorithms.base import Algorithm
from algorithms.deer import DEeR
from algorithms.ditto import Ditto
from algorithms.fedadam import FedAdam
from algorithms.fedavg import FedAvg
from algorithms.fedbn import FedBN
from algorithms.fednova import FedNova
from algorithms.fedpft import FedPFT
from algorithms.fedprox import FedProx
from algorithms.fedrep import FedRep
from algorithms.fedsam import FedSAM
from algorithms.fedyogi import FedYogi
from algorithms.ffa_lora import FFALoRA
from algorithms.harmofl import HarmoFL
from algorithms.local import Local
from algorithms.moon import MOON
from algorithms.prrfl import PRRFL
from fedsim.errors import UserError

METHODS: dict[str, type[Algorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "ffa_lora": FFALoRA,
    "deer": DEeR,
    "local": Local,
    "fedbn": FedBN,
    "fedrep": FedRep,
    "ditto": Ditto,
    "prrfl": PRRFL,
    "harmofl": HarmoFL,
    "fedsam": FedSAM,
    "fednova": FedNova,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "moon": MOON,
    "fedpft": FedPFT,
}


def resolve(name: str) -> type[Algorithm]:
    """Return the method of a known name, or the class at a dotted import path (package.module.Class).

    UserError for a path that leads nowhere or to no method, and for a module that ends the program. Whatever else a
    module raises while it is imported is raised here: it is its author's to read.
    """
    if name in METHODS:
        return METHODS[name]
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
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        raise UserError("algorithm.name", f"{name!r} ({error})", known) from error
    if not hasattr(module, class_name):
        raise UserError("algorithm.name", f"{name!r} (no {class_name} in {module_name})", known)
    found = getattr(module, class_name)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError("algorithm.name", f"{name!r}, which is no method", "a subclass of algorithms.base.Algorithm")
    return found


__all__ = ["METHODS", "Algorithm", "resolve"]
