"""A picture of what the final model makes of a few test images, beside their masks.

Shapes: N test images, H and W pixels.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Dataset
from fedsim.machine.files import write_atomic
from fedsim.results.figures.style import COLOURS
from fedsim.simulation import Simulation

PER_SITE = 4
ROLES = ("image", "mask", "prediction")


def draw_predictions(sim: Simulation, params: Mapping[str, Tensor], path: Path) -> None:
    """Write a PNG: a row per site, and in it image, mask and prediction for some of its test images.

    ``params``: the model's. A data set without sites has one row. Not a collective: rank 0 alone may call it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: only pictures need matplotlib
    from matplotlib.figure import Figure

    rows = examples(sim.dataset)
    figure = Figure(figsize=(1.1 * len(ROLES) * PER_SITE, 1.25 * len(rows) + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(ROLES) * PER_SITE, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for row, (name, places) in zip(axes, rows, strict=True):
        with torch.no_grad():
            outputs = sim.model.forward(params, sim.images.evaluation_batch(places), training=False)[0]
        index = torch.from_numpy(places)
        images = sim.dataset.images[torch.from_numpy(sim.dataset.pictures_of(places))].movedim(1, -1).numpy()
        masks, predicted = sim.images.targets[index].cpu().numpy(), outputs.argmax(1).cpu().numpy()
        shown = (images, _tinted(images, masks), _tinted(images, predicted))
        for column in range(len(places)):
            for offset, (role, pictures) in enumerate(zip(ROLES, shown, strict=True)):
                place = row[column * len(ROLES) + offset]
                place.imshow(pictures[column], vmin=0, vmax=255)
                place.set_title(role if offset or column else f"{name}: {role}", fontsize="x-small", loc="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(path, picture.getvalue())


def examples(dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    """Return for each site that has test images its name and some of them, spread evenly over the site's."""
    sites = np.zeros(len(dataset.labels), np.int64) if dataset.sites is None else dataset.sites
    names = dataset.site_names if dataset.sites is not None else (dataset.name,)
    found = []
    for site, name in enumerate(names):
        own = dataset.test[sites[dataset.test] == site]
        if len(own):
            chosen = np.linspace(0, len(own) - 1, min(PER_SITE, len(own))).round().astype(np.int64)
            found.append((name, own[chosen]))
    return found


def _tinted(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Lay each foreground class's colour over images (N, H, W, 3); ``classes`` (N, H, W)."""
    from matplotlib.colors import to_rgb  # late, as above

    colours = np.array(
        [to_rgb(COLOURS[label % len(COLOURS)]) for label in range(classes.max(initial=0))] or [(0, 0, 0)]
    )
    tints = 255 * colours[np.maximum(classes.astype(np.int64) - 1, 0)]
    mixed = np.where(classes[..., None] > 0, 0.5 * images + 0.5 * tints, images)
    return mixed.astype(np.uint8)
