"""Model cards: what a program and a person must know to use an exported model without fedsim."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim import __version__
from fedsim.runfolder.adapter import base_of, inputs_of
from fedsim.runfolder.environment import FROZEN
from fedsim.runfolder.saved import SavedModel
from fedsim.tasks.findings import Findings
from fedsim.tasks.segmentation import Segmentation
from fedsim.tasks.task import Task
from fedsim.tasks.texts import Regression

README = """# {name}: {network}, trained by {method}

{what} Trained on {data} in a simulation of federated learning with {clients} clients, by fedsim {version}; this is the
model of round {round}. `card.json` has the same facts for programs. Nothing here needs fedsim.

## Use it

FOLDER is this folder{file}. Written with {libraries}.{names}

```python
{code}
```

## Inputs and outputs

{inputs}

{outputs}

| split | {metrics} |
|---|{rules}|
{rows}

## Limits

The figures hold for images of the kind that it was trained on. It is research software, and no medical device.
"""
IMAGES = """RGB images with values in 0..1, upright, {resize} of {size} x {size} pixels by Pillow's bicubic
interpolation; then minus {mean}, divided by {std}."""
#: Of which edge the square has the length.
EDGES = {"crop": "min", "pad": "max"}
FITS = {
    "stretch": "stretched to a square",
    "crop": "the square in the middle, made one",
    "pad": "padded with black to a square, made one",
}
WINDOW = "\nGrey values of more than 8 bits become grey levels before, by the window {window}: the lines above do so."
VOLUMES = "\nA volume is {slices} such images, its slices; the mean of their features is the volume's."
#: What there is to say beside, by the first key of the inputs that it is about. A volume's file has its grey levels.
MORE = {"whole_volumes": "", "slices": VOLUMES, "window": WINDOW}
WHOLE_VOLUMES = """Grey volumes of {slices} slices, evenly spaced along the first axis, {resize} of {size} x {size}
pixels, with values in 0..1; then minus {mean[0]}, divided by {std[0]}."""
TEXTS = "Texts, cut after {max_tokens} tokens."
PIXELS = "A score before the softmax for every class and pixel; the classes, from 0: {classes}."
CLASSES = "A score before the softmax for each class, in this order: {classes}."
FINDINGS = "A score before the logistic function for each finding, by itself, in this order: {classes}."
NUMBERS = "A number."
MIXED = " They depend on the other images of a batch, over which the network normalises."
#: Such as those of a ViT's attention: query in transformers 4, q_proj in 5.
NAMES = " Other versions of transformers may call layers otherwise, and cannot load it then."
FILES = {"max_tokens": "", "slices": ", FILE a volume as .npy: uint8, slices x rows x columns"}


def facts(saved: SavedModel, method_of_use: str) -> dict[str, Any]:
    """Return the content of card.json. ``method_of_use``: the format of the export."""
    sim, row = saved.sim, saved.row
    config, inputs = sim.config, inputs_of(sim)
    mixed = MIXED if sim.model.mixes_images(training=False) else ""
    if "fit" in inputs:
        inputs |= {"values": "RGB in 0..1, upright", "resize": FITS[inputs["fit"]]}
    return {
        "made_by": f"fedsim {__version__}",
        "format": method_of_use,
        "run": config.name,
        "method": config.algorithm.name,
        "network": config.model.name,
        "task": "segmentation" if isinstance(sim.task, Segmentation) else type(sim.task).__name__.lower(),
        "data": config.data.name,
        "clients": len(sim.parts),
        "class_names": list(sim.dataset.class_names),
        "inputs": inputs,
        **base_of(sim),
        FROZEN: sim.model.encoder.frozen_sha256,
        "outputs": outputs_of(sim.task).format(classes=", ".join(sim.dataset.class_names)) + mixed,
        "round": row["round"],
        "val": row.get("val"),
        "test": row.get("test"),
        **({"epsilon": row["epsilon"]} if "epsilon" in row else {}),
    }


def outputs_of(task: Task) -> str:
    """Return what the scores of a task are; ``{classes}`` are the names."""
    if isinstance(task, Regression):
        return NUMBERS
    return FINDINGS if isinstance(task, Findings) else PIXELS if isinstance(task, Segmentation) else CLASSES


def readme(card: Mapping[str, Any], code: Sequence[str]) -> str:
    """Return the README.md of an export whose card.json holds ``card``; ``code``: lines that use it."""
    inputs = card["inputs"]
    more = next((text for key, text in MORE.items() if key in inputs), "")
    form = TEXTS if "max_tokens" in inputs else WHOLE_VOLUMES if "whole_volumes" in inputs else IMAGES
    splits = {split: card[split] for split in ("val", "test") if card[split]}
    names = list(dict.fromkeys(name for scores in splits.values() for name in scores))
    rows = [
        f"| {split} | {' | '.join(_number(scores.get(name)) for name in names)} |" for split, scores in splits.items()
    ]
    return README.format(
        name=card["run"],
        network=card["network"],
        method=card["method"],
        what=f"A model for {card['task']}.",
        data=card["data"],
        clients=card["clients"],
        version=card["made_by"].removeprefix("fedsim "),
        round=card["round"],
        file=next((text for key, text in FILES.items() if key in inputs), ", FILE an image"),
        libraries=", ".join(f"{name} {version}" for name, version in card["libraries"].items()),
        names=NAMES if "transformers" in card["libraries"] else "",
        code="\n".join(code),
        inputs=(form + more).format(**inputs),
        outputs=card["outputs"],
        metrics=" | ".join(names),
        rules="|".join("---" for _ in names),
        rows="\n".join(rows),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
