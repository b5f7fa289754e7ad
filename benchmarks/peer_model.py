"""The regimes' model in PyTorch and timm, as a user of the peers would write it: LoRA beside the fused qkv.

Shape letters: B batch, T tokens, D width, R LoRA rank.
"""

import time
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import regimes
from benchmarks.regimes import Regime


class LoraQkv(nn.Module):
    """A frozen fused qkv plus one pair of factors for each of q, k and v (Hu et al., 2021)."""

    def __init__(self, frozen: nn.Linear, lora_a: np.ndarray, lora_b: np.ndarray) -> None:
        super().__init__()
        self.frozen = frozen
        self.lora_a = nn.Parameter(torch.from_numpy(lora_a.copy()))
        self.lora_b = nn.Parameter(torch.from_numpy(lora_b.copy()))
        self.scale = regimes.LORA_ALPHA / regimes.LORA_RANK

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        lowered = functional.linear(tokens_BTD, self.lora_a.flatten(0, 1)).chunk(3, dim=-1)
        raised = [functional.linear(low, up) for low, up in zip(lowered, self.lora_b, strict=True)]
        return self.frozen(tokens_BTD) + self.scale * torch.cat(raised, dim=-1)


class LinearLoraQkv(nn.Module):
    """The same of linear layers, which opacus knows."""

    def __init__(self, frozen: nn.Linear, lora_a: np.ndarray, lora_b: np.ndarray) -> None:
        super().__init__()
        self.frozen = frozen
        num_slices, rank, width = lora_a.shape
        self.lora_a = nn.Linear(width, num_slices * rank, bias=False)
        self.lora_b = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in lora_b)
        with torch.no_grad():
            self.lora_a.weight.copy_(torch.from_numpy(lora_a).flatten(0, 1))
            for layer, value in zip(self.lora_b, lora_b, strict=True):
                layer.weight.copy_(torch.from_numpy(value))
        self.scale = regimes.LORA_ALPHA / regimes.LORA_RANK

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        lowered = self.lora_a(tokens_BTD).chunk(len(self.lora_b), dim=-1)
        raised = [layer(low) for layer, low in zip(self.lora_b, lowered, strict=True)]
        return self.frozen(tokens_BTD) + self.scale * torch.cat(raised, dim=-1)


class Classifier(nn.Module):
    """Encoder and fixed text-like class features; ``loss`` and ``metrics`` are the names pfl asks for."""

    lora: type[nn.Module] = LoraQkv

    def __init__(self, regime: Regime) -> None:
        super().__init__()
        self.encoder = VisionTransformer(
            img_size=regime.image_size,
            patch_size=regime.patch_size,
            embed_dim=regime.width,
            depth=regime.depth,
            num_heads=regime.num_heads,
            num_classes=0,
            weight_init="skip",
        )
        weights = regimes.model_arrays(regime)
        self.encoder.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        self.requires_grad_(False)
        lora = regimes.lora_arrays(regime)
        for index, block in enumerate(self.encoder.blocks):
            name = f"blocks.{index}.attn.qkv"
            block.attn.qkv = self.lora(block.attn.qkv, lora[f"{name}.lora_a"], lora[f"{name}.lora_b"])
        self.register_buffer("text_features", torch.from_numpy(regimes.text_features(regime)))
        self.logit_scale = float(np.exp(regimes.LOGIT_SCALE))
        self.first_step_at: float | None = None

    def forward(self, images: Tensor) -> Tensor:
        features = functional.normalize(self.encoder(images), dim=-1)
        return self.logit_scale * features @ self.text_features.T

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.first_step_at is None:
            self.first_step_at = time.time()
        return functional.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        return {"loss": float(self.loss(images, labels))}

    def factors(self) -> dict[str, nn.Parameter]:
        """The trainable factors under the names of ``regimes.lora_arrays``."""
        named = self.encoder.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def factor_arrays(self) -> dict[str, np.ndarray]:
        return {name: factor.detach().numpy().copy() for name, factor in self.factors().items()}

    def local_optimizer(self, learning_rate: float = regimes.LEARNING_RATE) -> torch.optim.SGD:
        return torch.optim.SGD(
            self.factors().values(),
            lr=learning_rate,
            momentum=regimes.MOMENTUM,
            weight_decay=regimes.WEIGHT_DECAY,
        )


class LinearClassifier(Classifier):
    """With LoRA made of linear layers."""

    lora = LinearLoraQkv


def normalised(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]."""
    return (images.float() / 255 - regimes.IMAGE_MEAN) / regimes.IMAGE_STD


def client_tensors(regime: Regime, client_id: int) -> tuple[Tensor, Tensor]:
    """A client's normalised images (N, 3, S, S) and labels (N,)."""
    images, labels = regimes.client_data(regime, client_id)
    return normalised(torch.from_numpy(images)), torch.from_numpy(labels)


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def train_epoch(model: Any, images: Tensor, answers: Tensor, batch_size: int, precision: str = "fp32") -> None:
    """Train a client's ``model``, which has ``loss`` and ``local_optimizer``, in stored order."""
    optimizer = model.local_optimizer(regimes.LEARNING_RATE)
    for some, own in zip(images.split(batch_size), answers.split(batch_size), strict=True):
        optimizer.zero_grad()
        with autocast(precision):
            loss = model.loss(some, own)
        loss.backward()
        optimizer.step()
