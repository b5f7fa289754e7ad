"""What clients count while they train a sub-model: how often each neuron's activation is exactly zero."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.models.specs import NUM_TOKENS, ZEROS
from fedsim.models.stacked import Counting
from fedsim.models.submodel.feed_forward import find_feed_forward
from fedsim.models.submodel.model import HeldModel, ZeroCounter
from fedsim.models.tower import Tower
from tests.unit.models.models_cut import CLOSE, RANK, SIZES, full_model, inputs_of, plainly_cut, words_of


def zeros_by_hand(tower: Tower, inputs: Tensor) -> tuple[dict[int, Tensor], int]:
    """Run the inputs one by one, without padding, and count what goes into the outer matrices."""
    zeros: dict[int, Tensor] = {}
    hooks = []
    for number in (0, 2):

        def count(_: nn.Module, taken: Any, number: int = number) -> None:
            zeros[number] = zeros.get(number, 0) + sum((token == 0).long() for token in taken[0].flatten(0, -2))

        hooks.append(find_feed_forward(tower.blocks[number], "").outer.register_forward_pre_hook(count))
    num_tokens = 0
    for one in inputs:
        is_text = one.dim() == 2
        single = one[None, :, : int((one[0] >= 0).sum())] if is_text else one[None]
        tokens = tower.stem(single)
        num_tokens += tokens.shape[2] if is_text else tokens.shape[1]
        tower.states(tokens)
    for hook in hooks:
        hook.remove()
    return zeros, num_tokens


@pytest.mark.parametrize("kind", ["timm", "vit", "bert"])
def test_zeros_are_counted_per_client(kind: str, tmp_path: Path) -> None:
    """Three clients of 3, 2 and 1 inputs; what stands at the empty places must not count, nor padding."""
    config = ModelConfig.model_validate(words_of(kind, tmp_path))
    tower, _, tensors = plainly_cut(config, SIZES[kind], (1,), RANK)
    held = HeldModel(full_model(config, SIZES[kind]), range(3), tensors)
    params = held.initial(0)
    counts = {name: value for name, value in params.items() if held.specs[name].kind == "count"}
    assert counts.keys() == {f"{ZEROS}0", f"{ZEROS}2", NUM_TOKENS}
    params |= {name: value.expand(3, *value.shape).clone() for name, value in counts.items()}
    inputs = inputs_of(kind, 9)
    places = torch.tensor([[True, True, True], [True, True, False], [False, True, False]])
    fixed = held.prefix(inputs).unflatten(0, (3, 3))
    plain = held.features(params, fixed, training=True)
    assert not any(params[name].any() for name in counts), "only what is asked for is counted"
    for times in (1, 2):
        counted = held.features(params, fixed, training=True, counting=Counting(places, padding=False))
        torch.testing.assert_close(counted, plain, **CLOSE)
        for client in range(3):
            own = inputs.unflatten(0, (3, 3))[client][places[client]]
            pixels = own if kind == "bert" else (own - held._mean) / held._std
            zeros, num_tokens = zeros_by_hand(tower, pixels)
            assert params[NUM_TOKENS][client] == times * num_tokens
            for number, expected in zeros.items():
                assert torch.equal(params[f"{ZEROS}{number}"][client], times * expected)
                assert 0 < expected.sum() < num_tokens * RANK
    before = params[NUM_TOKENS].clone()
    held.features(params, fixed, training=True, counting=Counting(places, padding=True))
    tokens = fixed.shape[-1] if kind == "bert" else fixed.shape[2]
    assert torch.equal(params[NUM_TOKENS] - before, places.sum(1) * tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_are_exact_in_any_precision(dtype: torch.dtype) -> None:
    """3001 tokens of one client, of which 2999 are its own: bf16 has no such numbers."""
    counter = ZeroCounter(torch.zeros(1, 2, dtype=torch.int64), torch.arange(3001)[None] > 1)
    activation = torch.zeros(1, 3001, 2, dtype=dtype)
    activation[0, 5:7, 1] = 0.5
    with torch.autocast("cpu", torch.bfloat16):
        counter.add(activation)
        counter.add(activation)
    assert counter.zeros.tolist() == [[2 * 2999, 2 * 2997]]
