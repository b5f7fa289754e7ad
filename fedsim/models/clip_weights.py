"""The weights of an open_clip model that stand in a file here: read and checked before open_clip loads them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import open_clip
import torch
from open_clip.factory import _find_checkpoint_in_dir
from safetensors.torch import save_file
from torch import Tensor

from fedsim.errors import UserError
from fedsim.models.weights import in_float32, read_weights

HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"


def own_weights(name: str, pretrained: str | None, is_quick: bool, where: str) -> dict[str, Tensor] | None:
    """The tensors of a local folder, or of the file ``pretrained``; None for what open_clip fetches itself.

    UserError for a file without tensors or of another format, and for weights that were trained with QuickGELU, as far
    as that can be known (of a tag, and of OpenAI's weights), where the network of this name has GELU: not ``is_quick``.
    """
    usual = f"{name}-quickgelu"
    right = None if is_quick or usual not in open_clip.list_models() else f"model.name: open_clip:{usual}"
    if name.startswith(HUB):
        return None
    if pretrained is not None and open_clip.is_pretrained_cfg(name, pretrained):
        if right and open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"):
            raise UserError(where, f"weights trained with QuickGELU, with {name}", right)
        return None
    state = read_weights(Path(pretrained or file_in(name.removeprefix(FOLDER), where)), where)
    if not state:
        raise UserError(where, "no tensor", "the weights of both towers")
    if right and _is_of_openai(state):
        raise UserError(where, f"OpenAI's weights, trained with QuickGELU, with {name}", right)
    return state


def file_in(folder: str, where: str) -> str:
    """The file that open_clip takes from a folder."""
    found: str | None = _find_checkpoint_in_dir(Path(folder))
    if found is None or not found.endswith(".safetensors"):
        raise UserError(where, found or "no file of weights", WEIGHTS_FILE)
    return found


def _is_of_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether these are OpenAI's weights.

    Their archive holds three numbers beside the weights, and its products in half precision, the rest in float32: a
    file that another library made of it lost the numbers, but the products still have no more bits.
    """
    products = {name for name in state if "resblocks." in name and ".ln_" not in name and name.endswith("weight")}
    halves = {name for name, tensor in state.items() if torch.equal(tensor.half().float(), tensor.float())}
    return "input_resolution" in state or (bool(products) and products <= halves and len(halves) < len(state))


def is_float32(state: Mapping[str, Tensor]) -> bool:
    """Whether no tensor is of another floating-point type."""
    return all(tensor.dtype == torch.float32 for tensor in state.values() if tensor.is_floating_point())


def float32_copy(name: str, state: Mapping[str, Tensor], scratch: Path) -> tuple[str, str | None]:
    """Write the weights as float32 to ``scratch``; return the name and ``pretrained`` with which open_clip reads them.

    It would resize a position embedding in the file's own type, in which PyTorch may not even know how.
    """
    save_file(in_float32(state), scratch / WEIGHTS_FILE)
    if not name.startswith(FOLDER):
        return name, str(scratch / WEIGHTS_FILE)
    shutil.copy(Path(name.removeprefix(FOLDER)) / CONFIG_FILE, scratch)
    return f"{FOLDER}{scratch}", None
