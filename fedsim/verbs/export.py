"""``launch.py export``: a run's saved model in a form that other programs load, with a model card beside it."""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsim.errors import UserError
from fedsim.machine.files import naming_files, write_atomic, write_json
from fedsim.models.decoder.export import write_decoder
from fedsim.models.encoders import library_model
from fedsim.models.export import export_peft
from fedsim.models.outside.network import Scoring, features_line, head_of, trained_network
from fedsim.models.outside.recipes import build_lines
from fedsim.runfolder.saved import SavedModel, open_saved
from fedsim.verbs.bundle import write_bundle
from fedsim.verbs.cards import EDGES, facts, readme

NUM_COMPARED = 8
UPRIGHT = "picture = ImageOps.exif_transpose(Image.open(FILE)).convert('RGB')"
SQUARE = (
    "side = {edge}(picture.size)",
    "left, top = ((have - side) // 2 for have in picture.size)",
    "picture = picture.crop((left, top, left + side, top + side))",
)
RESIZED = "picture = picture.resize(({size}, {size}), Image.Resampling.BICUBIC)"
#: How an upright picture becomes a square of the right size.
FITTED = {
    "stretch": (RESIZED,),
    **{fit: (*(line.format(edge=edge) for line in SQUARE), RESIZED) for fit, edge in EDGES.items()},
}
#: How a picture of more than 8 bits becomes one of 8; a TIFF whose lowest value is white is inverted.
WINDOWED = (
    "stored = Image.open(FILE)",
    "picture = ImageOps.exif_transpose(stored)",
    "if picture.mode[0] in 'IF':",
    "    values = numpy.asarray(picture, numpy.float64)",
    "    low, high = {ends}",
    "    shares = numpy.clip((values - low) / (high - low), 0, 1)",
    "    is_inverted = getattr(stored, 'tag_v2', dict()).get(262) == 0",
    "    picture = Image.fromarray(numpy.rint(255 * (1 - shares if is_inverted else shares)).astype('uint8'))",
    "picture = picture.convert('RGB')",
)
PIXELS = (
    "images = torch.tensor(numpy.asarray(picture)).permute(2, 0, 1)[None] / 255",
    "images = (images - torch.tensor({mean}).view(3, 1, 1)) / torch.tensor({std}).view(3, 1, 1)",
)
VOLUME = (
    "volume = numpy.load(FILE)  # uint8, {slices} slices of {size} rows and columns",
    "images = (torch.tensor(volume)[None, :, None] / 255 - {mean[0]}) / {std[0]}",
)
TOKENS = (
    "import transformers",
    "tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)",
    "words = dict(padding=True, truncation=True, return_token_type_ids=True, return_tensors='pt')",
    "tokens = tokenizer(TEXTS, max_length={max_tokens}, **words)",
    "states = model(**tokens)",
)
LINEAR = "F.linear({features}, head['weight'], head.get('bias'))"
PROMPTS = "head['logit_scale'].exp() * F.normalize({features}, dim=-1) @ head['text_features'].T"


DECODED = (
    "import json, sys",
    "sys.path.insert(0, FOLDER)",
    "from decoder import make_decoder",
    'words = json.load(open(FOLDER + "/decoder.json"))',
    'decoder = make_decoder(**words["decoder"]).eval().requires_grad_(False)',
    'decoder.load_state_dict(load_file(FOLDER + "/decoder.safetensors"))',
    "seen = {{}}",
    'for path in words["reads"]:',
    "    keep = lambda block, given, tokens, path=path: seen.update({{path: tokens[:, words['num_prefix_tokens']:]}})",
    "    model.get_submodule({inner}path).register_forward_hook(keep)",
    "_ = {features}",
    'scores = decoder(torch.stack([seen[path] for path in words["reads"]], 1))',
)


@dataclass(frozen=True)
class Exported:
    """What a format has to work with. ``net``: the library's own network, trained; ``card``: of card.json."""

    saved: SavedModel
    net: nn.Module
    card: Mapping[str, object]


def export_run(
    run_dir: Path, kind: str, which: str, out: Path | None, trust: bool = False
) -> tuple[Path, float | None]:
    """Write a run's best or last saved model in one of ``FORMATS`` into the folder ``out``, new or empty.

    Return the folder, by default ``run_dir``/export/KIND, and by how much the scores of the network there differ from
    those of the run on some validation images; None where nothing is scored. UserError where the run's model has not
    the format.
    """
    folder = out or run_dir / "export" / kind
    with open_saved(run_dir, which, trust) as saved:
        if not saved.sim.group.is_server:
            return folder, None
        with naming_files(folder.parent):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(str(folder), "something that is there already", "another --out DIR")
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                unfinished.chmod(0o755)
                difference = _write(unfinished, kind, saved)
                unfinished.replace(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder, difference


def _write(folder: Path, kind: str, saved: SavedModel) -> float | None:
    """Fill the folder, and return by how much the scores differ."""
    sim = saved.sim
    if kind == "adapter" and sim.config.model.lora is None:
        raise UserError("--format", f"adapter of a run with train: {sim.config.model.train}", "weights, onnx or monai")
    net = trained_network(sim.model, saved.params, sim.dataset.class_names)
    difference = None if sim.model.encoder.tokenizer is not None else furthest(saved, net)
    card = facts(saved, kind) | {"largest_difference": difference}
    code = FORMATS[kind](folder, Exported(saved, net, card))
    write_json(folder / "card.json", card)
    write_atomic(folder / "README.md", readme(card, code).encode())
    return difference


def furthest(saved: SavedModel, net: nn.Module) -> float:
    """Return the largest difference between the scores of the library's network and the run's, on some images."""
    sim = saved.sim
    places = sim.dataset.val[:NUM_COMPARED]
    images = sim.dataset.images[torch.from_numpy(places)].float() / 255
    with torch.no_grad():
        own = sim.model.forward(saved.params, sim.images.evaluation_batch(places), training=False)[0].float().cpu()
        other = Scoring(sim.model, saved.params, sim.dataset.class_names, net)(images)
    return float((own - other).abs().max())


def write_weights(folder: Path, exported: Exported) -> list[str]:
    """Write the network's weights under the library's names, and the classifier; return the lines that use them."""
    sim = exported.saved.sim
    model, config = sim.model, sim.config.model
    if config.amplitude_norm is not None:
        raise UserError("--format", "weights of a run with model.amplitude_norm", "onnx, which holds all of it")
    save_state(exported.net.state_dict(), folder / "model.safetensors")
    if type(exported.net).__module__.startswith("transformers."):
        exported.net.config.save_pretrained(folder)  # type: ignore[operator,union-attr]  # the library's own
    build = build_lines(config, exported.net, model.encoder.image_size, sim.dataset.class_names)
    return _lines(folder, exported, [*build, 'model.load_state_dict(load_file(FOLDER + "/model.safetensors"))'])


def write_adapter(folder: Path, exported: Exported) -> list[str]:
    """Write LoRA's factors as peft has them, the network's first weights and the classifier; return the lines."""
    saved = exported.saved
    model, names = saved.sim.model, saved.sim.dataset.class_names
    config, encoder = model.config, model.encoder
    export_peft(folder, saved.params, model, saved.sim.config.data.max_tokens)
    base = library_model(config, encoder.image_size, encoder.seed, names)
    save_state(base.state_dict(), folder / "base.safetensors")
    return _lines(
        folder,
        exported,
        [
            "import peft",
            *build_lines(config, base, encoder.image_size, names),
            'model.load_state_dict(load_file(FOLDER + "/base.safetensors"))',
            "model = peft.PeftModel.from_pretrained(model, FOLDER)",
        ],
    )


def _lines(folder: Path, exported: Exported, model_lines: list[str]) -> list[str]:
    """Write what both forms of weights have beside them; return the lines from loading to scores."""
    saved = exported.saved
    encoder, inputs = saved.sim.model.encoder, exported.card["inputs"]
    assert isinstance(inputs, dict), "facts makes it"
    features = features_line(saved.sim.config.model, encoder)
    first = ["import numpy, torch, torch.nn.functional as F", "from PIL import Image, ImageOps"]
    prepare: Sequence[str] = TOKENS
    if encoder.whole_volumes:
        prepare, first = VOLUME, first[:1]
    elif encoder.tokenizer is None:
        prepare = (*picture_lines(inputs), *PIXELS)
    else:
        encoder.tokenizer.save_pretrained(folder)
        first = first[:1]
    lines = [*first, "from safetensors.torch import load_file", *model_lines, "_ = model.eval().requires_grad_(False)"]
    lines += [line.format(**inputs) for line in prepare]
    if encoder.decoder is not None:
        write_decoder(folder, saved.params, encoder)
        inner = '"base_model.model." + ' if exported.card["format"] == "adapter" else ""
        return [*lines, *(line.format(inner=inner, features=features) for line in DECODED)]
    if head := head_of(encoder, saved.params):
        save_state(head, folder / "head.safetensors")
        lines.append('head = load_file(FOLDER + "/head.safetensors")')
    form = LINEAR if "weight" in head else PROMPTS if head else "{features}"
    return [*lines, f"scores = {form.format(features=features)}"]


def picture_lines(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the lines that make a file a picture of the size of the run's, as forms that take ``inputs``."""
    if "window" not in inputs:
        return (UPRIGHT, *FITTED[inputs["fit"]])
    first, _, second = inputs["window"].partition("/")
    if second:
        low, high = float(first) - float(second) / 2, float(first) + float(second) / 2
        ends = f"{low:g}, {high:g}"
    else:
        ends = f"numpy.percentile(values, [{first.replace('%-', ', ').removesuffix('%')}])"
    return (*(line.format(ends=ends) for line in WINDOWED), *FITTED[inputs["fit"]])


def save_state(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors to a safetensors file, each by itself where two share memory."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, file)


def write_onnx(folder: Path, exported: Exported) -> list[str]:
    """Write the network with normalisation and classifier as one ONNX file; return the lines that use it."""
    sim = exported.saved.sim
    if sim.model.encoder.slices is not None:
        raise UserError("--format", "onnx of a run on volumes", "weights or adapter")
    network = Scoring(sim.model, exported.saved.params, sim.dataset.class_names, exported.net).eval()
    side = sim.model.encoder.image_size
    if importlib.util.find_spec("onnxscript") is None:  # what torch.onnx works with
        raise UserError("--format", "onnx without the package onnxscript", "an environment with it")
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, side, side),),
        str(folder / "model.onnx"),
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    inputs = exported.card["inputs"]
    assert isinstance(inputs, dict), "facts makes it"
    return [
        "import numpy, onnxruntime",
        "from PIL import Image, ImageOps",
        *(line.format(**inputs) for line in picture_lines(inputs)),
        "images = numpy.asarray(picture, numpy.float32).transpose(2, 0, 1)[None] / 255  # mean and std are inside",
        'session = onnxruntime.InferenceSession(FOLDER + "/model.onnx")',
        '(scores,) = session.run(None, {"images": images})',
    ]


def write_monai(folder: Path, exported: Exported) -> list[str]:
    """Write a bundle of MONAI's; return the lines that use it."""
    saved = exported.saved
    sim = saved.sim
    unread = (sim.model.encoder.slices, sim.config.model.amplitude_norm, sim.config.data.window)
    if any(one is not None for one in unread):
        found = "monai of a run on volumes, or with model.amplitude_norm or data.window"
        raise UserError("--format", found, "weights or onnx")
    return write_bundle(folder, saved, exported.net, exported.card)


FORMATS: dict[str, Callable[[Path, Exported], list[str]]] = {
    "adapter": write_adapter,
    "weights": write_weights,
    "onnx": write_onnx,
    "monai": write_monai,
}
