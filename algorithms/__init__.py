"""The known methods, and how a config's name becomes one."""

from typing import TYPE_CHECKING

from fedsim.catalogue.functions import MOVED, function_of, import_own
from fedsim.errors import UserError

# With the program's root on the path this folder is found by its own name too, and all would be there twice.
if __name__ in MOVED:
    raise ImportError("algorithms is fedsim.algorithms now", name=__name__)

if TYPE_CHECKING:
    from fedsim.algorithms.base import Algorithm

#: Every known method as "module:Class", so that a table of names loads none of them.
METHODS = {
    "fedavg": "fedsim.algorithms.fedavg:FedAvg",
    "fedprox": "fedsim.algorithms.fedprox:FedProx",
    "scaffold": "fedsim.algorithms.scaffold:Scaffold",
    "feddyn": "fedsim.algorithms.feddyn:FedDyn",
    "ffa_lora": "fedsim.algorithms.lora.ffa_lora:FFALoRA",
    "deer": "fedsim.algorithms.lora.deer:DEeR",
    "rolora": "fedsim.algorithms.lora.rolora:RoLoRA",
    "fedsa_lora": "fedsim.algorithms.lora.fedsa_lora:FedSALoRA",
    "fedsvd": "fedsim.algorithms.lora.fedsvd:FedSVD",
    "fedrot_lora": "fedsim.algorithms.lora.fedrot_lora:FedRotLoRA",
    "sfed_lora": "fedsim.algorithms.lora.sfed_lora:SFedLoRA",
    "dp_dylora": "fedsim.algorithms.lora.dp_dylora:DPDyLoRA",
    "hetlora": "fedsim.algorithms.lora.hetlora:HetLoRA",
    "raflora": "fedsim.algorithms.lora.raflora:RaFLoRA",
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
    "fed_sb": "fedsim.algorithms.lora.fed_sb:FedSB",
    "ravan": "fedsim.algorithms.lora.ravan:Ravan",
    "la_lora": "fedsim.algorithms.lora.la_lora:LALoRA",
    "med_duallora": "fedsim.algorithms.lora.med_duallora:MedDualLoRA",
    "feddpa": "fedsim.algorithms.lora.feddpa:FedDPA",
    "pf2lora": "fedsim.algorithms.lora.pf2lora:PF2LoRA",
    "flora": "fedsim.algorithms.lora.flora:FLoRA",
    "flexlora": "fedsim.algorithms.lora.flexlora:FlexLoRA",
    "fedex_lora": "fedsim.algorithms.lora.fedex_lora:FedExLoRA",
    "lora_fair": "fedsim.algorithms.lora.lora_fair:LoRAFAIR",
    "florist": "fedsim.algorithms.lora.florist:FLoRIST",
    "fedmomentum": "fedsim.algorithms.lora.fedmomentum:FedMomentum",
    "hlora": "fedsim.algorithms.lora.hlora:HLoRA",
}


def resolve(name: str) -> "type[Algorithm]":
    """Return the method of a known name, or the class at a dotted import path (package.module.Class).

    UserError for a path that leads nowhere or to no method, and for a module that ends the program. Whatever else a
    module raises while it is imported is raised here: it is its author's to read.
    """
    # Late: it brings torch, for which a mistake in a config should not wait.
    from fedsim.algorithms.base import Algorithm

    if name in METHODS:
        known_method: type[Algorithm] = function_of(METHODS[name])
        return known_method
    known = f"one of {', '.join(METHODS)}, or the import path of a class"
    found = import_own("algorithm.name", name, known, "a method")
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(
            "algorithm.name", f"{name!r}, which is no method", "a subclass of fedsim.algorithms.base.Algorithm"
        )
    return found


__all__ = ["METHODS", "resolve"]
