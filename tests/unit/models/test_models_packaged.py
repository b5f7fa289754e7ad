"""The packaged encoder: timm's model gives the numbers that onnxruntime gives for the packaged graph."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fedsim.config.words import LoraConfig, ModelConfig
from fedsim.data.assets import fetch
from fedsim.errors import UserError
from fedsim.models.encoders import library_model, load_encoder
from fedsim.models.packaged import build_packaged

CONFIG = ModelConfig(name="packaged:vit_small_dino", lora=LoraConfig(r=2))
FEATURES = "/backbone/layernorm/Add_1_output_0"  # the encoder's last tensor in the graph

# onnxruntime 1.31.1 on wave(size): the first six channels of the class token, the last six of the last patch.
GOLDEN = {
    56: (
        [0.601829, -0.334374, 1.108706, -1.873356, 0.425350, -1.300246],
        [-0.143182, -1.531518, -1.338142, -2.817760, 2.138273, 2.268136],
    ),
    224: (
        [1.056753, -0.261903, 1.056846, -4.087883, -0.704355, -0.257721],
        [0.501391, -1.753946, -1.509105, -2.355101, 2.329446, 1.113468],
    ),
}


def wave(size: int) -> Any:
    values = np.sin(0.01 * np.arange(3 * size * size))
    return values.reshape(1, 3, size, size).astype(np.float32)


@pytest.mark.parametrize("size", GOLDEN)
def test_agrees_with_numbers_from_onnxruntime(size: int) -> None:
    model: Any = build_packaged(size).eval()
    with torch.no_grad():
        tokens = model.forward_features(torch.from_numpy(wave(size)))
    first, last = GOLDEN[size]
    np.testing.assert_allclose(tokens[0, 0, :6], first, atol=5e-5)
    np.testing.assert_allclose(tokens[0, -1, -6:], last, atol=5e-5)


@pytest.mark.parametrize("size", GOLDEN)
def test_the_numbers_are_those_of_onnxruntime(size: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="only makes sure of the numbers above")
    proto = onnx.load(fetch("vit_small_dino") / "vit_s_focus.onnx")
    proto.graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, None))
    for extent in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        extent.dim_value = size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns about the decoder's unused sizes
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    (tokens,) = session.run([FEATURES], {"input_image": wave(size)})
    first, last = GOLDEN[size]
    np.testing.assert_allclose(tokens[0, 0, :6], first, atol=5e-5)
    np.testing.assert_allclose(tokens[0, -1, -6:], last, atol=5e-5)


def test_tower_gives_what_timm_gives_and_its_width_and_normalisation_are_known() -> None:
    encoder = load_encoder(CONFIG, 56, ["no", "yes"], seed=0)
    original = library_model(CONFIG, 56, seed=0).eval()
    images = torch.from_numpy(wave(56)).expand(2, -1, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(encoder.net(images), original(images), rtol=1e-5, atol=1e-5)
    assert encoder.tower is not None
    assert len(encoder.tower.blocks) == 12
    assert encoder.width == 384
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert encoder.std == (0.229, 0.224, 0.225)


def test_random_weights_keep_the_architecture() -> None:
    config = ModelConfig(name="packaged:vit_small_dino", weights="random", train="all")
    net, pretrained = (load_encoder(c, 28, [], 0).net.state_dict() for c in (config, CONFIG))
    assert net.keys() == pretrained.keys()
    assert not torch.allclose(net["blocks.0.attn.qkv.weight"], pretrained["blocks.0.attn.qkv.weight"])


def test_other_image_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.image_size: found 60.*14 pixels.*56 or 70"):
        load_encoder(CONFIG, 60, [], 0)
