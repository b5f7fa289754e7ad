"""A vision transformer with a decoder: stacked is sequential, in any cut, for all kinds of methods."""

from typing import Any

import pytest
import torch

from fedsim.measure.scores import evaluate
from fedsim.simulation import Simulation
from tests.conformance.settings import ACTIVE, RANKS
from tests.helpers import LORA, everything, furthest, make_config, make_masked_dataset, make_simulation, play, same_bits

SIDE = 16
DEEP_VIT: dict[str, Any] = {
    "name": "timm:vit_tiny_patch16_224",
    "weights": "random",
    "options": {"patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2},
}
LINEAR, UPERNET = {"name": "linear"}, {"name": "upernet_light", "width": 8}
# All but those that compare class scores, or hold a sub-model, which a decoder is refused with.
METHODS = sorted(ACTIVE.keys() - {"prrfl", "fedpft"})
# Clients of FedDyn and SCAFFOLD keep differences of nearly equal weights, FedMomentum shifts what an SVD leaves over.
LIMITS = {"feddyn": 1e-4, "fedmomentum": 1e-4, "scaffold": 1e-4}
# Several batches, none, one image, a last batch of one.
SIZES = [20, 0, 1, 9]

# vmap has no rule of its own for fused attention on the CPU, where the transformer itself trains.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def masked(method: str, per_block: int, model: dict[str, Any] | None = None, **train: Any) -> Simulation:
    """A few ragged clients with masks."""
    lora = RANKS if method in ("hetlora", "raflora") else LORA
    words = {**DEEP_VIT, "lora": lora, "decoder": UPERNET} if model is None else model
    norm = {"amplitude_norm": {}} if method == "harmofl" else {}
    config = make_config(
        model={**words, **norm},
        algorithm={"name": method, **ACTIVE[method]},
        data={"image_size": SIDE},
        clients={"count": len(SIZES), "per_block": per_block},
        train={"lr": 0.05, "batch_size": 8, **train},
        evaluate={"batch_size": 5},
    )
    return make_simulation(config, *make_masked_dataset(SIZES, SIDE))


@pytest.mark.parametrize("method", METHODS)
def test_stacked_is_sequential(method: str) -> None:
    sims = [masked(method, per_block, clip_norm=1.0) for per_block in (1, len(SIZES))]
    ends = [everything(sim, play(sim, 2)[0]) for sim in sims]
    assert furthest(ends[1], ends[0]) < (LIMITS.get(method, 1e-5), "")
    assert sims[0].store.sizes() or not same_bits(ends[0], sims[0].initial_state().params)


@pytest.mark.parametrize("train", ["all", "head", "lora"])
@pytest.mark.parametrize("decoder", [LINEAR, UPERNET], ids=["linear", "upernet_light"])
def test_any_cut_into_blocks_gives_the_same(decoder: dict[str, Any], train: str) -> None:
    lora = {"lora": LORA} if train == "lora" else {"train": train}
    sims = [masked("fedavg", size, {**DEEP_VIT, **lora, "decoder": decoder}) for size in (1, 2, 4)]
    ends = [everything(sim, play(sim, 1)[0]) for sim in sims]
    for end in ends[1:]:
        assert furthest(end, ends[0]) < (1e-5, "")


def test_bf16_leaves_the_decoder_in_fp32() -> None:
    sim = masked("fedavg", 4, {**DEEP_VIT, "lora": LORA, "decoder": UPERNET, "precision": "bf16"})
    end, _ = play(sim, 1)
    assert {value.dtype for value in end.params.values()} == {torch.float32}


def test_training_finds_the_rectangles() -> None:
    sim = masked("fedavg", 4, optimizer="adamw", momentum=0.0, lr=0.01, epochs=8)
    start = sim.initial_state()
    end, _ = play(sim, 3, start)
    before, after = (evaluate(sim, state.params)["val"]["dice_all"] for state in (start, end))
    assert after > 0.6 > before
