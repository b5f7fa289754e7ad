"""The data sets. To add one: a row here, and the function that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fedsim.catalogue.functions import import_function, is_import_path


@dataclass(frozen=True)
class DataRow:
    """What is known about a set before it is read.

    ``reader``, "module:function", takes the config's data section and returns a ``Source``. ``root``: whether that
    section names a folder. ``texts``: whether the set has texts in place of images; None where only reading it tells.
    ``columns``, ``file``, ``lesions``: whether it takes data.columns, data.file, and data.split, which tells lesions
    apart. ``volumes``: whether it has volumes, of which data.slices slices are read; optional where that key says so
    itself. ``own_files``: whether the user's own image files are read, which data.fit, data.window and data.patient are
    about. ``classes``: whether it takes data.classes, since its classes are what the user's own files are called.
    ``window``: whether it takes data.window, as all with own files do.
    """

    name: str
    about: str
    reader: str
    root: Literal["none", "optional", "needed"] = "none"
    texts: bool | None = False
    columns: bool = False
    file: bool = False
    lesions: bool = False
    volumes: Literal["none", "optional", "needed"] = "none"
    own_files: bool = False
    classes: bool = False
    window: bool = False


def _glue(task: str, about: str) -> DataRow:
    return DataRow(f"glue:{task}", f"GLUE, {about}", "fedsim.data.datasets.glue:glue", "optional", texts=True)


def _medmnist(flag: str, about: str) -> DataRow:
    return DataRow(f"medmnist:{flag}", about, "fedsim.data.datasets.med:medmnist_set", "optional")


def _medmnist_3d(flag: str, about: str) -> DataRow:
    return DataRow(f"medmnist:{flag}", about, "fedsim.data.datasets.med:medmnist_set", "optional", volumes="needed")


_ROWS = (
    DataRow(
        "brain_mri",
        "brain MRI slices, tumour or none (packaged; sites by image size)",
        "fedsim.data.datasets.packaged:brain_mri",
    ),
    DataRow(
        "cells",
        "tiles of HeLa, bacteria, CHO and DSB2018 with masks (packaged; sites: these four)",
        "fedsim.data.datasets.cells:cells",
    ),
    DataRow(
        "dermoscopy_pairs",
        "pairs of skin patches side by side, similar or not (packaged)",
        "fedsim.data.datasets.packaged:dermoscopy_pairs",
    ),
    DataRow("digits", "8x8 handwritten digits of scikit-learn; no download", "fedsim.data.datasets.packaged:digits"),
    DataRow(
        "dermoscopic_clients",
        "PRR-FL's four clients: nevus, benign keratosis, melanoma (your copy; sites: the clients)",
        "fedsim.data.datasets.clients:dermoscopic_clients",
        "needed",
        lesions=True,
    ),
    DataRow(
        "image_folder",
        "your own images: ROOT/CLASS/*.png, ROOT/{train,val,test}/CLASS/*.png; hospitals: ROOT/SITE/ above these",
        "fedsim.data.datasets.folder:image_folder",
        "needed",
        own_files=True,
        classes=True,
    ),
    DataRow(
        "table",
        "your own images, listed in a .csv, .tsv or .parquet file; columns in the config (sites: one of them)",
        "fedsim.data.datasets.table:table",
        "needed",
        columns=True,
        file=True,
        volumes="optional",
        own_files=True,
        classes=True,
    ),
    DataRow(
        "mask_folder",
        "your own images with masks: ROOT/images/*.png and ROOT/masks/*.png; hospitals: ROOT/SITE/ above these",
        "fedsim.data.datasets.mask_folder:mask_folder",
        "needed",
        own_files=True,
    ),
    DataRow(
        "kvasir",
        "Kvasir v2, 8 kinds of endoscopic images (your copy: ROOT/esophagitis/*.jpg ..., or with splits)",
        "fedsim.data.datasets.named_folders:kvasir",
        "needed",
        own_files=True,
    ),
    DataRow(
        "oct_c8",
        "Retinal OCT-C8, 8 kinds of OCT images (your copy: ROOT/{train,val,test}/AMD/*.jpg ...)",
        "fedsim.data.datasets.named_folders:oct_c8",
        "needed",
        own_files=True,
    ),
    DataRow(
        "camelyon17",
        "HarmoFL's lymph node patches, tumour or none (your copy; sites: five hospitals)",
        "fedsim.data.datasets.camelyon:camelyon17",
        "needed",
    ),
    DataRow(
        "wilds_camelyon17",
        "the same slides as published by WILDS (your copy; sites: five hospitals)",
        "fedsim.data.datasets.camelyon:wilds_camelyon17",
        "needed",
    ),
    DataRow(
        "prostate",
        "HarmoFL's prostate MRI slices with masks (your copy, NIfTI; sites: its folders)",
        "fedsim.data.datasets.prostate:prostate",
        "needed",
    ),
    DataRow(
        "mnms",
        "M&Ms, cardiac MRI: both ventricles and the myocardium (your copy, NIfTI; sites: its hospitals)",
        "fedsim.data.datasets.cardiac:mnms",
        "needed",
    ),
    DataRow(
        "flamby:ixi_tiny",
        "FLamby's Fed-IXI, brain MRI with brain masks (your copy, NIfTI; sites: three hospitals)",
        "fedsim.data.datasets.brains:ixi_tiny",
        "needed",
    ),
    DataRow(
        "biosilo",
        "a partition of pictures that the package biosilo has made, such as BraTS (your copy; sites: its clients)",
        "fedsim.data.datasets.biosilo:biosilo",
        "needed",
        window=True,
    ),
    DataRow(
        "nuclei",
        "nuclei with masks: ROOT/SITE/images/*.png and ROOT/SITE/masks/*.png (sites: the folders)",
        "fedsim.data.datasets.nuclei:nuclei",
        "needed",
    ),
    DataRow(
        "torchvision:cifar10",
        "CIFAR-10, binary version (your copy, as ROOT/cifar-10-batches-bin)",
        "fedsim.data.datasets.vision:cifar10",
        "needed",
    ),
    DataRow(
        "torchvision:cifar100",
        "CIFAR-100, binary version (your copy, as ROOT/cifar-100-binary)",
        "fedsim.data.datasets.vision:cifar100",
        "needed",
    ),
    DataRow(
        "torchvision:flowers102",
        "Oxford's 102 kinds of flowers (your copy, as ROOT/flowers-102)",
        "fedsim.data.datasets.vision:flowers102",
        "needed",
    ),
    DataRow(
        "rated_sentences",
        "tweets, movie reviews, editorials, product reviews: negative or positive (packaged; 4 sites)",
        "fedsim.data.datasets.sentences:rated_sentences",
        texts=True,
    ),
    DataRow(
        "sentence_ratings",
        "the same with their mean rating, -4 to 4, as the number to be told",
        "fedsim.data.datasets.sentences:sentence_ratings",
        texts=True,
    ),
    DataRow(
        "neutral_sentences",
        "sentences of the same archive with no clear rating, none from a document of rated_sentences",
        "fedsim.data.datasets.sentences:neutral_sentences",
        texts=True,
    ),
    DataRow(
        "text_files",
        "your own texts: ROOT/{train,validation,test}*.{tsv,csv,jsonl,parquet,arrow}; columns in the config",
        "fedsim.data.datasets.text_files:text_files",
        "needed",
        texts=True,
        columns=True,
    ),
    _glue("cola", "acceptable English or not; its own files in ROOT, or the cache of the datasets library"),
    _glue("sst2", "sentiment of movie reviews"),
    _glue("mrpc", "pairs of sentences, same meaning or not"),
    _glue("stsb", "similarity of pairs, 0 to 5, as the number to be told"),
    _glue("qqp", "pairs of questions, same or not"),
    _glue("mnli", "pairs: entailment, neutral, contradiction (matched)"),
    _glue("qnli", "question and sentence with the answer or not"),
    _glue("rte", "pairs: entailment or not"),
    _glue("wnli", "Winograd pairs: entailment or not"),
    _medmnist("pathmnist", "colon pathology, 9 classes"),
    _medmnist("chestmnist", "chest X-ray, 14 findings, several at once"),
    _medmnist("dermamnist", "dermatoscopy, 7 classes"),
    _medmnist("octmnist", "retinal OCT, 4 classes"),
    _medmnist("pneumoniamnist", "chest X-ray, pneumonia or none"),
    _medmnist("retinamnist", "fundus photographs, 5 grades"),
    _medmnist("breastmnist", "breast ultrasound, malignant or not"),
    _medmnist("bloodmnist", "blood cell microscopy, 8 classes"),
    _medmnist("tissuemnist", "kidney cortex microscopy, 8 classes"),
    _medmnist("organamnist", "abdominal CT, axial, 11 organs"),
    _medmnist("organcmnist", "abdominal CT, coronal, 11 organs"),
    _medmnist("organsmnist", "abdominal CT, sagittal, 11 organs"),
    _medmnist_3d("organmnist3d", "volumes of abdominal CT, 11 organs"),
    _medmnist_3d("nodulemnist3d", "volumes of chest CT, benign or malignant nodule"),
    _medmnist_3d("fracturemnist3d", "volumes of chest CT, 3 kinds of rib fracture"),
    _medmnist_3d("adrenalmnist3d", "shapes of adrenal glands from CT, normal or hyperplasia"),
    _medmnist_3d("vesselmnist3d", "shapes of brain vessels from MRA, healthy or aneurysm"),
    _medmnist_3d("synapsemnist3d", "volumes of electron microscopy, excitatory or inhibitory synapse"),
)
DATA = {row.name: row for row in _ROWS}
#: What holds for every set that is named by its import path.
OWN_DATA = DataRow(
    "package.module.function", "your own data set, by its import path", "", "optional", texts=None, own_files=True
)


def data_row(name: str) -> DataRow | None:
    """Return the row of a set, None for a name that nobody knows."""
    return OWN_DATA if is_import_path(name) else DATA.get(name)


def import_data(name: str) -> Callable[..., Any]:
    """Return the function at a dotted import path; UserError as ``import_function``."""
    known = "a name that launch.py list data shows, or the import path of a function"
    return import_function("data.name", name, known, "a data set")  # type: ignore[no-any-return]  # it is callable
