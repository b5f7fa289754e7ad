"""A file of weights that is written anew is not taken for the one that a run was trained on."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from fedsim import server
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.models.encoders import load_encoder
from fedsim.runfolder.saved import open_saved
from fedsim.runfolder.start import first_state
from tests.helpers import make_config
from tests.unit.models.models_hugging_folders import write_hugging

SIZES = {"patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
CHANGED = r"model: found files of frozen weights that have changed, sha256 .*; expected .*, as in "


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
