"""The inputs that a sub-model is distilled over: the server's own, without labels."""

from dataclasses import dataclass
from pathlib import Path

from fedsim.catalogue.functions import is_import_path
from fedsim.config.distill import load_distill_config
from fedsim.config.mistakes import show
from fedsim.config.words import SubmodelConfig
from fedsim.data import load_dataset
from fedsim.data.dataset import Indices
from fedsim.errors import UserError
from fedsim.inputs.images import ImageSource
from fedsim.inputs.texts import input_source
from fedsim.models.stacked import StackedModel
from fedsim.models.submodel.folder import CONFIG_FILE


@dataclass(frozen=True)
class PublicInputs:
    """Inputs of ``source`` at ``places``."""

    source: ImageSource
    places: Indices


def load_public(submodel: SubmodelConfig | None, model: StackedModel) -> PublicInputs:
    """Load the training part of the set that the sub-model was distilled over, as large as ``model`` takes images.

    UserError for a sub-model that was not distilled, a set that its folder names by an import path, an empty set, and
    texts where the model takes images or the other way round.
    """
    if submodel is None or submodel.folder is None:
        raise UserError("model.submodel", "no folder, with a method that aligns", "{folder: DIR} of launch.py distill")
    config = load_distill_config(Path(submodel.folder) / CONFIG_FILE)
    if is_import_path(config.data.name):
        found = f"{show(config.data.name)}, code that the sub-model's folder names"
        raise UserError("model.submodel.folder: data.name", found, "a data set that launch.py list data shows")
    dataset = load_dataset(config.data.model_copy(update={"image_size": model.encoder.image_size}))
    return PublicInputs(input_source(config, dataset, model), dataset.train)
