"""The models. To add one: a row here, and the function that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedsim.catalogue.functions import import_function, is_import_path

#: How the names of files of weights end.
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
PLAIN = "fedsim.models.plain:plain_encoder"
OF_VOLUMES = "fedsim.models.networks.volumes:encoder_of_volumes"


@dataclass(frozen=True)
class ModelRow:
    """What is known about a model before it is built.

    ``name``: as a config has it; "timm:NAME" stands for all that begin with timm:. ``network``, "module:function",
    takes the config's model section, the images' side and the class names, and returns the network as its library makes
    it. ``encoder`` takes the same behind that network, and returns an ``Encoder`` around it.

    ``weights``: what model.weights may be: "own" (null), "random", "file" (a path), "tag" (open_clip's).
    ``options``: whether it takes model.options. ``per_pixel``: whether it scores every pixel. ``text_tower``: whether
    class prompts can be its classifier. ``volumes``: whether it sees whole volumes in place of images.
    """

    name: str
    about: str
    network: str
    encoder: str = PLAIN
    weights: tuple[str, ...] = ("random",)
    options: bool = False
    per_pixel: bool = False
    text_tower: bool = False
    volumes: bool = False

    @property
    def prefix(self) -> str | None:
        """What comes before the part in capitals; None for the name of one model."""
        start, colon, rest = self.name.rpartition(":")
        return start + colon if rest.isupper() else None


def _open_clip(name: str, about: str) -> ModelRow:
    return ModelRow(
        f"open_clip:{name}",
        about,
        "fedsim.models.clip:build_clip",
        "fedsim.models.clip:encoder_of_clip",
        ("own", "random", "file", "tag"),
        text_tower=True,
    )


_ROWS = (
    ModelRow(
        "packaged:vit_small_dino",
        "ViT-S/14 with pretrained weights from a package registry; needs no hub",
        "fedsim.models.packaged:vit_small_dino",
        "fedsim.models.timm_vit:encoder_of_timm",
        ("own", "random", "file"),
    ),
    ModelRow(
        "packaged:minilm",
        "MiniLM-L6, a BERT for sentences with pretrained weights from a package registry",
        "fedsim.models.hugging:build_hugging",
        "fedsim.models.hugging:encoder_of_hugging",
        ("own", "random"),
    ),
    ModelRow(
        "fedsim:vgg16_slim",
        "PRR-FL's slim VGG16 with BatchNorm, no biases; train: all, weights: random",
        "fedsim.models.networks.vgg:vgg16_slim",
        "fedsim.models.networks.vgg:without_bias",
    ),
    ModelRow(
        "fedsim:vgg16_slim_biased",
        "the same with a bias in the classifier",
        "fedsim.models.networks.vgg:vgg16_slim",
    ),
    ModelRow(
        "monai:unet",
        "U-Net for images with masks; options: channels, strides, num_res_units, norm ...",
        "fedsim.models.networks.fresh:monai_unet",
        weights=("random", "file"),
        options=True,
        per_pixel=True,
    ),
    ModelRow(
        "fedsim:harmofl_unet",
        "HarmoFL's U-Net, whose normalisation keeps no statistics; options: num_features, form",
        "fedsim.models.networks.fresh:harmofl_unet",
        options=True,
        per_pixel=True,
    ),
    ModelRow(
        "monai:densenet121",
        "DenseNet121; options: init_features, growth_rate, block_config, norm ...",
        "fedsim.models.networks.fresh:monai_densenet121",
        options=True,
    ),
    ModelRow(
        "monai:densenet121_3d",
        "the same for whole volumes of 32 pixels and slices or more; options: as above",
        "fedsim.models.networks.volumes:monai_densenet121_3d",
        OF_VOLUMES,
        options=True,
        volumes=True,
    ),
    ModelRow(
        "monai:resnet18_3d",
        "ResNet-18 for whole volumes; options: widen_factor, conv1_t_stride, no_max_pool, norm ...",
        "fedsim.models.networks.volumes:monai_resnet18_3d",
        OF_VOLUMES,
        options=True,
        volumes=True,
    ),
    ModelRow(
        "fedsim:harmofl_densenet121",
        "MONAI's DenseNet121 with HarmoFL's normalisation; options: its own, and form",
        "fedsim.models.networks.fresh:harmofl_densenet121",
        options=True,
    ),
    ModelRow(
        "timm:NAME",
        "any net of timm, such as timm:vit_base_patch16_224.augreg_in21k, timm:hf-hub:ID or timm:local-dir:PATH",
        "fedsim.models.timm_vit:timm_network",
        "fedsim.models.timm_vit:encoder_of_timm",
        ("own", "random", "file"),
        options=True,
    ),
    _open_clip("NAME", "image and text tower, such as open_clip:ViT-B-32; the class prompts are the classifier"),
    _open_clip("hf-hub:ID", "such as open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"),
    _open_clip("local-dir:PATH", "a folder with open_clip_config.json and the weights as safetensors"),
    ModelRow(
        "hf:FOLDER_OR_ID",
        "BERT, RoBERTa, ViT, DINOv2, DINOv3, CLIP, SigLIP, SAM, Swin, ConvNeXt or ResNet of Hugging Face",
        "fedsim.models.hugging:build_hugging",
        "fedsim.models.hugging:encoder_of_hugging",
        ("own", "random"),
    ),
)
MODELS = {row.name: row for row in _ROWS}
#: What holds for every model that is named by its import path.
OWN_MODEL = ModelRow(
    "package.module.function", "your own network, by its import path", "", weights=("own",), options=True
)


def model_row(name: str) -> ModelRow | None:
    """Return the row of a model, None for a name that nobody knows."""
    if is_import_path(name):
        return OWN_MODEL
    if name in MODELS and MODELS[name].prefix is None:
        return MODELS[name]
    starts = [row for row in MODELS.values() if row.prefix is not None and name.startswith(row.prefix)]
    row = max(starts, key=lambda row: len(row.prefix or ""), default=None)
    rest = "" if row is None else name.removeprefix(row.prefix or "")
    return row if rest and rest.strip() == rest and not rest.startswith(":") else None


def import_model(name: str) -> Callable[..., Any]:
    """Return the function at a dotted import path; UserError as ``import_function``."""
    known = "a name that launch.py list models shows, or the import path of a function"
    return import_function("model.name", name, known, "a network")  # type: ignore[no-any-return]  # it is callable
