"""The settings under which the suite runs every method, and the clients that it runs them on.

A new method adds one line to ``ACTIVE``, and one to ``NEUTRAL`` if it has a setting at which it is FedAvg.
"""

from typing import Any

from fedsim.models.specs import Kind
from tests.helpers import LORA, TINY_VIT
from tests.submodels import tiny_submodel

# Settings at which a method does what is its own.
ACTIVE: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.5},
    "scaffold": {},
    "feddyn": {"alpha": 0.5},
    "ffa_lora": {},
    "deer": {},
    "rolora": {},
    "fedsa_lora": {},
    "fedsvd": {},
    "fedrot_lora": {"strength": 1.0},
    "sfed_lora": {},
    "dp_dylora": {},
    "hetlora": {"gamma": 0.5, "strength": 0.05},
    "raflora": {},
    "local": {},
    "fedbn": {},
    "fedrep": {},
    "ditto": {"strength": 0.5},
    "prrfl": {"decide_on": "train", "low_freq_start": 0.5},
    "harmofl": {"alpha": 0.1},
    "fedsam": {"radius": 0.1},
    "fednova": {},
    "fedadam": {},
    "fedyogi": {},
    "moon": {"mu": 5.0},
    "fed_sb": {},
    "ravan": {"heads": 2},
    "la_lora": {},
    "med_duallora": {"local_rank": 1},
    "feddpa": {"local_rank": 1},
    "pf2lora": {"local_rank": 1},
    # Not AdamW, which makes large what is rounding in a gradient.
    "fedpft": {"distill": {"optimizer": "sgd", "lr": 0.5, "epochs": 2.0, "batch_size": 8, "micro_batch": 3}},
    "flora": {},
    "flexlora": {},
    "fedex_lora": {},
    "lora_fair": {},
    "florist": {},
    "fedmomentum": {},
    "hlora": {},
}
RANKS = {**LORA, "r": 4, "ranks": [4, 2]}
# The model where it is not the tests' own, LoRA on a small transformer.
MODEL: dict[str, dict[str, Any]] = {
    "harmofl": {**TINY_VIT, "lora": LORA, "amplitude_norm": {}},
    "fedpft": {**TINY_VIT, "lora": LORA, "submodel": {"folder": tiny_submodel(48)}},
    "hetlora": {**TINY_VIT, "lora": RANKS},
    "raflora": {**TINY_VIT, "lora": RANKS},
}
# Methods that at no setting of ours do anything on the LoRA model, and a model on which they do.
OWN_MODEL: dict[str, dict[str, Any]] = {"fedbn": {"name": "timm:test_resnet", "weights": "random", "train": "all"}}
# Settings, and the model, with which a method is FedAvg.
NEUTRAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fedprox": ({"mu": 0.0}, {**TINY_VIT, "lora": LORA}),
    "fedrot_lora": ({"strength": 0.0}, {**TINY_VIT, "lora": LORA}),
    # There is but one rank to draw.
    "dp_dylora": ({}, {**TINY_VIT, "lora": {**LORA, "r": 1}}),
    # Everybody has all there is.
    "raflora": ({}, {**TINY_VIT, "lora": {**LORA, "ranks": [2]}}),
    # Without BatchNorm FedBN keeps nothing; Ditto's server never hears of the personal models.
    "fedbn": ({}, {**TINY_VIT, "lora": LORA}),
    "ditto": ({"strength": 0.5}, {**TINY_VIT, "lora": LORA}),
    "harmofl": ({"alpha": 0.0, "share_target": "every"}, MODEL["harmofl"]),
    "fedsam": ({"radius": 0.0}, {**TINY_VIT, "lora": LORA}),
    # Where all take a single step nothing is left to normalise.
    "fednova": ({}, {**TINY_VIT, "lora": LORA}),
    "moon": ({"mu": 0.0}, {**TINY_VIT, "lora": LORA}),
    # Without alignment FedPFT is FedAvg on the sub-model.
    "fedpft": ({"align_interval": None}, MODEL["fedpft"]),
    # A correction that costs so much is none.
    "lora_fair": ({"strength": 1e30}, {**TINY_VIT, "lora": LORA}),
}
# Kinds that a server changes beside those that a phase trains.
SERVER_CHANGES: dict[str, frozenset[Kind]] = {"fedsvd": frozenset({"lora_a"})}
SINGLE_STEP = {"fednova": {"steps": 1, "epochs": None}}

SGD = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "batch_size": 32}
ADAMW = {"optimizer": "adamw", "lr": 1e-3, "momentum": 0.0, "weight_decay": 0.05, "batch_size": 32}
# Ragged clients: many batches, none, one image, less than a batch, a last batch of one.
SIZES = [200, 0, 1, 33, 7]
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"train": SGD},
    "adamw": {"train": ADAMW},
    "clipped": {"train": {**SGD, "clip_norm": 0.05}},
    "several passes": {"train": {**SGD, "epochs": 3}},
    # Several steps also for clients with less than a batch: these see each image several times.
    "augmented": {
        "train": {**SGD, "steps": 3, "epochs": None},
        "data": {"augment": ["flip", "rotate90", "crop", "color"]},
    },
    "kept sgd": {"train": {**SGD, "keep_optimizer": True}, "clients": {"per_round": 3}},
    "kept adamw": {"train": {**ADAMW, "keep_optimizer": True}, "clients": {"per_round": 3, "weighting": "uniform"}},
}
ALL_IN_ONE = len(SIZES)


#: Methods that mechanisms of privacy on whole messages refuse.
TRUE_SUMS = {"fed_sb", "fednova", "fedpft", "harmofl", "hetlora", "prrfl", "raflora"}


def active(method: str) -> dict[str, Any]:
    """The sections of a config in which a method does what is its own."""
    return {"algorithm": {"name": method, **ACTIVE[method]}, "model": MODEL.get(method, {**TINY_VIT, "lora": LORA})}
