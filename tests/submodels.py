"""Folders with sub-models of the tests' own small transformer, cut and not distilled."""

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.config.distill import DistillConfig
from fedsim.config.experiment import dump_config
from fedsim.models.encoders import load_encoder
from fedsim.models.submodel.folder import CONFIG_FILE, fingerprint, make_submodel, save_submodel
from tests.helpers import BASE, IMAGE_SIZE, LORA, TINY_VIT

SCRATCH = tempfile.TemporaryDirectory(prefix="fedsim-")


@cache
def tiny_submodel(intermediate_rank: int) -> str:
    """A folder with a sub-model of ``TINY_VIT``, cut and not distilled; made once and gone with the process."""
    folder = Path(SCRATCH.name) / str(intermediate_rank)
    return write_submodel(folder, {**TINY_VIT, "lora": LORA}, intermediate_rank=intermediate_rank)


def write_submodel(folder: Path, model: Mapping[str, Any], image_size: int = IMAGE_SIZE, **cut: Any) -> str:
    """Cut a model, the section of a config, as the words ``cut`` say, without distillation; return the new folder."""
    words = {"name": "half", "model": model, "data": BASE["data"], "submodel": cut}
    config = DistillConfig.model_validate(words)
    tower = load_encoder(config.model, image_size, ["x"], 0).tower
    assert tower is not None
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(dump_config(config))
    save_submodel(folder, make_submodel(config, tower.blocks), fingerprint(tower.blocks), {})
    return str(folder)
