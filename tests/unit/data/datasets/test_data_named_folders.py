"""Kvasir and OCT-C8: every class has the name of its own folder, in prompts too."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fedsim.config.words import ModelConfig
from fedsim.data.datasets.named_folders import KVASIR, OCT_C8
from fedsim.errors import UserError
from fedsim.models import clip
from tests.helpers import load_set
from tests.unit.models.models_clip_folders import write_clip

pytestmark = pytest.mark.usefixtures("cache")
SETS = {"kvasir": KVASIR, "oct_c8": OCT_C8}


def make_folders(root: Path, folders: list[str], splits: tuple[str, ...] = ("",)) -> None:
    """An image in each folder, its red the folder's number."""
    for split in splits:
        for number, name in enumerate(folders):
            (root / split / name).mkdir(parents=True)
            for index in range(5):
                Image.new("RGB", (8, 8), (10 * number, 40 * index, len(split))).save(
                    root / split / name / f"{index}.png"
                )


@pytest.mark.parametrize("splits", [("",), ("train", "val", "test")])
@pytest.mark.parametrize("name", SETS)
def test_an_image_has_the_name_of_its_folder(tmp_path: Path, name: str, splits: tuple[str, ...]) -> None:
    folders = list(SETS[name])
    make_folders(tmp_path / "set", folders, splits)
    data = load_set(name, root=str(tmp_path / "set"), image_size=8)
    assert len(data.labels) == 5 * len(folders) * len(splits)
    for image, label in zip(data.images, data.labels.tolist(), strict=True):
        assert data.class_names[label] == SETS[name][folders[int(image[0, 0, 0]) // 10]]


def test_the_prompts_of_oct_c8_are_in_the_order_of_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release has those of diabetic retinopathy (DR) and macular hole (MH) the other way round."""
    make_folders(tmp_path / "set", list(OCT_C8))
    names = load_set("oct_c8", root=str(tmp_path / "set"), image_size=8).class_names
    write_clip(tmp_path)
    seen: list[str] = []

    class Towers:
        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.eye(len(tokens))

    monkeypatch.setattr(clip, "_tokens", lambda _model, _name, prompts: seen.extend(prompts) or torch.eye(len(prompts)))
    config = ModelConfig(name=f"open_clip:local-dir:{tmp_path}", prompt="this is an image of {}")
    clip._text_features(Towers(), config, names)
    assert seen[sorted(OCT_C8).index("DR")] == "this is an image of diabetic retinopathy"
    assert seen[sorted(OCT_C8).index("MH")] == "this is an image of macular hole"


@pytest.mark.parametrize("name", SETS)
def test_other_folders_are_refused(tmp_path: Path, name: str) -> None:
    folders = list(SETS[name])
    make_folders(tmp_path / "more", [*folders, "other"])
    with pytest.raises(UserError, match=f"found a class folder 'other'; expected those of {name}: {folders[0]}"):
        load_set(name, root=str(tmp_path / "more"), image_size=8)
    make_folders(tmp_path / "less", folders[1:])
    with pytest.raises(UserError, match=f"found no class folder '{folders[0]}'"):
        load_set(name, root=str(tmp_path / "less"), image_size=8)
