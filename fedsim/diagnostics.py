"""How well a mean of LoRA factors stands for a mean of LoRA updates, and how far the clients drift apart.

Shapes: K clients, G slices of a layer, R rank, D input width, O output width of a slice.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def lora_diagnostics(factors_K: Mapping[str, Tensor], shared: Mapping[str, Tensor], weights: Tensor) -> dict[str, Any]:
    """Return aggregation deviation and effective rank, per layer and in all.

    ``factors_K``: the clients' trained factors (K, G, ...) by name; ``shared``: the server's factors before the
    phase, which stand for those that did not train; ``weights``: float64 (K,).

    Deviation: ||mean(B A) - mean(B) mean(A)|| / ||mean(B A)||, Frobenius norms (DEeR, section III); zero where
    the mean update is zero. Effective rank: exp of the entropy of the normalised singular values of
    mean(B) mean(A) (Roy and Vetterli, 2007), averaged over the slices.
    """
    per_layer: dict[str, float] = {}
    error_squared = norm_squared = 0.0
    ranks = []
    layers = sorted({name.rpartition(".")[0] for name in factors_K if name.endswith((".lora_a", ".lora_b"))})
    for layer in layers:
        a = _factor(factors_K, shared, f"{layer}.lora_a", len(weights))
        b = _factor(factors_K, shared, f"{layer}.lora_b", len(weights))
        mean_a, mean_b = (torch.tensordot(weights, factor.double(), 1) for factor in (a, b))
        # mean(B A) - mean(B) mean(A) is the sum over k of w_k (B_k - mean(B)) (A_k - mean(A)), where nothing cancels
        # any more, so that float32 will do. With the clients side by side along the rank it is one product.
        apart_a, apart_b = a - mean_a.float(), weights.float().view(-1, 1, 1, 1) * (b - mean_b.float())
        difference = apart_b.permute(1, 2, 0, 3).flatten(2) @ apart_a.transpose(0, 1).flatten(1, 2)
        error = difference.double().square().sum().item()
        norm = (mean_b @ mean_a + difference).square().sum().item()
        per_layer[layer] = math.sqrt(error / norm) if norm > 0 else 0.0
        error_squared, norm_squared = error_squared + error, norm_squared + norm
        ranks.append(_effective_rank(mean_a, mean_b))
    total = math.sqrt(error_squared / norm_squared) if norm_squared > 0 else 0.0
    return {
        "aggregation_deviation": total,
        "aggregation_deviation_per_layer": per_layer,
        "effective_rank": sum(ranks) / len(ranks),
    }


def _factor(factors_K: Mapping[str, Tensor], shared: Mapping[str, Tensor], name: str, num_clients: int) -> Tensor:
    if name in factors_K:
        return factors_K[name].float()
    return shared[name].cpu().float().expand(num_clients, *shared[name].shape)


def _effective_rank(a_GRD: Tensor, b_GOR: Tensor) -> float:
    """Mean over the slices; the singular values of B A are those of the R x R product of the QR factors."""
    small = torch.linalg.qr(b_GOR)[1] @ torch.linalg.qr(a_GRD.transpose(1, 2))[1].transpose(1, 2)
    values = torch.linalg.svdvals(small)
    share = values / values.sum(1, keepdim=True).clamp(min=1e-300)
    entropy = -(share * share.clamp(min=1e-300).log()).sum(1)
    return float(torch.where(values.sum(1) > 0, entropy.exp(), 0.0).mean())


def client_drift(mean_squared_norm: float, mean_delta: Mapping[str, Tensor]) -> float:
    """Return the clients' root mean square distance from their mean update, relative to that mean's norm.

    ``mean_squared_norm``: weighted mean of ||delta_k||^2. Zero where the mean update is zero.
    """
    norm = sum(value.square().sum().item() for value in mean_delta.values())
    return math.sqrt(max(0.0, mean_squared_norm - norm) / norm) if norm > 0 else 0.0
