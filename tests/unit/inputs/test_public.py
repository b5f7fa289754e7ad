"""The set that a sub-model is aligned over, as its folder names it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.config.words import ModelConfig, SubmodelConfig
from fedsim.errors import UserError
from fedsim.inputs.public import PublicInputs, load_public
from tests.helpers import IMAGE_SIZE, LORA, TINY_VIT, shared_models
from tests.unit.models.models_hugging_folders import WORDS, write_hugging

VIT = {**TINY_VIT, "lora": LORA}


def load(folder: Path, model: dict[str, Any], data: dict[str, Any]) -> PublicInputs:
    """Write a distillation's config into ``folder`` and load its set for the tests' model, or another."""
    words = {"name": "half", "model": model, "data": data, "submodel": {"intermediate_rank": 8}}
    (folder / "config.yaml").write_text(json.dumps(words))
    full, _ = shared_models(ModelConfig.model_validate(model).model_dump_json(), IMAGE_SIZE, 3)
    return load_public(SubmodelConfig(folder=str(folder)), full)


def write_texts(folder: Path, texts: list[str]) -> dict[str, Any]:
    (folder / "tables").mkdir()
    rows = "".join(json.dumps({"text": text, "label": text[0]}) + "\n" for text in texts)
    (folder / "tables" / "train.jsonl").write_text(rows)
    return {"name": "text_files", "root": str(folder / "tables"), "columns": {"label": "label"}}


def test_images_have_the_size_of_the_run(tmp_path: Path) -> None:
    public = load(tmp_path, VIT, {"name": "digits", "image_size": 28, "max_train": 50})
    assert len(public.places) == 50
    assert public.source.images.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE)


def test_texts_are_cut_where_the_distillation_cuts_them(tmp_path: Path) -> None:
    write_hugging(tmp_path / "bert")
    data = write_texts(tmp_path, [" ".join(WORDS[:length]) for length in range(1, 9)] * 5)
    model = {"name": f"hf:{tmp_path / 'bert'}", "lora": LORA}
    widths = []
    for max_tokens in (4, 7, None):
        public = load(tmp_path, model, {**data, "max_tokens": max_tokens})
        widths.append(public.source.evaluation_batch(public.places).shape[-1])
    assert widths == [4, 7, 10]


def test_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.name: found .*, which takes images, with text_files"):
        load(tmp_path, VIT, write_texts(tmp_path, WORDS * 4))
    with pytest.raises(UserError, match=r"config\.yaml: data\.root: found .*gone"):
        load(tmp_path, VIT, {"name": "text_files", "root": str(tmp_path / "gone"), "columns": {"label": "label"}})
    for dropped in (None, SubmodelConfig(layers=(0,))):
        with pytest.raises(UserError, match=r"^model\.submodel: found no folder, with a method that aligns; expected"):
            load_public(dropped, shared_models(ModelConfig.model_validate(VIT).model_dump_json(), IMAGE_SIZE, 3)[0])
