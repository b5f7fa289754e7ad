"""What ``launch.py list`` shows: rows of a name and a line about it."""

from collections.abc import Callable
from pathlib import Path

from fedsim.config.data import DATA_NAMES

ROOT = Path(__file__).resolve().parents[2]
Rows = list[tuple[str, str]]

MODELS: Rows = [
    ("packaged:vit_small_dino", "ViT-S/14 with pretrained weights from a package registry; needs no hub"),
    ("packaged:minilm", "MiniLM-L6, a BERT for sentences with pretrained weights from a package registry"),
    ("fedsim:vgg16_slim", "PRR-FL's slim VGG16 with BatchNorm, no biases; train: all, weights: random"),
    ("fedsim:vgg16_slim_biased", "the same with a bias in the classifier"),
    ("monai:unet", "U-Net for images with masks; options: channels, strides, num_res_units, norm ..."),
    ("monai:densenet121", "DenseNet121; options: init_features, growth_rate, block_config, norm ..."),
    ("fedsim:harmofl_unet", "HarmoFL's U-Net, whose normalisation keeps no statistics; options: num_features, form"),
    ("fedsim:harmofl_densenet121", "MONAI's DenseNet121 with that normalisation; options: its own, and form"),
    (
        "timm:NAME",
        "any net of timm, such as timm:vit_base_patch16_224.augreg_in21k, or fresh with weights: random",
    ),
    (
        "open_clip:NAME",
        "image and text tower, such as open_clip:ViT-B-32; the class prompts are the classifier",
    ),
    (
        "open_clip:hf-hub:ID",
        "such as open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    ),
    ("open_clip:local-dir:PATH", "a folder with open_clip_config.json and the weights as safetensors"),
    (
        "hf:FOLDER_OR_ID",
        "BERT, RoBERTa or ViT of Hugging Face in safetensors, such as hf:bert-base-uncased",
    ),
    (
        "search timm",
        "python -c \"import timm; print(*timm.list_models('vit*dino*', pretrained=True), sep='\\n')\"",
    ),
    ("search open_clip", "python -c \"import open_clip; print(*open_clip.list_models(), sep='\\n')\""),
]
DATA = {
    "brain_mri": "brain MRI slices, tumour or none (packaged; sites by image size)",
    "cells": "tiles of HeLa, bacteria, CHO and DSB2018 with masks (packaged; sites: these four)",
    "dermoscopy_pairs": "pairs of skin patches side by side, similar or not (packaged)",
    "digits": "8x8 handwritten digits of scikit-learn; no download",
    "dermoscopic_clients": "PRR-FL's four clients: nevus, benign keratosis, melanoma (your copy; sites: the clients)",
    "image_folder": "your own images: ROOT/CLASS/*.png, or ROOT/{train,val,test}/CLASS/*.png",
    "camelyon17": "HarmoFL's lymph node patches, tumour or none (your copy; sites: five hospitals)",
    "wilds_camelyon17": "the same slides as published by WILDS (your copy; sites: five hospitals)",
    "prostate": "HarmoFL's prostate MRI slices with masks (your copy, NIfTI; sites: its folders)",
    "nuclei": "nuclei with masks: ROOT/SITE/images/*.png and ROOT/SITE/masks/*.png (sites: the folders)",
    "torchvision:cifar10": "CIFAR-10, binary version (your copy, as ROOT/cifar-10-batches-bin)",
    "torchvision:cifar100": "CIFAR-100, binary version (your copy, as ROOT/cifar-100-binary)",
    "torchvision:flowers102": "Oxford's 102 kinds of flowers (your copy, as ROOT/flowers-102)",
    "rated_sentences": "tweets, movie reviews, editorials, product reviews: negative or positive (packaged; 4 sites)",
    "sentence_ratings": "the same with their mean rating, -4 to 4, as the number to be told",
    "neutral_sentences": "sentences of the same archive with no clear rating, none from a document of rated_sentences",
    "text_files": "your own texts: ROOT/{train,validation,test}*.{tsv,csv,jsonl,parquet,arrow}; columns in the config",
    "glue:cola": "GLUE, acceptable English or not; its own files in ROOT, or the cache of the datasets library",
    "glue:sst2": "GLUE, sentiment of movie reviews",
    "glue:mrpc": "GLUE, pairs of sentences, same meaning or not",
    "glue:stsb": "GLUE, similarity of pairs, 0 to 5, as the number to be told",
    "glue:qqp": "GLUE, pairs of questions, same or not",
    "glue:mnli": "GLUE, pairs: entailment, neutral, contradiction (matched)",
    "glue:qnli": "GLUE, question and sentence with the answer or not",
    "glue:rte": "GLUE, pairs: entailment or not",
    "glue:wnli": "GLUE, Winograd pairs: entailment or not",
    "medmnist:pathmnist": "colon pathology, 9 classes",
    "medmnist:chestmnist": "chest X-ray, 14 findings",
    "medmnist:dermamnist": "dermatoscopy, 7 classes",
    "medmnist:octmnist": "retinal OCT, 4 classes",
    "medmnist:pneumoniamnist": "chest X-ray, pneumonia or none",
    "medmnist:retinamnist": "fundus photographs, 5 grades",
    "medmnist:breastmnist": "breast ultrasound, malignant or not",
    "medmnist:bloodmnist": "blood cell microscopy, 8 classes",
    "medmnist:tissuemnist": "kidney cortex microscopy, 8 classes",
    "medmnist:organamnist": "abdominal CT, axial, 11 organs",
    "medmnist:organcmnist": "abdominal CT, coronal, 11 organs",
    "medmnist:organsmnist": "abdominal CT, sagittal, 11 organs",
}


def list_algorithms() -> Rows:
    """The known methods."""
    from fedsim.algorithms import METHODS, resolve

    mine = ("package.module.Class", "your own method, by its import path")
    return [*((name, method.summary) for name, method in ((name, resolve(name)) for name in METHODS)), mine]


def list_models() -> Rows:
    """The forms of a model name, with examples, and how to search for more."""
    return MODELS


def list_data() -> Rows:
    """The data sets."""
    return [(name, DATA[name]) for name in DATA_NAMES]


def list_assets() -> Rows:
    """The packaged images and weights, with their source and licence."""
    from fedsim.data.assets import ASSETS

    return [(name, f"{asset.requirement}; {asset.source}; {asset.licence}") for name, asset in ASSETS.items()]


def list_configs() -> Rows:
    """The experiments in configs/, each with the comment on its first line."""
    files = sorted((ROOT / "configs").glob("*.yaml"))
    firsts = [(file.read_text().splitlines() or [""])[0] for file in files]
    return [
        (f"configs/{file.name}", first.lstrip("# ") if first.startswith("#") else "")
        for file, first in zip(files, firsts, strict=True)
    ]


LISTINGS: dict[str, Callable[[], Rows]] = {
    "algorithms": list_algorithms,
    "models": list_models,
    "data": list_data,
    "assets": list_assets,
    "configs": list_configs,
}
