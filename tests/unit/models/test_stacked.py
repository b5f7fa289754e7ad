"""The model of a block: each client's scores are what the client alone would get."""

from typing import Any

import pytest
import torch

from fedsim.models.stacked import StackedModel
from tests.helpers import LORA, TINY_VIT, make_config, make_dataset, same_bits, shared_models

MODELS: dict[str, dict[str, Any]] = {
    "lora": {**TINY_VIT, "lora": LORA},
    "lora on plain layers": {**TINY_VIT, "lora": {**LORA, "target": ["v", "proj", "fc1", "fc2"]}},
    "head": {**TINY_VIT, "train": "head"},
    "all": {**TINY_VIT, "train": "all"},
}
K, B = 3, 4


def model(words: dict[str, Any]) -> StackedModel:
    config = make_config(model=words)
    return shared_models(config.model.model_dump_json(), config.data.image_size, 3)[0]


def stacked_params(made: StackedModel) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    return {
        name: value[None] + 0.1 * torch.randn(K, *value.shape, generator=stream)
        for name, value in made.initial(0).items()
    }


def pixels() -> torch.Tensor:
    return make_dataset([K * B])[0].images[: K * B].float() / 255


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
def test_a_client_in_a_block_is_the_client_alone(words: dict[str, Any]) -> None:
    made = model(words)
    params = stacked_params(made)
    fixed = made.prefix(pixels())
    fixed = fixed.reshape(K, B, *fixed.shape[1:])
    with torch.no_grad():
        together = made.forward(params, fixed, training=True)
        assert together.shape == (K, B, 3)
        for client in range(K):
            own = {name: value[client] for name, value in params.items()}
            alone = made.forward(own, fixed[client][None], training=False)[0]
            torch.testing.assert_close(together[client], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", [MODELS["lora"], MODELS["head"]], ids=["lora", "head"])
def test_initial_scores_are_those_of_the_encoder(words: dict[str, Any]) -> None:
    """LoRA starts as no change at all."""
    made = model(words)
    params = made.initial(3)
    with torch.no_grad():
        scores = made.forward(params, made.prefix(pixels())[None], training=False)[0]
        plain = model(MODELS["head"])
        features = plain.net((pixels() - plain._mean) / plain._std)
    expected = features @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
def test_first_parameters(words: dict[str, Any]) -> None:
    made = model(words)
    first = made.initial(0)
    assert {name: tuple(value.shape) for name, value in first.items()} == {n: s.shape for n, s in made.specs.items()}
    assert same_bits(first, made.initial(0))
    other = made.initial(1)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not first["head.bias"].any()
    kinds = {spec.kind for spec in made.specs.values()}
    trained = {"lora": {"lora_a", "lora_b"}, "head": set(), "all": {"body"}}[made.config.train]
    assert kinds == {"head"} | trained


def test_body_is_a_copy() -> None:
    made = model(MODELS["all"])
    params = made.initial(0)
    before = {name: value.clone() for name, value in made.net.state_dict().items()}
    for value in params.values():
        value.add_(1)
    assert same_bits(dict(made.net.state_dict()), before)
