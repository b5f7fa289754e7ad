"""Sub-model folders: what goes in comes out, and every folder that does not fit is one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.machine.sealed import SEAL, write_record
from fedsim.models.encoders import load_encoder
from fedsim.models.submodel.folder import CONFIG_FILE, FACTS_FILE, TENSORS_FILE, load_submodel, make_submodel
from tests.distributed.runs import TINY
from tests.helpers import IMAGE_SIZE, LORA, TINY_VIT, same_bits
from tests.submodels import tiny_submodel


def blocks(seed: int = 0, **options: int) -> nn.ModuleList:
    words = {**TINY_VIT, "lora": LORA, "options": {**TINY_VIT["options"], **options}}
    tower = load_encoder(ModelConfig.model_validate(words), IMAGE_SIZE, ["x"], seed).tower
    assert tower is not None
    return tower.blocks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_submodel(48), tmp_path / "half"))


def test_what_goes_in_comes_out(folder: Path) -> None:
    loaded = load_submodel(folder, blocks(), "model.submodel.folder")
    made = make_submodel(loaded.config, blocks())
    assert same_bits(loaded.tensors, made.tensors)
    assert loaded.neurons.keys() == made.neurons.keys() == {0, 1}
    assert all(torch.equal(loaded.neurons[layer], made.neurons[layer]) for layer in (0, 1))
    assert made.tensors["blocks.1.mlp.fc2.weight"].shape == (32, 48)


@pytest.mark.parametrize("other", [{"seed": 1}, {"depth": 3}, {"num_heads": 4, "seed": 1}, {"embed_dim": 64}])
def test_another_model_s_folder(folder: Path, other: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^model.submodel.folder: found .*half', made from timm:.*; expected a sub-mo"):
        load_submodel(folder, blocks(**other), "model.submodel.folder")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def change_facts(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / FACTS_FILE).read_text())
    (folder / FACTS_FILE).write_text(json.dumps({**facts, **changes}))


def change_sealed(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / FACTS_FILE).read_text())
    del facts[SEAL]
    write_record(folder / FACTS_FILE, {**facts, **changes})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no folder .*half'; expected a folder that exists"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), r"half: found no config.yaml; .* launch.py distill made"),
        (lambda folder: (folder / CONFIG_FILE).write_text(TINY), "a run's config, with rounds"),
        (lambda folder: (folder / FACTS_FILE).unlink(), r"an unfinished distillation; .*half/config.yaml .*--resume"),
        (lambda folder: (folder / FACTS_FILE).write_text("{"), "submodel.json: found no readable JSON"),
        (
            lambda folder: change_facts(folder, format=7),
            "submodel.json: found format 7; expected a sub-model's facts of format 2",
        ),
        (lambda folder: change_sealed(folder, file="../x"), "found file '../x'; expected the name of a file beside it"),
        (lambda folder: change_sealed(folder, file=None), "found file None; expected the name of a file beside it"),
        (
            lambda folder: change_facts(folder, model_sha256="0" * 64),
            "submodel.json: found a record that was changed or damaged",
        ),
        (lambda folder: (folder / TENSORS_FILE).unlink(), "submodel.safetensors: found no readable file"),
        (lambda folder: shorten(folder / TENSORS_FILE), r"submodel.safetensors: found \d+ bytes of sha256"),
    ],
)
def test_folders_that_are_none(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=f"^model.submodel.folder: .*{message}"):
        load_submodel(folder, blocks(), "model.submodel.folder")


def test_the_public_set_need_not_be_there_to_load(folder: Path) -> None:
    text = (folder / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text(
        text.replace("name: digits", "name: image_folder").replace("root: null", "root: gone")
    )
    assert load_submodel(folder, blocks(), "here").config.data.root == "gone"
