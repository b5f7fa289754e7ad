"""timm encoders: cut and put together again they are timm's; everything else is one line for the user."""

from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsim.config.words import LoraConfig, ModelConfig
from fedsim.errors import UserError
from fedsim.models import hub
from fedsim.models.attention import Attention
from fedsim.models.encoders import library_model, load_encoder
from fedsim.models.timm_vit import TimmTower

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 4}
VARIANTS = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.3, "scale_attn_norm": True}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "no_embed_class": True, "pre_norm": True}),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "map"}),
    ("vit_small_patch16_224", {"patch_size": 8, "qkv_bias": False}),
    ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}),
    ("vit_giant_patch14_dinov2", {"patch_size": 16}),  # swiglu
    ("vit_base_patch16_clip_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_base_patch16_rpn_224", {}),  # post-norm blocks
]


def random_config(name: str, options: dict[str, Any] | None = None, **words: Any) -> ModelConfig:
    return ModelConfig(name=f"timm:{name}", weights="random", options=options or {}, **words)


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tower_gives_what_timm_gives(name: str, options: dict[str, Any]) -> None:
    config = random_config(name, TINY | options, lora=LoraConfig(r=2))
    original = library_model(config, 32, seed=3).eval()
    encoder = load_encoder(config, 32, ["a", "b"], seed=3)
    assert encoder.tower is not None
    with torch.no_grad():
        torch.testing.assert_close(encoder.net(images(32)), original(images(32)), rtol=1e-5, atol=1e-5)
    assert encoder.width == encoder.net(images(32)).shape[1] == 32
    for block in encoder.tower.blocks:
        assert type(block.attn) is Attention
        assert type(block.attn.qkv) is type(block.attn.proj) is nn.Linear


def test_paths_of_the_tower_lead_to_the_same_modules_in_timm() -> None:
    config = random_config("vit_tiny_patch16_224", TINY, lora=LoraConfig(r=2))
    original, tower = library_model(config, 32, 0), load_encoder(config, 32, [], 0).tower
    assert tower is not None
    for name, parameter in tower.named_parameters():
        assert torch.equal(parameter, original.get_parameter(tower.source_path(name)))
    assert len(list(tower.parameters())) == len(list(original.parameters()))


def test_attention_takes_masks_and_drops_out_in_training_only() -> None:
    model: Any = timm.create_model("vit_tiny_patch16_224", attn_drop_rate=0.9, **TINY).eval()
    source = model.blocks[0].attn
    ours = TimmTower(model).eval().blocks[0].attn
    tokens = torch.randn(2, 5, 32)
    mask = torch.rand(5, 5) > 0.3
    torch.testing.assert_close(ours(tokens, attn_mask=mask), source(tokens, attn_mask=mask))
    torch.testing.assert_close(ours(tokens, is_causal=True), source(tokens, is_causal=True))
    assert torch.equal(ours(tokens), ours(tokens))
    assert not torch.equal(ours.train()(tokens), ours(tokens))


def test_seed_decides_random_weights_and_the_global_stream_is_left_alone() -> None:
    config = random_config("vit_tiny_patch16_224", TINY, train="head")
    before = torch.random.get_rng_state()
    first, same, other = (load_encoder(config, 32, [], seed).net(images(32)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("train", "expected"), [("head", False), ("all", True)])
def test_only_train_all_asks_for_gradients(train: str, expected: bool) -> None:
    net = load_encoder(random_config("vit_tiny_patch16_224", TINY, train=train), 32, [], 0).net
    assert {parameter.requires_grad for parameter in net.parameters()} == {expected}


def test_other_nets_come_as_they_are() -> None:
    config = random_config("resnet18", {"channels": [4, 4, 8, 12]}, train="all")
    encoder = load_encoder(config, 40, [], 0)
    assert encoder.tower is None
    assert encoder.width == 12
    assert encoder.net(images(40)).shape == (2, 12)


def test_other_nets_with_lora_know_their_layers_places() -> None:
    encoder = load_encoder(random_config("resnet10t", lora=LoraConfig(r=2, target=("conv2",))), 32, [], 0)
    assert encoder.tower is None
    assert encoder.adaptable.source_path("net.layer1.0.conv2") == "layer1.0.conv2"


def test_weights_file_is_loaded_whole_at_any_size_and_without_its_classifier(tmp_path: Any) -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7, **TINY).eval()
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    config = ModelConfig(name="timm:vit_tiny_patch16_224", weights=str(path), options=TINY, train="head")
    source.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(load_encoder(config, 64, [], 0).net(images(64)), source(images(64)))
        source.set_input_size((32, 32))
        torch.testing.assert_close(load_encoder(config, 32, [], 0).net(images(32)), source(images(32)))


def test_weights_file_with_a_missing_tensor_is_refused(tmp_path: Any) -> None:
    state = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **TINY).state_dict()
    del state["blocks.1.attn.qkv.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    config = ModelConfig(
        name="timm:vit_tiny_patch16_224",
        weights=str(tmp_path / "weights.safetensors"),
        options=TINY,
        train="head",
    )
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.weight"):
        load_encoder(config, 32, [], 0)


@pytest.mark.parametrize(("name", "message"), [("damaged", "SafetensorError"), ("absent", "no file")])
def test_damaged_and_absent_weights_files_are_named(tmp_path: Any, name: str, message: str) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"no such format")
    weights = str(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=f"{name}.safetensors.*") as caught:
        load_encoder(ModelConfig(name="timm:vit_tiny_patch16_224", weights=weights, train="head"), 32, [], 0)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (random_config("vit_tiny_patch16_225"), 32, "vit_tiny_patch16_224"),
        (random_config("vit_tiny_patch16_224.nobody"), 32, "vit_tiny_patch16_224"),
        (random_config("vit_tiny_patch16_224"), 40, "40 for timm:.* 16 pixels; expected a multiple of 16"),
        (random_config("vit_tiny_patch16_224", {"depht": 2}), 32, "depht"),
        (random_config("vit_tiny_patch16_224", TINY | {"global_pool": ""}), 32, "pools"),
        (random_config("resnet18", {"output_stride": 7}), 32, "timm:resnet18"),
    ],
)
def test_mistakes_are_one_line(config: ModelConfig, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(config, size, [], 0)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_cause_and_the_other_routes_are_named(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(hub, "hub_problem", lambda: "the hub did not answer (no cable)")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no cable.*FILE or random"):
        load_encoder(ModelConfig(name="timm:vit_tiny_patch16_224"), 32, [], 0)
    assert not constants.HF_HUB_OFFLINE


OPTIONS = [
    ({"num_heads": 0}, "ZeroDivisionError"),
    ({"patch_size": 0}, "ZeroDivisionError"),
    ({"embed_dim": 0}, "timm:vit_tiny_patch16_224"),
    ({"depth": 0}, "no transformer block"),
    ({"mlp_ratio": 0}, "mlp_ratio 0; expected at least one neuron for a width of 32"),
    ({"mlp_ratio": 0.03}, "mlp_ratio 0.03; expected at least one neuron"),
    ({"checkpoint_path": "weights.pth"}, "checkpoint_path; expected the network's own options"),
    ({"pretrained": True}, "pretrained; expected the network's own options"),
    ({"pretrained_strict": False}, "pretrained_strict; expected the network's own options"),
    ({"drop_rate": 0.5}, "drop_rate; expected no dropout"),
    ({"drop_path_rate": 0.5}, "drop_path_rate; expected no dropout"),
    ({"num_classes": 7}, "num_classes; expected no such option; what decides is the data"),
    ({"img_size": 64}, r"img_size; .*what decides is data\.image_size"),
    ({"dynamic_img_size": True}, r"dynamic_img_size; .*what decides is data\.image_size"),
    ({"dtype": "bfloat16"}, r"dtype; .*what decides is model\.precision"),
    ({"device": "meta"}, "device"),
    ({"in_chans": 3}, "in_chans"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[next(iter(options)) for options, _ in OPTIONS])
def test_options_that_do_nothing_or_make_no_network(options: dict[str, Any], words: str) -> None:
    model = {"name": "timm:vit_tiny_patch16_224", "weights": "random", "train": "head", "options": TINY | options}
    with pytest.raises(UserError, match=words) as caught:
        load_encoder(ModelConfig.model_validate(model), 32, ["a", "b"], 0)
    assert "\n" not in str(caught.value)


def test_our_own_mistakes_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library's network does is tried, not what we make of it."""

    def mistaken(*_: Any) -> Tensor:
        raise TypeError("ours")

    monkeypatch.setattr(TimmTower, "stem", mistaken)
    model = {"name": "timm:vit_tiny_patch16_224", "weights": "random", "train": "head", "options": TINY}
    encoder = load_encoder(ModelConfig.model_validate(model), 32, ["a", "b"], 0)
    with pytest.raises(TypeError, match="ours"):
        encoder.net(torch.zeros(1, 3, 32, 32))
