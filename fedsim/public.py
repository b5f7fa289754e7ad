"""The inputs that a sub-model is distilled over: the server's own, without labels."""

from dataclasses import dataclass

from fedsim.config_distill import DistillConfig
from fedsim.data import load_dataset
from fedsim.data.dataset import Indices
from fedsim.images import ImageSource
from fedsim.models.stacked import StackedModel
from fedsim.texts import input_source


@dataclass(frozen=True)
class PublicInputs:
    """Inputs of ``source`` at ``places``."""

    source: ImageSource
    places: Indices


def load_public(config: DistillConfig, model: StackedModel) -> PublicInputs:
    """Load the training part of the set that a distillation names, as large as ``model`` takes images.

    UserError for an empty set, and for texts where the model takes images, or the other way round.
    """
    dataset = load_dataset(config.data.model_copy(update={"image_size": model.encoder.image_size}))
    return PublicInputs(input_source(config, dataset, model), dataset.train)
