"""``launch.py export``: a run's saved model in a form that other programs load, with a model card beside it."""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsim.errors import UserError
from fedsim.machine.files import naming_files, write_atomic, write_json
from fedsim.models.amplitude import AmplitudeNorm
from fedsim.models.decoder.export import write_decoder
from fedsim.models.encoders import first_network
from fedsim.models.export import export_peft
from fedsim.models.outside.amplitudes import RealAmplitudeNorm, write_amplitude_norm
from fedsim.models.outside.network import Scoring, head_of, unmergeable
from fedsim.models.outside.recipes import build_lines, source_of
from fedsim.runfolder.saved import SavedModel, open_saved
from fedsim.verbs.taken_out.bundle import write_bundle
from fedsim.verbs.taken_out.card_lines import TOKENS, image_lines, libraries, picture_lines, score_lines, whole
from fedsim.verbs.taken_out.cards import facts, readme
from fedsim.verbs.taken_out.compared import compared_network

#: The formats that have weights alone, and so nothing for factors that these cannot hold.
MERGED = ("weights", "monai")


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
    if kind in MERGED and (layer := unmergeable(sim.model.encoder)):
        found = f"{kind} with LoRA on {layer}, a convolution of groups, whose kernel cannot hold it"
        raise UserError("--format", found, "--format adapter or onnx")
    net, difference = compared_network(saved, "--format", kind)
    card = facts(saved, kind) | {"largest_difference": difference}
    code = FORMATS[kind](folder, Exported(saved, net, card))
    card |= {"libraries": libraries(code)}
    write_json(folder / "card.json", card)
    write_atomic(folder / "README.md", readme(card, code).encode())
    return difference


def write_weights(folder: Path, exported: Exported) -> list[str]:
    """Write the network's weights under the library's names, and what is around it; return the lines that use them."""
    saved, net = exported.saved, exported.net
    model = saved.sim.model
    write_amplitude_norm(folder, saved.params, model.config, model.encoder.image_size)
    if model.encoder.decoder is not None:
        write_decoder(folder, saved.params, model.encoder)
    return _use(folder, exported, net, "model.safetensors")


def write_adapter(folder: Path, exported: Exported) -> list[str]:
    """Write LoRA's factors as peft has them, the network's first weights and the classifier; return the lines."""
    saved = exported.saved
    model, names = saved.sim.model, saved.sim.dataset.class_names
    export_peft(folder, saved.params, model, saved.sim.config.data.max_tokens)
    base = first_network(model.config, model.encoder.image_size, model.encoder.seed, names)
    return _use(folder, exported, base, "base.safetensors", "model = peft.PeftModel.from_pretrained(model, FOLDER)")


def _use(folder: Path, exported: Exported, net: nn.Module, file: str, *adapted: str) -> list[str]:
    """Write a network and its classifier, and what makes and feeds it; return the lines from a file to scores."""
    saved, inputs = exported.saved, exported.card["inputs"]
    assert isinstance(inputs, dict), "facts makes it"
    model = saved.sim.model
    encoder, config = model.encoder, model.config
    save_state(net.state_dict(), folder / file)
    if type(net).__module__.startswith("transformers."):
        net.config.save_pretrained(folder)  # type: ignore[operator,union-attr]  # the library's own
    if (source := source_of(config.name)) is not None:
        write_atomic(folder / "network.py", source.read_bytes())
    if head := head_of(encoder, saved.params):
        save_state(head, folder / "head.safetensors")
    loaded = f'model.eval().requires_grad_(False).load_state_dict(safetensors.torch.load_file(FOLDER + "/{file}"))'
    made = [*build_lines(config, net, encoder.image_size, saved.sim.dataset.class_names), f"_ = {loaded}", *adapted]
    if encoder.tokenizer is not None:
        encoder.tokenizer.save_pretrained(folder)
        read = [line.format(**inputs) for line in TOKENS]
    else:
        read = [*picture_lines(inputs), *image_lines(inputs, normalises=config.amplitude_norm is not None)]
    return whole([*made, *read, *score_lines(model, head)])


def save_state(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors to a safetensors file, each by itself where two share memory."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, file)


def write_onnx(folder: Path, exported: Exported) -> list[str]:
    """Write the network with normalisation and classifier as one ONNX file; return the lines that use it."""
    sim = exported.saved.sim
    network = Scoring(sim.model, exported.saved.params, sim.dataset.class_names, exported.net).eval()
    side, slices = sim.model.encoder.image_size, sim.model.encoder.slices
    if isinstance(network.amplitude_norm, AmplitudeNorm):
        network.amplitude_norm = RealAmplitudeNorm(network.amplitude_norm, side)
    if importlib.util.find_spec("onnxscript") is None:  # what torch.onnx works with
        raise UserError("--format", "onnx without the package onnxscript", "an environment with it")
    shape = (3, side, side) if slices is None else (slices, 3, side, side)
    try:
        torch.onnx.export(
            network,
            (torch.zeros(2, *shape),),
            str(folder / "model.onnx"),
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        found = f"onnx of {sim.config.model.name}, for which torch.onnx has no form"
        raise UserError("--format", found, "weights, or adapter with LoRA") from error
    inputs = exported.card["inputs"]
    assert isinstance(inputs, dict), "facts makes it"
    images = "images" if slices is None else "images[None]"
    return whole(
        [
            *picture_lines(inputs),
            "images = numpy.stack(pictures).astype(numpy.float32).transpose(0, 3, 1, 2) / 255",
            'session = onnxruntime.InferenceSession(FOLDER + "/model.onnx")',
            f'(scores,) = session.run(None, {{"images": {images}}})',
        ]
    )


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
