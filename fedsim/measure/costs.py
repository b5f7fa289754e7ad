"""What a client holds and sends: the sub-model, where there is one, beside the full model."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Payload, Phase, ServerState
from fedsim.measure.traffic import Size, sent_by_client, told_to_client
from fedsim.models.stacked import StackedModel
from fedsim.models.submodel.model import HeldModel
from fedsim.schedule.cohort import Cohort
from fedsim.schedule.devices import Load
from fedsim.simulation import Simulation

# Parameters that are no part of the network itself, whatever a client does with them.
BESIDE = ("lora_a", "lora_b", "magnitude", "head", "local")


def costs(sim: Simulation) -> dict[str, dict[str, int]]:
    """Return for ``full_model``, and ``submodel`` if there is one, what a client of the first round holds and sends.

    ``parameters`` and ``bytes``: the frozen network in the type of its products, adapters and classifier in float32;
    no buffers. ``bytes_sent`` in the round, floats as float32, LoRA factors of the largest rank; with the full model
    without what a sub-model counts.
    """
    state = sim.initial_state()
    payloads = [payload_of(sim, state, phase) for phase in sim.algorithm.phases(1)]
    found = {"full_model": _costs(sim.model, [_without_counts(sim, payload) for payload in payloads])}
    return found if sim.held is sim.model else found | {"submodel": _costs(sim.held, payloads)}


def payload_of(sim: Simulation, state: ServerState, phase: Phase) -> Payload:
    """Return what clients send in a phase, with no client in it: a block without has the shapes of any other.

    Without what layers make of it.
    """
    nobody = Cohort((), torch.zeros(0, dtype=torch.float64))
    update, _ = sim.trainer.train((), nobody, state, phase, [])
    return sim.algorithm.pre_aggregate(update)


def round_load(sim: Simulation) -> Load:
    """Return what the first round asks of every client, for its simulated clock.

    Down go what the method tells of the server's parameters and its context; between two phases as much as the phase
    before has sent up. Up goes what is sent, as layers leave it.
    """
    state = sim.initial_state()
    down, up = list[Size](), list[Size]()
    for number, phase in enumerate(phases := sim.algorithm.phases(1)):
        update, _ = sim.trainer.train((), Cohort((), torch.zeros(0, dtype=torch.float64)), state, phase, [])
        payload = sim.algorithm.pre_aggregate(update)
        for layer in sim.layers:
            payload = layer.pre_aggregate(state, update, payload)
        known = state.params if number else {}
        told = told_to_client(sim.algorithm, state.params, known, update.context)
        down += [told, *up[-1:]]
        up.append(sent_by_client(payload, sim.held.specs))
    return Load(sum(phase.models for phase in phases), _by_client(sim, down), _by_client(sim, up))


def _by_client(sim: Simulation, messages: list[Size]) -> np.ndarray:
    """The bytes of messages together, of every client, float64 (N,)."""
    ranks = sim.algorithm.facts.ranks
    if ranks is None:
        return np.full(len(sim.sizes), float(sum(message.full for message in messages)))
    own = [sum(message.of_all([client], ranks) for message in messages) for client in range(len(sim.sizes))]
    return np.array(own, dtype=np.float64)


def _costs(model: StackedModel, payloads: list[Payload]) -> dict[str, int]:
    tensors = held_tensors(model)
    return {
        "parameters": sum(tensor.numel() for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "bytes_sent": sum(sent_by_client(payload, model.specs).full for payload in payloads),
    }


def held_tensors(model: StackedModel) -> list[Tensor]:
    """Return all parameters that a client with this model holds; some without their values."""
    beside = [torch.empty(spec.shape, device="meta") for spec in model.specs.values() if spec.kind in BESIDE]
    text = [] if model.encoder.text_features is None else [model.encoder.text_features]
    cut = model.cut_tensors() if isinstance(model, HeldModel) else []
    return [*model.net.parameters(), *cut, *text, *beside]


def _without_counts(sim: Simulation, payload: Payload) -> Payload:
    """Leave out the groups of what only a sub-model counts."""
    counted = {name for name, spec in sim.held.specs.items() if spec.kind == "count"}
    return replace(payload, total={group: part for group, part in payload.total.items() if not part.keys() & counted})
