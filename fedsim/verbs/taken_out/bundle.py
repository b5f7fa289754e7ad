"""A run's model as a bundle of MONAI's: configs/metadata.json and inference.json, models/model.pt.

The weights are a state dict that ``torch.load`` reads with weights_only. The network is built by an expression of
timm's or MONAI's own, so this is for such networks alone.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import __version__
from fedsim.errors import UserError
from fedsim.machine.files import write_json
from fedsim.models.outside.network import head_of
from fedsim.models.outside.recipes import build_lines
from fedsim.runfolder.saved import SavedModel
from fedsim.verbs.taken_out.cards import EDGES

UPRIGHT = "$ImageOps.exif_transpose(Image.open(@image)).convert('RGB')"
SQUARE = (
    "$@picture.crop(((@picture.width - @side) // 2, (@picture.height - @side) // 2, "
    "(@picture.width + @side) // 2, (@picture.height + @side) // 2))"
)
RESIZED = (
    "$lambda picture: numpy.asarray(picture.resize(({size}, {size}), Image.Resampling.BICUBIC), numpy.float32)"
    ".transpose(2, 0, 1) / 255"
)
#: MONAI binds a dotted name as it is, so that "import a.b" leaves a unknown, and imports no two names in one line.
IMPORTS = ("import numpy", "from PIL import Image", "from PIL import ImageOps", "import torch")
PROBABILITIES = {"findings": "torch.sigmoid(@scores)", "regression": "@scores"}
LIBRARIES = ("packaged:vit_small_dino", "timm:", "monai:")
USE = """import monai.bundle
parser = monai.bundle.ConfigParser()
parser.read_config(FOLDER + "/configs/inference.json")
parser["bundle_root"], parser["image"] = FOLDER, FILE
scores = parser.get_parsed_content("scores")"""


def write_bundle(folder: Path, saved: SavedModel, net: nn.Module, card: Mapping[str, Any]) -> list[str]:
    """Fill ``folder``, and return the lines that score an image with it. UserError for networks of other libraries."""
    config, encoder = saved.sim.config.model, saved.sim.model.encoder
    head = head_of(encoder, saved.params)
    if not config.name.startswith(LIBRARIES) or (head and "weight" not in head) or encoder.decoder is not None:
        raise UserError("--format", f"monai of {config.name}", "a network of timm's or MONAI's; here weights or onnx")
    *imports, expression, state = _network(saved, net, head)
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    torch.save(state, folder / "models" / "model.pt")
    inputs = card["inputs"]
    edge = EDGES.get(inputs["fit"])
    square = {"square": "@picture"} if edge is None else {"side": f"${edge}(@picture.size)", "square": SQUARE}
    write_json(folder / "configs" / "metadata.json", _metadata(saved, card))
    write_json(
        folder / "configs" / "inference.json",
        {
            "imports": [f"${line}" for line in (*IMPORTS, *imports)],
            "bundle_root": ".",
            "image": "image.png",
            "picture": UPRIGHT,
            **square,
            "network_def": f"${expression}",
            "weights": "$@network_def.load_state_dict("
            "torch.load(@bundle_root + '/models/model.pt', weights_only=True))",
            "network": "$@network_def.eval().requires_grad_(False)",
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "Lambdad", "keys": "image", "func": RESIZED.format(**inputs)},
                    {
                        "_target_": "NormalizeIntensityd",
                        "keys": "image",
                        "subtrahend": list(inputs["mean"]),
                        "divisor": list(inputs["std"]),
                        "channel_wise": True,
                    },
                    {"_target_": "ToTensord", "keys": "image", "track_meta": False},
                ],
            },
            "scores": "$[@weights, @network(@preprocessing({'image': @square})['image'][None])][1]",
            "run": [f"$print({PROBABILITIES.get(card['task'], 'torch.softmax(@scores, 1)')})"],
        },
    )
    return USE.splitlines()


def _network(saved: SavedModel, net: nn.Module, head: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """The lines that import, then the expression that makes the network with its classifier, and its state."""
    config, encoder, names = saved.sim.config.model, saved.sim.model.encoder, saved.sim.dataset.class_names
    lines = build_lines(config, net, encoder.image_size, names)
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    built = next(line.removeprefix("model = ") for line in lines if line.startswith("model = "))
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    if not head:
        return *imports, built, state
    linear = f"torch.nn.Linear({encoder.width}, {len(names)}, bias={'bias' in head})"
    if config.name == "monai:densenet121":
        built = built.replace("out_channels=1", f"out_channels={len(names)}")
        return *imports, built, state | {f"class_layers.out.{part}": value.clone() for part, value in head.items()}
    state = {f"0.{name}": value for name, value in state.items()}
    return *imports, f"torch.nn.Sequential({built}, {linear})", state | {f"1.{n}": v.clone() for n, v in head.items()}


def _metadata(saved: SavedModel, card: Mapping[str, Any]) -> dict[str, Any]:
    side, names = card["inputs"]["size"], card["class_names"]
    form = {"num_channels": 3, "spatial_shape": [side, side], "dtype": "float32", "is_patch_data": False}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by fedsim {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": str(torch.__version__).partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("timm", "pillow")},
        "name": card["run"],
        "task": card["task"],
        "description": f"{card['network']} trained by {card['method']} on {card['data']}, {card['clients']} clients",
        "authors": "the authors of the run",
        "copyright": "the authors of the run",
        "data_source": saved.sim.dataset.name,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "value_range": [0, 1],
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                    **form,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if card["task"] == "segmentation" else "probabilities",
                    "format": card["task"],
                    **form,
                    "num_channels": len(names),
                    "channel_def": {str(number): name for number, name in enumerate(names)},
                }
            },
        },
    }
