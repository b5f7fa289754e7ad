"""DoRA for blocks of clients against the dense formula, one client at a time, and in runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.errors import UserError
from fedsim.kernels import lora as compiled
from fedsim.kernels.frozen import plain
from fedsim.models.lora import LoRALinear
from tests.helpers import LORA, TINY_VIT, everything, furthest, play, simulate

K, N, TOKENS, D, OUT, R = 3, 2, 4, 6, 8, 2
MODEL = {**TINY_VIT, "lora": {**LORA, "use_dora": True}}


def dense(layer: LoRALinear, x: Tensor, a: Tensor, b: Tensor, magnitude: Tensor, scaling: float) -> Tensor:
    """One client: m (W + s B A) / ||W + s B A|| on the targeted slices; the norm has no gradient."""
    parts = list(plain(layer.base.weight).unflatten(0, (layer.num_slices, OUT)))
    for place, index in enumerate(layer.slices):
        whole = parts[index] + scaling * b[place] @ a[place]
        parts[index] = (magnitude[place] / whole.detach().norm(dim=1))[:, None] * whole
    return x @ torch.cat(parts).T + layer.base.bias.detach()


@pytest.mark.parametrize("own_ranks", [False, True])
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize(("num_slices", "slices"), [(3, (0, 1, 2)), (3, (0, 2)), (1, (0,))])
def test_output_and_gradients_against_dense(
    num_slices: int, slices: tuple[int, ...], is_compiled: bool, own_ranks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr(compiled, "available", lambda _: False)
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(D, num_slices * OUT), num_slices, slices, 1.5, use_dora=True)
    shapes = (K, len(slices), R, D), (K, len(slices), OUT, R), (K, len(slices), OUT)
    own = [torch.randn(shape, requires_grad=True) for shape in shapes]
    x = torch.randn(K * N, TOKENS, D, requires_grad=True)
    scalings = [1.5, 3.0, 0.5] if own_ranks else [1.5] * 3
    layer.own_scaling = torch.tensor(scalings) if own_ranks else None
    layer.lora_a, layer.lora_b, layer.magnitude = own
    weights = torch.randn(K * N, TOKENS, num_slices * OUT)
    found = layer(x)
    expected = torch.cat(
        [
            dense(layer, x[client * N : (client + 1) * N], *(part[client] for part in own), scalings[client])
            for client in range(K)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grads, others = (torch.autograd.grad((out * weights).sum(), [x, *own]) for out in (found, expected))
    for grad, other in zip(grads, others, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-4)


def test_what_clients_share_is_theirs() -> None:
    """Shared factors, and magnitudes of their own, as where a phase trains these alone."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(D, OUT), 1, (0,), 1.5, use_dora=True)
    layer.lora_a, layer.lora_b = torch.randn(1, R, D), torch.randn(1, OUT, R)
    layer.magnitude = torch.randn(K, 1, OUT)
    x = torch.randn(K * N, TOKENS, D)
    with torch.no_grad():
        found = layer(x)
        for client in range(K):
            own = slice(client * N, (client + 1) * N)
            expected = dense(layer, x[own], layer.lora_a, layer.lora_b, layer.magnitude[client], 1.5)
            torch.testing.assert_close(found[own], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["fedavg", "deer", "ffa_lora", "scaffold"])
def test_stacked_is_sequential(method: str) -> None:
    sections: dict[str, Any] = {"model": MODEL, "algorithm": {"name": method}, "train": {"momentum": 0.0}}
    sims = [simulate([40, 0, 1, 7], size, **sections) for size in (1, 4)]
    ends = [everything(sim, play(sim, 2)[0]) for sim in sims]
    assert furthest(ends[1], ends[0]) < (1e-5, "")
    start = sims[0].initial_state().params
    magnitudes = [name for name in start if name.endswith("magnitude")]
    assert len(magnitudes) == 2
    assert all(not torch.equal(ends[0][name], start[name]) for name in magnitudes)


def test_magnitudes_begin_as_norms() -> None:
    """So that the first outputs are those of LoRA."""
    sims = [simulate([8], 1, model={**TINY_VIT, "lora": {**LORA, "use_dora": dora}}) for dora in (True, False)]
    scores = [sim.trainer.own.rows("test", (0,), sim.initial_state().params)[0] for sim in sims]
    torch.testing.assert_close(*scores, rtol=1e-6, atol=1e-6)


def test_single_images_gradients_are_not_known() -> None:
    privacy = {"mechanism": {"name": "record", "bound": 0.1}, "noise_multiplier": 1.0, "delta": 1e-3}
    with pytest.raises(UserError, match=r"privacy\.mechanism: found record with model\.lora\.use_dora"):
        simulate([8], 1, model=MODEL, privacy=privacy)
