"""The alignment: between two rounds the server distils parts of the clients' sub-model anew, on all ranks."""

from collections.abc import Callable
from dataclasses import replace

from fedsim.algorithms.base import Aggregate, ServerState
from fedsim.algorithms.parts.abilities import Aligning
from fedsim.distill.distiller import Distiller, Pair, Step
from fedsim.models.submodel.model import HeldModel
from fedsim.models.tuned_tower import TunedTower
from fedsim.seeding import derive
from fedsim.simulation import Simulation


def align(
    sim: Simulation, method: Aligning, state: ServerState, aggregate: Aggregate, progress: Callable[[str], None]
) -> tuple[ServerState, list[Step]]:
    """Return the server's state with the sub-model as the method wants it aligned, and the steps that it took.

    The same bits on every rank. ``state`` and ``aggregate``: after the round's last phase.
    """
    assert sim.public is not None, "build_simulation loads it where a round aligns"
    assert isinstance(sim.model, TunedTower), "and the folder of a sub-model with it"
    assert isinstance(sim.held, HeldModel), "which clients hold"
    round, seed = state.round + 1, sim.config.seed
    wanted = method.align(state, aggregate, derive(seed, "align", round=round))
    pair = Pair(sim.model, sim.held, state.params, state.params | dict(wanted.student))
    distiller = Distiller(
        pair,
        wanted.trained,
        sim.public.source,
        sim.public.places,
        wanted.settings,
        sim.group,
        seed=seed,
        purpose="alignment",
        round=round,
    )
    steps = []
    for step in distiller.steps():
        steps.append(step)
        progress(f"alignment: step {step.step} of {distiller.num_steps}")
    return replace(state, params=state.params | distiller.tensors), steps
