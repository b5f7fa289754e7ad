"""Public sets that are folders of images, whose folders have short names: what the classes are called in a prompt.

A class keeps the name of its own folder, whatever the order: DEeR's published prompts of OCT-C8 stand in another order
than its labels, so that macular hole and diabetic retinopathy have each other's.
"""

from collections.abc import Mapping
from dataclasses import replace

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Source
from fedsim.data.datasets.folder import image_folder
from fedsim.errors import UserError

KVASIR = {
    "dyed-lifted-polyps": "dyed lifted polyps",
    "dyed-resection-margins": "dyed resection margins",
    "esophagitis": "esophagitis",
    "normal-cecum": "normal cecum",
    "normal-pylorus": "normal pylorus",
    "normal-z-line": "normal Z-line",
    "polyps": "polyps",
    "ulcerative-colitis": "ulcerative colitis",
}
OCT_C8 = {
    "AMD": "age-related macular degeneration",
    "CNV": "choroidal neovascularization",
    "CSR": "central serous retinopathy",
    "DME": "diabetic macular edema",
    "DR": "diabetic retinopathy",
    "DRUSEN": "drusen",
    "MH": "macular hole",
    "NORMAL": "normal retina",
}


def kvasir(config: DataConfig) -> Source:
    """Read Kvasir v2 (Pogorelov et al., MMSys 2017), with or without folders of splits, as ``image_folder`` does.

    UserError as there, and for class folders that are not the eight published ones.
    """
    return _named(config, KVASIR)


def oct_c8(config: DataConfig) -> Source:
    """Read Retinal OCT-C8 (Subramanian et al., 2022), which has folders of splits; UserError as ``kvasir``."""
    return _named(config, OCT_C8)


def _named(config: DataConfig, names: Mapping[str, str]) -> Source:
    source = image_folder(config)
    if odd := sorted(set(source.class_names) ^ names.keys()):
        found = f"{'a' if odd[0] in source.class_names else 'no'} class folder {odd[0]!r}"
        raise UserError(f"data.root {config.root}", found, f"those of {config.name}: {', '.join(names)}")
    return replace(source, class_names=tuple(names[folder] for folder in source.class_names))
