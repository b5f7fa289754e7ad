"""A file of weights that is written anew is not taken for the one that a run was trained on."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fedsim import server
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.models.encoders import load_encoder
from fedsim.runfolder.saved import open_saved
from fedsim.runfolder.start import first_state
from tests.helpers import make_config, same_bits
from tests.unit.models.models_hugging_folders import write_hugging

SIZES = {"patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
CHANGED = r"model: found other frozen weights, sha256 .*; expected .*, as in "


def write_weights(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    net = timm.create_model("vit_tiny_patch16_224", img_size=14, num_classes=0, **SIZES)
    save_file(net.state_dict(), file)


def config_of(file: Path, **changes: Any) -> Config:
    lora = {"r": 2, "target": ["q", "v"]}
    model = {"name": "timm:vit_tiny_patch16_224", "weights": str(file), "options": SIZES, "lora": lora}
    model |= changes.pop("model", {})
    return make_config(**{"rounds": 2, "data": {"max_train": 40}, "model": model, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights, and a run of LoRA on them; the weights have changed since."""
    folder = tmp_path_factory.mktemp("frozen")
    write_weights(folder / "w.safetensors", 1)
    server.run(config_of(folder / "w.safetensors"), folder / "run", False)
    with open_saved(folder / "run", "best"):
        pass
    write_weights(folder / "w.safetensors", 2)
    return folder / "w.safetensors", folder / "run"


def test_no_saved_model_is_opened_on_other_weights(run: tuple[Path, Path]) -> None:
    for which in ("best", "last"):
        with pytest.raises(UserError, match=CHANGED), open_saved(run[1], which):
            pass


def test_no_run_goes_on_with_other_weights(run: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=CHANGED):
        server.run(config_of(run[0]), run[1], True)


@pytest.mark.parametrize("name", ["", "adapter"])
def test_no_run_begins_from_what_was_trained_on_other_weights(run: tuple[Path, Path], name: str) -> None:
    config = config_of(run[0], model={"start_from": str(run[1] / name)})
    with pytest.raises(UserError, match=CHANGED), open_group() as group:
        first_state(build_simulation(config, group))


def test_the_name_of_the_file_is_free(run: tuple[Path, Path], tmp_path: Path) -> None:
    write_weights(tmp_path / "other_name.safetensors", 1)
    config = config_of(tmp_path / "other_name.safetensors", model={"start_from": str(run[1] / "adapter")})
    with open_group() as group:
        first_state(build_simulation(config, group))


def own_network(_config: object, _image_size: int) -> nn.Module:
    """The user's own; what stays frozen of it follows the seed."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(1), nn.Linear(144, 8))


def test_a_run_on_a_network_of_the_users_is_where_another_begins(tmp_path: Path) -> None:
    model = {"name": f"{__name__}.own_network", "lora": {"r": 2, "target": ["all-linear"]}}
    words: dict[str, Any] = {"rounds": 1, "data": {"max_train": 40}, "model": model}
    server.run(make_config(**words), tmp_path / "run", False)
    with open_saved(tmp_path / "run", "best", trust=True) as saved:
        expected = saved.params
    model = {**model, "start_from": str(tmp_path / "run")}
    with open_group() as group:
        found = first_state(build_simulation(make_config(**{**words, "model": model}), group))
        assert same_bits(found.params, expected)
        with pytest.raises(UserError, match="model: found other frozen weights"):
            first_state(build_simulation(make_config(**{**words, "model": model, "seed": 6}), group))
        model = {**make_config().model.model_dump(mode="json"), "start_from": str(tmp_path / "run")}
        with pytest.raises(UserError, match="code that the run folder names"):
            first_state(build_simulation(make_config(**{**words, "model": model}), group))


def test_what_is_trained_whole_needs_no_old_weights(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", 1)
    words = {"train": "all", "lora": None}
    server.run(config_of(tmp_path / "w.safetensors", model=words), tmp_path / "run", False)
    write_weights(tmp_path / "w.safetensors", 2)
    with open_saved(tmp_path / "run", "last"):
        pass


def test_a_folder_of_hugging_faces_is_known_by_its_weights_and_settings(tmp_path: Path) -> None:
    config = make_config(model={"name": f"hf:{tmp_path}/vit", "lora": {"r": 2}}).model
    found = set()
    for changes in ({}, {"hidden_act": "relu"}):
        write_hugging(tmp_path / "vit", "vit", **changes)
        found.add(load_encoder(config, 16, ["a", "b"], 0).frozen_sha256)
    assert None not in found
    assert len(found) == 2
