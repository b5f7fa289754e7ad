"""The lines of Python on a model card, which come from a file to scores without fedsim: ten of them, mostly.

In them FOLDER is the exported folder, FILE an image or a volume, and TEXTS a list of strings.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import Tensor

from fedsim.models.decoder.export import DECODED
from fedsim.models.outside.amplitudes import NORMALISED
from fedsim.models.outside.network import features_line
from fedsim.models.stacked import StackedModel
from fedsim.verbs.taken_out.cards import EDGES

PICTURE = "picture = ImageOps.exif_transpose(Image.open(FILE)).convert('RGB')"
SQUARE = "picture.crop([(have + sign * {edge}(picture.size)) // 2 for sign in (-1, 1) for have in picture.size])"
RESIZED = ".resize(({size}, {size}), Image.Resampling.BICUBIC)"
#: How a picture of more than 8 bits becomes one of 8; a TIFF whose lowest value is white is inverted.
WINDOWED = (
    "stored = Image.open(FILE)",
    "picture = ImageOps.exif_transpose(stored)",
    "if picture.mode[0] in 'IF':",
    "    values = numpy.asarray(picture, numpy.float64)",
    "    low, high = {ends}",
    "    low, high = (low, high) if low < high else (low - 0.5, low + 0.5)",
    "    shares = numpy.clip((values - low) / (high - low), 0, 1)",
    "    is_inverted = getattr(stored, 'tag_v2', dict()).get(262) == 0",
    "    picture = Image.fromarray(numpy.rint(255 * (1 - shares if is_inverted else shares)).astype('uint8'))",
    "picture = picture.convert('RGB')",
)
VOLUME = "volume = numpy.load(FILE)  # uint8, slices x rows x columns"
SLICE = "volume[(2 * number + 1) * len(volume) // {twice}]"
TOKENS = (
    "tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)",
    "words = dict(padding=True, truncation=True, return_token_type_ids=True, return_tensors='pt')",
    "tokens = tokenizer(TEXTS, max_length={max_tokens}, **words)",
    "states = model(**tokens)",
)
HEAD = 'safetensors.torch.load_file(FOLDER + "/head.safetensors")'
LINEAR = "scores = F.linear({features}, **" + HEAD + ")"
PROMPTS = (
    "head = " + HEAD,
    "scores = head['logit_scale'].exp() * F.normalize({features}, dim=-1) @ head['text_features'].T",
)
#: What the lines may need, by the name that they have for it.
MODULES = {
    **{name: name for name in ("numpy", "onnxruntime", "open_clip", "peft", "runpy", "timm", "torch", "transformers")},
    "safetensors.torch": "safetensors",
    "torch.nn.functional as F": "F",
}

#: What decides whether weights fit, and how its distribution is called where that is another name.
LIBRARIES = {
    **{name: name for name in ("monai", "onnxruntime", "peft", "timm", "torch", "transformers")},
    "open_clip": "open_clip_torch",
}


def libraries(code: Sequence[str]) -> dict[str, str]:
    """Return the versions of the libraries that lines import: those that they have been written with."""
    imported = " ".join(line for line in code if line.startswith(("import ", "from ")))
    names = [name for name in sorted(LIBRARIES) if re.search(rf"(?<![\w.]){name}\b", imported)]
    return {name: version(LIBRARIES[name]) for name in names}


def whole(lines: Sequence[str]) -> list[str]:
    """Return lines with all that they import on top."""
    text = "\n".join(line for line in lines if not line.startswith("import "))
    modules = [module for module, name in sorted(MODULES.items()) if re.search(rf"(?<![\w.]){name}\.", text)]
    classes = [name for name in ("Image", "ImageOps") if f"{name}." in text]
    pillow = [f"from PIL import {', '.join(classes)}"] if classes else []
    return [f"import {', '.join(modules)}", *pillow, *text.splitlines()]


def picture_lines(inputs: Mapping[str, Any]) -> list[str]:
    """Return the lines that make ``pictures``, Pillow's, in which a model sees a file; ``inputs``: of card.json."""
    resized = RESIZED.format(**inputs)
    square = SQUARE.format(edge=edge) if (edge := EDGES.get(inputs["fit"])) else "picture"
    if "slices" in inputs:
        slice = SLICE.format(twice=2 * inputs["slices"])
        slices = f"slices = [Image.fromarray({slice}).convert('RGB') for number in range({inputs['slices']})]"
        return [VOLUME, slices, f"pictures = [{square}{resized} for picture in slices]"]
    read = windowed_lines(inputs["window"]) if "window" in inputs else [PICTURE]
    return [*read, *([f"picture = {square}"] if edge else []), f"pictures = [picture{resized}]"]


def windowed_lines(window: str) -> list[str]:
    """Return the lines that read a picture of any depth by the window of ``data.window``."""
    first, _, second = window.partition("/")
    if second:
        low, high = float(first) - float(second) / 2, float(first) + float(second) / 2
        ends = f"{low!r}, {high!r}"
    else:
        ends = f"numpy.percentile(values, [{first.replace('%-', ', ').removesuffix('%')}])"
    return [line.format(ends=ends) for line in WINDOWED]


def image_lines(inputs: Mapping[str, Any], *, normalises: bool) -> list[str]:
    """Return the lines from ``pictures`` to ``images``, as the network wants them."""
    images = "torch.tensor(numpy.stack(pictures)).permute(0, 3, 1, 2) / 255"
    mean, std = (f"torch.tensor({list(inputs[key])}).view(3, 1, 1)" for key in ("mean", "std"))
    if "whole_volumes" in inputs:
        return [f"images = (({images} - {mean}) / {std})[None]  # 1 x slices x 3 x rows x columns"]
    if not normalises:
        return [f"images = ({images} - {mean}) / {std}"]
    return [f"images = {NORMALISED}({images})", f"images = (images - {mean}) / {std}"]


def score_lines(model: StackedModel, head: Mapping[str, Tensor]) -> list[str]:
    """Return the lines from ``images`` to ``scores``; ``head``: the classifier that lies in the folder."""
    encoder = model.encoder
    if encoder.decoder is not None:
        return [f"scores = {DECODED}"]
    features = features_line(model.config, encoder)
    if encoder.slices_apart is not None:
        features += f".unflatten(0, (-1, {encoder.slices_apart})).mean(1)"
    if not head:
        return [f"scores = {features}"]
    return [line.format(features=features) for line in ([LINEAR] if "weight" in head else PROMPTS)]
