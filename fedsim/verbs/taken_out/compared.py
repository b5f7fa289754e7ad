"""A library's network with what a run has trained: it is used where it scores images as the run does."""

import torch
from torch import nn

from fedsim.errors import UserError
from fedsim.models.outside.network import Scoring, trained_network
from fedsim.runfolder.saved import SavedModel

NUM_COMPARED = 8
#: How far scores may differ from the run's, as a share of the largest of them, or of 1 where that is more.
#: In bf16 deep networks whose weights are right were seen 0.6 to 1.9 % apart.
MOST = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}


def compared_network(saved: SavedModel, where: str, what: str) -> tuple[nn.Module, float | None]:
    """Return the network, and by how much its scores differ from the run's; None for texts, which it does not score.

    UserError, that ``where`` has ``what``, for more than rounding explains.
    """
    net = trained_network(saved.sim.model, saved.params, saved.sim.dataset.class_names)
    if saved.sim.model.encoder.tokenizer is not None:
        return net, None
    difference, most = furthest(saved, net)
    if not difference <= most:  # nan is none, either
        found = f"{what} with scores up to {difference:.1e} off the run's"
        raise UserError(where, found, f"at most {most:.2g}, which rounding explains")
    return net, difference


def furthest(saved: SavedModel, net: nn.Module) -> tuple[float, float]:
    """Return the largest difference between the scores of the library's network and the run's, on some images.

    Scores are those before softmax or logistic function. The second number is the most that rounding explains.
    """
    sim = saved.sim
    places = sim.dataset.val[:NUM_COMPARED]
    images = sim.dataset.images[torch.from_numpy(sim.dataset.pictures_of(places))].float() / 255
    with torch.no_grad():
        own = sim.model.forward(saved.params, sim.images.evaluation_batch(places), training=False)[0].float().cpu()
        other = Scoring(sim.model, saved.params, sim.dataset.class_names, net)(images)
    most = MOST[sim.config.model.precision] * max(1.0, float(own.abs().max()))
    return float((own - other).abs().max()), most
