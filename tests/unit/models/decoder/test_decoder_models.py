"""Decoders behind encoders of every library: what they read, what is exported, what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.build import check_outputs
from fedsim.config.experiment import Config
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.build import build_models
from fedsim.models.encoders import library_model, load_encoder
from fedsim.models.export import export_peft
from tests.helpers import BASE, LORA, make_config, make_dataset
from tests.unit.models.models_clip_folders import OWN_VISION, write_biomed, write_clip
from tests.unit.models.models_hugging_folders import write_hugging

CLASSES = ["background", "grey", "white"]
DEEP_VIT: dict[str, Any] = {
    "name": "timm:vit_tiny_patch16_224",
    "weights": "random",
    "options": {"patch_size": 7, "embed_dim": 16, "depth": 4, "num_heads": 2},
}
LINEAR, UPERNET = {"name": "linear"}, {"name": "upernet_light", "width": 8}
# Encoders with a class token, with registers beside it, without any; the sides of their images.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "class token": (DEEP_VIT, 28),
    "registers": ({**DEEP_VIT, "options": {**DEEP_VIT["options"], "reg_tokens": 3}}, 28),
    "no class token": (
        {**DEEP_VIT, "options": {**DEEP_VIT["options"], "class_token": False, "global_pool": "avg"}},
        28,
    ),
    "open_clip": ({"name": "open_clip"}, 32),
    "open_clip around timm": ({"name": "biomed"}, 160),
    "Hugging Face": ({"name": "hf"}, 16),
}


def model_words(folder: Path, model: str, **words: Any) -> tuple[ModelConfig, int]:
    """The section of a config, its model written into a folder where it comes from one."""
    base, size = MODELS[model]
    if base["name"] == "hf":
        write_hugging(folder / "hf", "vit", num_hidden_layers=4)
        base = {"name": f"hf:{folder / 'hf'}"}
    elif base["name"] in ("open_clip", "biomed"):
        (folder / "clip").mkdir()
        if base["name"] == "biomed":
            write_biomed(folder / "clip")
        else:
            write_clip(folder / "clip", {**OWN_VISION, "layers": 4})
        base = {"name": f"open_clip:local-dir:{folder / 'clip'}"}
    return ModelConfig.model_validate({**base, "lora": LORA, "decoder": UPERNET, **words}), size


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("model", MODELS)
def test_the_readme_gives_the_same_scores(tmp_path: Path, model: str) -> None:
    """What the library's own blocks give goes through the exported source of the decoder."""
    config, size = model_words(tmp_path, model)
    stacked, _ = build_models(config, size, CLASSES, 4, torch.device("cpu"))
    stream = torch.Generator().manual_seed(3)
    params = {n: v + 0.1 * torch.randn(v.shape, generator=stream) for n, v in stacked.initial(4).items()}
    assert stacked.specs["decoder.levels.0.refine.weight"].kind == "head"
    export_peft(tmp_path / "adapter", params, stacked)
    assert not (tmp_path / "adapter" / "head.safetensors").exists()
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "adapter" / "README.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {"FOLDER": str(tmp_path / "adapter"), "images": images(size)}
    with torch.no_grad():
        exec(code, space)
        expected = stacked.classify(
            params, stacked.features(params, stacked.freeze(images(size))[None], training=False)
        )
    assert space["logits"].shape == (2, 3, size, size)
    torch.testing.assert_close(space["logits"], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("decoder", "reads"), [(LINEAR, (11,)), (UPERNET, (2, 5, 8, 11))])
def test_blocks_that_are_read_end_with_the_last(decoder: dict[str, Any], reads: tuple[int, ...]) -> None:
    words = {**DEEP_VIT, "options": {**DEEP_VIT["options"], "depth": 12}, "train": "head", "decoder": decoder}
    tower = load_encoder(ModelConfig.model_validate(words), 14, CLASSES, 0).tower
    assert tower is not None
    assert tower.reads == reads


def test_another_seed_draws_another_decoder() -> None:
    config = ModelConfig.model_validate({**DEEP_VIT, "train": "head", "decoder": LINEAR})
    first, again, other = (build_models(config, 14, CLASSES, seed, torch.device("cpu"))[0] for seed in (1, 1, 2))
    weights = [model.initial(1)["decoder.scores.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"decoder": {"name": "mlp"}}, r"decoder\.name.*found 'mlp'.*linear, upernet_light|linear"),
    ({"decoder": {"name": "linear", "width": 8}}, "width"),
    ({"name": "monai:unet", "options": {}, "lora": None}, "linear with monai:unet, which scores pixels itself"),
    ({"name": "open_clip:ViT-B-32", "weights": None, "options": {}, "classifier": "text"}, "text with a decoder"),
    ({"submodel": {"layers": [0]}}, "a sub-model with a decoder"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_has_no_effect_is_refused(changes: dict[str, Any], words: str) -> None:
    model = {**DEEP_VIT, "lora": LORA, "decoder": LINEAR, **changes}
    with pytest.raises(ValueError, match=words):
        Config.model_validate({**BASE, "model": model})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "timm:test_resnet", "weights": "random", "train": "head"}, "which is no plain vision transformer"),
        ({**DEEP_VIT, "options": {**DEEP_VIT["options"], "depth": 3}, "train": "head"}, "which has 3 blocks; expected"),
    ],
)
def test_encoders_that_have_no_such_blocks_are_refused(model: dict[str, Any], words: str) -> None:
    config = ModelConfig.model_validate({**model, "decoder": UPERNET})
    with pytest.raises(UserError, match=rf"^model\.decoder: found upernet_light with .*{words}") as caught:
        load_encoder(config, 28, CLASSES, 0)
    assert "\n" not in str(caught.value)


def test_a_text_tower_is_refused(tmp_path: Path) -> None:
    write_hugging(tmp_path, "bert")
    config = ModelConfig.model_validate({"name": f"hf:{tmp_path}", "train": "head", "decoder": LINEAR})
    with pytest.raises(UserError, match=r"^model\.decoder: found linear with hf:"):
        load_encoder(config, 16, CLASSES, 0)


def test_the_base_is_the_library_s_own() -> None:
    """Reading blocks changes nothing in what the library gives."""
    config = ModelConfig.model_validate({**DEEP_VIT, "train": "head", "decoder": LINEAR})
    plain: Any = library_model(config, 14, 0).eval()
    seen: list[Tensor] = []
    plain.blocks[3].register_forward_hook(lambda _, __, out: seen.append(out))
    tower = load_encoder(config, 14, CLASSES, 0).net
    with torch.no_grad():
        plain(images(14))
        torch.testing.assert_close(tower(images(14))[:, 0], seen[0][:, 1:], rtol=1e-5, atol=1e-5)


def test_a_set_without_masks_is_refused() -> None:
    config = make_config(model={**DEEP_VIT, "train": "head", "decoder": LINEAR})
    model, _ = build_models(config.model, 14, CLASSES, 0, torch.device("cpu"))
    expected = r"model\.decoder: .*made up, which has no masks; expected a network that scores images"
    with pytest.raises(UserError, match=expected):
        check_outputs(config, model, make_dataset([4])[0])
