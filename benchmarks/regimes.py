"""The regimes of the throughput benchmark, as plain arrays that every contender starts from.

Shape letters: N images of a client, S image side, P patch side, T tokens (patches and the class token),
D width, R LoRA rank, C classes. Only numpy is needed here, so that every contender can read it.
"""

import re
from dataclasses import dataclass, replace
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

LORA_RANK = 8
LORA_ALPHA = 8.0
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
BATCH_SIZE = 10
NUM_CLASSES = 8
LOGIT_SCALE = log(1 / 0.07)
IMAGE_MEAN = 0.5
IMAGE_STD = 0.5
MLP_RATIO = 4
CHANNELS = 3

# One stream per purpose, so that changing one set of arrays leaves the others as they are.
_SEED = 20
_WEIGHTS, _TEXT, _LORA, _TEMPLATES, _CLIENTS, _SIZES = range(6)
# Operations of a generated regime's round, so that each takes seconds.
ROUND_OPERATIONS = 4e11


@dataclass(frozen=True)
class Regime:
    """Sizes of the model and of the clients. Every client trains each round, one epoch in stored order.

    ``ragged``: clients have between a quarter and seven quarters of ``images_per_client``.
    """

    name: str
    num_clients: int
    images_per_client: int
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    ragged: bool = False

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def images_per_round(self) -> int:
        return sum(map(self.images_of, range(self.num_clients)))

    def images_of(self, client_id: int) -> int:
        if not self.ragged:
            return self.images_per_client
        shares = np.random.default_rng([_SEED, _SIZES, client_id])
        return max(1, round(self.images_per_client * shares.uniform(0.25, 1.75)))


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("small", 100, 20, image_size=28, patch_size=7, width=64, depth=4, num_heads=4),
        Regime("medium", 12, 60, image_size=64, patch_size=8, width=192, depth=12, num_heads=3),
        Regime("clip", 12, 10, image_size=224, patch_size=16, width=768, depth=12, num_heads=12),
        Regime("clip120", 120, 10, image_size=224, patch_size=16, width=768, depth=12, num_heads=12),
    )
}


def generated(seed: int, number: int) -> Regime:
    """A regime that nobody tuned for, the same for a seed and a number anywhere; every third one is ragged.

    Widths 64 to 384, heads of 16 to 64, images of 28 to 128 pixels, 3 to 12 patches along a side.
    """
    rng = np.random.default_rng([_SEED, seed, number])
    head = int(rng.choice([16, 24, 32, 48, 64]))
    num_heads = int(rng.integers(-(-64 // head), 384 // head + 1))
    patch = int(rng.choice([4, 7, 8, 14, 16]))
    side = int(rng.integers(max(3, -(-28 // patch)), min(12, 128 // patch) + 1))
    depth, images = int(rng.integers(2, 13)), int(rng.integers(8, 61))
    name, ragged = f"seed{seed}-{number}", number % 3 == 2
    one = Regime(name, 1, images, side * patch, patch, head * num_heads, depth, num_heads)
    clients = round(ROUND_OPERATIONS / (images * operations_per_image(one, minimum=False)))
    return replace(one, num_clients=min(100, max(6, clients)), ragged=ragged)


def find(name: str) -> Regime:
    """The regime of a name: one of ``REGIMES``, or ``seedS-N``, a generated one; ValueError for another."""
    parts = re.fullmatch(r"seed(\d+)-(\d+)", name)
    if parts is None and name not in REGIMES:
        raise ValueError(f"{name}: expected one of {', '.join(REGIMES)}, or seedS-N, such as seed1-0")
    return REGIMES[name] if parts is None else generated(int(parts[1]), int(parts[2]))


def model_arrays(regime: Regime) -> dict[str, Array]:
    """Random weights of a `timm` VisionTransformer (class-token pooling, no head) under timm's names.

    Products keep the scale of their input (standard deviation 1/sqrt(fan-in)), so that every block matters
    to the result and a difference in any of them shows in the agreement check.
    """
    rng = np.random.default_rng([_SEED, _WEIGHTS])
    D = regime.width

    def linear(name: str, fan_in: int, *shape: int) -> dict[str, Array]:
        weight = rng.standard_normal(shape, dtype=np.float32) / np.float32(sqrt(fan_in))
        return {f"{name}.weight": weight, f"{name}.bias": small(shape[0])}

    def norm(name: str) -> dict[str, Array]:
        return {f"{name}.weight": 1 + small(D), f"{name}.bias": small(D)}

    def small(*shape: int) -> Array:
        return np.float32(0.02) * rng.standard_normal(shape, dtype=np.float32)

    patch = regime.patch_size
    arrays = {"cls_token": small(1, 1, D), "pos_embed": small(1, regime.num_patches + 1, D)}
    arrays |= linear("patch_embed.proj", CHANNELS * patch**2, D, CHANNELS, patch, patch)
    for index in range(regime.depth):
        block = f"blocks.{index}"
        arrays |= norm(f"{block}.norm1")
        arrays |= linear(f"{block}.attn.qkv", D, 3 * D, D)
        arrays |= linear(f"{block}.attn.proj", D, D, D)
        arrays |= norm(f"{block}.norm2")
        arrays |= linear(f"{block}.mlp.fc1", D, MLP_RATIO * D, D)
        arrays |= linear(f"{block}.mlp.fc2", MLP_RATIO * D, D, MLP_RATIO * D)
    return arrays | norm("norm")


def text_features(regime: Regime) -> Array:
    """Fixed random unit vectors (C, D), standing in for the class prompts of a text tower."""
    features = np.random.default_rng([_SEED, _TEXT]).standard_normal((NUM_CLASSES, regime.width), dtype=np.float32)
    norms: Array = np.linalg.norm(features, axis=1, keepdims=True)
    return features / norms


def lora_arrays(regime: Regime) -> dict[str, Array]:
    """The factors before round 1: in each block lora_a (3, R, D) in +-1/sqrt(D), lora_b (3, D, R) zero."""
    rng = np.random.default_rng([_SEED, _LORA])
    D, R = regime.width, LORA_RANK
    arrays: dict[str, Array] = {}
    for index in range(regime.depth):
        lora_a = (2 * rng.random((3, R, D), dtype=np.float32) - 1) / np.float32(sqrt(D))
        arrays[f"blocks.{index}.attn.qkv.lora_a"] = lora_a
        arrays[f"blocks.{index}.attn.qkv.lora_b"] = np.zeros((3, D, R), dtype=np.float32)
    return arrays


def client_data(regime: Regime, client_id: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A client's images (N, 3, S, S) and labels (N,): half a picture of the class, half noise."""
    shape = (CHANNELS, regime.image_size, regime.image_size)
    templates_rng = np.random.default_rng([_SEED, _TEMPLATES])
    templates = templates_rng.integers(0, 128, (NUM_CLASSES, *shape), dtype=np.uint8)
    rng = np.random.default_rng([_SEED, _CLIENTS, client_id])
    labels = rng.integers(0, NUM_CLASSES, regime.images_of(client_id))
    noise = rng.integers(0, 128, (len(labels), *shape), dtype=np.uint8)
    return templates[labels] + noise, labels


def operations_per_image(regime: Regime, *, minimum: bool) -> int:
    """Floating-point operations of one training step per image, a multiply and an add counted as two.

    Counted are the products: forward through the frozen net, the gradient with respect to the activations
    back to the first LoRA layer (so none through the stem and the first frozen qkv), and the LoRA factors'
    products and gradients. ``minimum=False`` takes all tokens through every block; ``minimum=True``
    takes only the class token past the last block's keys and values, since the features read no other.
    """
    D, R, T = regime.width, LORA_RANK, regime.num_patches + 1
    total = 2 * regime.num_patches * CHANNELS * regime.patch_size**2 * D
    for index in range(regime.depth):
        queries = 1 if minimum and index == regime.depth - 1 else T
        qkv = 2 * (queries + 2 * T) * D * D
        after_attention = 2 * queries * (1 + 2 * MLP_RATIO) * D * D
        attention_forward = 4 * queries * T * D
        lora_product = 2 * (queries + 2 * T) * D * R
        # Forward down and up; backward: both factors' gradients, the gradient between them, and to the input.
        lora = 6 * lora_product
        to_input = qkv + lora_product if index > 0 else 0
        lora -= lora_product
        total += qkv + after_attention + attention_forward + lora
        total += to_input + after_attention + 2 * attention_forward
    return total
